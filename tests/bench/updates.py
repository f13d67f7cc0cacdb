"""What an update costs a hospital's line: a release in which every module of ours changed, as a delta and whole."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from agent.update.delta import Base, apply_delta
from provisioning.releases.delta import make_delta
from tests.bench.table import Row, at_most

ROOT = Path(__file__).parents[2]
COPIED = ("agent", "packaging", "README.md", "LICENSE", "pyproject.toml", "constraints.txt")


def rows() -> Iterator[Row]:
    """Two releases' images, and the way from one to the other."""
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as directory:
        place = Path(directory)
        old, new = _build(place / "old", "1.0.0"), _build(place / "new", "1.0.1")
        begin_s = time.monotonic()
        make_delta(old, new, place / "delta")
        made_s = time.monotonic()
        digest = hashlib.sha256(new.read_bytes()).hexdigest()
        whole = new.stat().st_size
        ready_s = time.monotonic()
        apply_delta(Base(old, old.stat().st_size), place / "delta", place / "again", sha256=digest, length=whole)
        applied_s = time.monotonic()
        yield Row("update: whole image", whole / 1e6, "MB")
        share = (place / "delta").stat().st_size / whole
        yield at_most("update size (delta over full), every module of ours changed", 100 * share, "%", 5.0)
        yield Row("update: delta made, at the maker's", made_s - begin_s, "s")
        yield Row("update: delta applied and checked, on the box", applied_s - ready_s, "s")


def _build(place: Path, version: str) -> Path:
    """A payload's image from a copy of this tree, in which every module differs from the other release's."""
    place.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    for module in (place / "agent").rglob("*.py"):
        with module.open("a", encoding="utf-8") as stream:
            stream.write(f"\nRELEASE_OF_THIS_MODULE = {version!r}\n")
    (place / ".venv").symlink_to(ROOT / ".venv")
    (place / "build").mkdir()
    # Debian's packages and the libraries are the same in both.
    (ROOT / "build" / "cache").mkdir(exist_ok=True)
    (place / "build" / "cache").symlink_to(ROOT / "build" / "cache")
    subprocess.run((place / "packaging" / "payload" / "build.sh", place / "out", version), check=True)
    return place / "out" / "app.raw"
