from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulators.superlink import RunningSuperLink


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    """A SuperLink in memory that the tests of one file share, each with nodes of its own."""
    with RunningSuperLink.start(tmp_path_factory.mktemp("superlink")) as running:
        yield running
