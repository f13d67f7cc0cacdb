"""Processes and all that they started: found together, ended together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import psutil


def descendants(pid: int) -> list[psutil.Process]:
    """All that a process has started, and what those have; empty where it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_all(members: Sequence[psutil.Process], *, limit_s: float) -> None:
    """Kill those that still run, and wait for their end; one that ends by itself in this moment is as welcome."""
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=limit_s)
