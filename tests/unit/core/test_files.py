from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.core.files import store_atomically


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_is_written_whole_with_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    store_atomically(path, b"old", mode=mode)
    store_atomically(path, b"new", mode=mode)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", mode)
    assert list(tmp_path.iterdir()) == [path]


def test_a_power_cut_in_the_middle_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    store_atomically(path, b"old")

    def cut(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut)
        with pytest.raises(KeyboardInterrupt):
            store_atomically(path, b"new, and longer than the old")
    assert path.read_bytes() == b"old"
    store_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []

    def sync(descriptor: int) -> None:
        seen.append((Path(f"/proc/self/fd/{descriptor}").readlink(), path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    store_atomically(path, b"new")
    assert seen == [(path.with_name("file.partial"), False), (tmp_path, True)]
