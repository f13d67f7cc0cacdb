"""Files that outlive a power cut: whole or not at all, and on the disk before the call returns."""

from __future__ import annotations

import os
from pathlib import Path


def store_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that, whatever happens, `path` holds the old content or the new, whole.

    Args:
        path: In a directory that exists, and to which nobody else writes.
        data: The new content.
        mode: Who may read it, where it is new.

    Raises:
        OSError: The disk does not take it.
    """
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def show(path: Path, data: bytes) -> None:
    """Replace a file in memory (/run) that other users read, whatever the process's umask; nothing is synced.

    Args:
        path: In a directory that exists, and to which nobody else writes.
        data: The new content.

    Raises:
        OSError: The file system does not take it.
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.chmod(0o644)
    partial.replace(path)


def sync_directory(directory: Path) -> None:
    """Put on the disk which names a directory holds."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
