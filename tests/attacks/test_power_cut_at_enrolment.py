"""The power goes, or is taken, while a box that was enrolled anew puts its old audit log aside.

What earlier studies spent must not be forgotten by it: the new log begins with the end of the old one all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from agent.audit.leaves import LogOpened
from agent.audit.log import AuditLog, retire
from agent.audit.retired import retired_leaves
from agent.core.errors import HardwareError
from agent.identity.session import Subject
from agent.identity.vault import Vault
from agent.service import governing

FIRST, SECOND = (Subject(consortium * 32, "hospital-a", "node-1") for consortium in ("a1", "b2"))


class PowerCut(Exception):  # noqa: N818 - it is one
    """The process is no more."""


@dataclass(frozen=True)
class PlayedVault:
    """The same key for both enrolments, as of one box."""

    def key_for(self, purpose: str) -> bytes:
        return purpose.encode().ljust(32)[:32]


def start(directory: Path, subject: Subject) -> tuple[LogOpened, str]:
    """The agent starts: its log's first leaf, and its last checkpoint."""
    with governing._open_log(directory, subject, cast("Vault", PlayedVault()), lambda: 1) as log:
        first = log.leaf(0)
        assert isinstance(first, LogOpened)
        return first, log.checkpoint().note


def cut(*_: object, **__: object) -> Any:  # noqa: ANN401 - it never returns
    raise PowerCut


@pytest.mark.parametrize(
    ("owner", "step"),
    [(governing, "retire"), (governing, "store_atomically"), (AuditLog, "open"), (AuditLog, "append")],
)
def test_power_cut_at_each_step_of_putting_the_old_log_aside(
    owner: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, end = start(tmp_path, FIRST)
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, cut)
        with pytest.raises(PowerCut):
            start(tmp_path, SECOND)
    first, _ = start(tmp_path, SECOND)
    assert (first.consortium, first.previous) == (SECOND.consortium, end)
    assert retired_leaves(tmp_path, first)


def test_retired_log_never_takes_anothers_place(tmp_path: Path) -> None:
    start(tmp_path, FIRST)
    retire(tmp_path)
    start(tmp_path, SECOND)
    retire(tmp_path)
    (tmp_path / "log.0.sqlite").unlink()
    kept = (tmp_path / "log.1.sqlite").read_bytes()
    start(tmp_path, FIRST)
    retire(tmp_path)
    assert (tmp_path / "log.1.sqlite").read_bytes() == kept
    assert (tmp_path / "log.2.sqlite").exists()


@pytest.mark.parametrize("leaves_behind", [None, b""])
def test_log_that_is_gone_is_not_begun_anew_as_if_nothing_had_been_spent(
    tmp_path: Path, leaves_behind: bytes | None
) -> None:
    start(tmp_path, FIRST)
    log = tmp_path / "log.sqlite"
    log.unlink()
    if leaves_behind is not None:
        log.write_bytes(leaves_behind)
    for _ in range(2):
        with pytest.raises(HardwareError) as lost:
            start(tmp_path, FIRST)
        assert lost.value.code == "audit.disk_lost"
