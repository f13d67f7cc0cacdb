"""What the units must say together."""

from __future__ import annotations

from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[3] / "packaging/systemd"


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS.glob("*.service") if "\nRootImage=" in unit.read_text()])
def test_a_verified_image_can_be_opened_where_udev_runs(unit: str) -> None:
    # Opening it waits for udev by a semaphore, which another IPC namespace hides from udev: the start never ends.
    assert "PrivateIPC" not in (UNITS / unit).read_text()
