"""Power that goes, and disks that fill up, at the n-th moment at which something is put on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class PowerCutError(BaseException):
    """The power went."""


class Moments:
    """Counts the moments at which a disk is written to, and strikes at one of them.

    Args:
        at: Which; None never.
        strike: What is raised there.
    """

    def __init__(self, at: int | None, strike: Callable[[], BaseException]) -> None:
        self.count = 0
        self._at = at
        self._strike = strike

    def pass_one(self) -> None:
        """One moment."""
        here, self.count = self.count, self.count + 1
        if self._at is not None and here >= self._at:
            raise self._strike()


@contextmanager
def struck(
    monkeypatch: pytest.MonkeyPatch, at: int | None, strike: Callable[[], BaseException] = PowerCutError
) -> Iterator[Moments]:
    """Strike at every moment from the `at`-th on: before each write, sync, rename, link and removal."""
    moments = Moments(at, strike)

    def before(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the call takes
            moments.pass_one()
            return call(*arguments, **named)

        return run

    with monkeypatch.context() as patch:
        for owner, name in (
            (os, "fsync"),
            (os, "write"),
            (os, "ftruncate"),
            (os, "link"),
            (Path, "symlink_to"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (Path, "write_bytes"),
            (Path, "write_text"),
        ):
            patch.setattr(owner, name, before(getattr(owner, name)))
        yield moments


def disk_full() -> OSError:
    """What a full disk answers."""
    return OSError(28, "No space left on device")
