"""What a process takes of a machine's memory, by proc_pid_status(5)."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(pid: int) -> int:
    """All that is resident. Of its libraries, that differs by megabytes with how the page cache came by them."""
    return _kib(pid, "VmRSS") << 10


def own_bytes(pid: int) -> int:
    """What no file stands behind: all that the process made, and pages of its libraries that it changed."""
    return _kib(pid, "RssAnon") << 10


def _kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values[field].removesuffix("kB"))
