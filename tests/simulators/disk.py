"""A disk that loses, when the power goes, what nobody waited for: unsynced contents block by block, names one by one.

What was synced stays. Of everything else, each block of a file and each name of a directory is on the disk or is not,
as the dice say: kernels write back whenever and in whichever order they like.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_BLOCK_BYTES = 4096

Entry = tuple[str, int | str]
"""("file", inode), ("link", target) or ("dir", inode)."""


@dataclass
class LossyDisk:
    """Remembers what of a directory is on the disk for good.

    Args:
        root: The directory; what is in it now is on the disk.
    """

    root: Path
    _contents: dict[int, bytes] = field(default_factory=dict)
    _names: dict[int, dict[str, Entry]] = field(default_factory=dict)
    _held: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """See what is synced."""
        self._settle()

        def sync(descriptor: int) -> None:
            # No real one: what it would keep is kept here, and hundreds of runs take seconds.
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_relative_to(self.root):
                self._keep(path)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", sync)
                yield
        finally:
            self._release()

    def lose_power(self, dice: random.Random) -> None:
        """Leave in the directory what the disk holds now."""
        after = self.root.with_name(self.root.name + ".after")
        self._rebuild(self.root.stat().st_ino, self.root, after, dice)
        shutil.rmtree(self.root)
        after.rename(self.root)
        self._release()
        self._settle()

    def _settle(self) -> None:
        self._contents, self._names = {}, {}
        for path in (self.root, *self.root.rglob("*")):
            if not path.is_symlink():
                self._keep(path)

    def _keep(self, path: Path) -> None:
        inode = path.stat().st_ino
        if inode not in self._held:
            # So that no other file gets its number.
            self._held[inode] = os.open(path, os.O_PATH)
        if path.is_dir():
            self._names[inode] = _listing(path)
        else:
            self._contents[inode] = path.read_bytes()

    def _release(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held = {}

    def _rebuild(self, inode: int, now: Path | None, after: Path, dice: random.Random) -> None:
        after.mkdir()
        old, new = self._names.get(inode, {}), _listing(now) if now else {}
        for name in sorted(old.keys() | new.keys()):
            entry = dice.choice((old.get(name), new.get(name)))
            if entry is not None:
                self._place(entry, now / name if now and entry == new.get(name) else None, after / name, dice)

    def _place(self, entry: Entry, now: Path | None, after: Path, dice: random.Random) -> None:
        kind, value = entry
        if isinstance(value, str):
            after.symlink_to(value)
        elif kind == "dir":
            self._rebuild(value, now, after, dice)
        else:
            after.write_bytes(mixed(self._contents.get(value, b""), now.read_bytes() if now else None, dice))


def _listing(directory: Path) -> dict[str, Entry]:
    return {path.name: _entry(path) for path in directory.iterdir()}


def _entry(path: Path) -> Entry:
    if path.is_symlink():
        return "link", str(path.readlink())
    return "dir" if path.is_dir() else "file", path.stat().st_ino


def mixed(old: bytes, new: bytes | None, dice: random.Random, *, block_bytes: int = _BLOCK_BYTES) -> bytes:
    """A file of which each block is the old one or the new one, as the dice say."""
    if new is None or new == old:
        return old
    length = dice.choice((len(old), len(new)))
    mixed = b"".join(
        dice.choice((old, new))[start : start + block_bytes].ljust(block_bytes, b"\0")
        for start in range(0, length, block_bytes)
    )
    return mixed[:length]
