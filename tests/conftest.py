"""What holds for every test: no real smartcard reader is touched, and no log configuration outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests.simulators.pcscd import reserve_readers


def pytest_configure() -> None:
    reserve_readers()
    # How long one example takes depends on what else the machine does.
    settings.register_profile("any-machine", deadline=None)
    settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()
