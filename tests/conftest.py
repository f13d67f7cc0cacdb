"""What holds for every test: no real smartcard reader of this machine is ever touched."""

from __future__ import annotations

from tests.simulators.pcscd import reserve_readers


def pytest_configure() -> None:
    reserve_readers()
