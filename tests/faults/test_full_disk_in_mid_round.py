"""The disk takes no record in the middle of a round: the round waits, and ends as if nothing had been."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from agent.core.files import store_atomically
from agent.federation import journal
from tests.unit.coordinator.test_secure import MEAN, Federation

SITE = "hospital-b"


class FullDisk:
    """Takes all but its nth writes of one hospital's journal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: Path, failing: set[int]) -> None:
        self.place, self.failing, self.asked = place, failing, 0
        self._write_all, self._store = journal._write_all, store_atomically
        monkeypatch.setattr(journal, "_write_all", self.write_all)
        monkeypatch.setattr(journal, "store_atomically", self.store)

    def write_all(self, descriptor: int, data: bytes) -> None:
        self.check(Path(f"/proc/self/fd/{descriptor}").readlink())
        self._write_all(descriptor, data)

    def store(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        self.check(path)
        self._store(path, data, mode=mode)

    def check(self, path: Path) -> None:
        if not path.is_relative_to(self.place):
            return
        self.asked += 1
        if self.asked in self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")


# Each round writes its attempt, its model and its lock; the first one also what the study is configured with.
@pytest.mark.parametrize("failing", [{1}, {2}, {3}, {4}, {5}, {6}, {7}, {1, 2, 3}, {5, 6, 8}], ids=str)
def test_a_full_disk_costs_a_wait_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    federation = Federation(tmp_path)
    disk = FullDisk(monkeypatch, federation.sites[SITE].directory, failing)
    result = federation.run()
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["cohort"] for record in result["history"]] == [list(federation.sites)] * 3
    assert disk.asked > max(failing)
