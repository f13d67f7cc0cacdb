"""The appliance's package, a newer release and a broken one, from the sources as they are (`build/guest/`)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.trust.channels import delta_name
from tests.guest.tree import BUILD, directory_image
from tests.simulators.packages import run, wrap_release, write_record
from tests.simulators.releases import Publisher
from tests.simulators.stick import find_tool

SOURCE = Path(__file__).resolve().parents[2]
OLD, NEW, BROKEN = "1.0.0", "1.1.0", "1.2.0"
_INPUTS = ("agent", "packaging", "pyproject.toml", "constraints.txt", "tests/guest/package.py")
_COPIED = ("agent", "packaging", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
# At once: a guest so slow does not fail five times a minute otherwise.
_BREAKS_IN = "agent/cli/__init__.py"
_BREAK = "\nraise RuntimeError('a broken release')\n"


@dataclass(frozen=True, slots=True)
class Releases:
    """What was built.

    Args:
        directory: Where it lies.
    """

    directory: Path

    @property
    def package(self) -> Path:
        """A disk image that holds the .deb of the old release."""
        return self.directory / "package.img"

    def release(self, version: str) -> Path:
        """A disk image that holds a release: app.raw and release.json."""
        return self.directory / f"{version}.img"

    @property
    def record(self) -> Path:
        """The record of the new release."""
        return self.directory / "release.json"

    @property
    def delta(self) -> Path:
        """What makes the new release of the old one."""
        return self.directory / delta_name(OLD)


def load_releases() -> Releases:
    """Package and releases, built where they are not there yet: some minutes, the libraries being downloaded once."""
    releases = Releases(BUILD / f"r-{_key()}")
    if not releases.directory.exists():
        partial = releases.directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _build(partial)
        partial.rename(releases.directory)
    return releases


def _key() -> str:
    digest = hashlib.sha256()
    for name in _INPUTS:
        place = SOURCE / name
        for file in sorted([place] if place.is_file() else place.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(SOURCE)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(place: Path) -> None:
    publisher = Publisher()
    with tempfile.TemporaryDirectory() as directory:
        sources = _copy_sources(Path(directory))  # all three of the same ones, whatever is written meanwhile
        for version in (OLD, NEW):
            _build_release(sources, place / version, version, publisher)
        module = sources / _BREAKS_IN
        module.write_text(module.read_text() + _BREAK)
        _build_release(sources, place / BROKEN, BROKEN, publisher)
    package = wrap_release(place / OLD, place, publisher)
    made = Releases(place)
    shutil.copyfile(place / NEW / "release.json", made.record)
    images = (f"--patch-from={place / OLD / 'app.raw'}", str(place / NEW / "app.raw"))
    run(find_tool("zstd"), "-q", "-1", "--long=31", *images, "-o", str(made.delta))
    shutil.rmtree(place / OLD)
    directory_image(package.parent, place / "package.img", size=_size_for(package))
    shutil.rmtree(package.parent)
    for version in (NEW, BROKEN):
        directory_image(place / version, place / f"{version}.img", size=_size_for(place / version / "app.raw"))
        shutil.rmtree(place / version)


def _copy_sources(target: Path) -> Path:
    for name in _COPIED:
        if (SOURCE / name).is_dir():
            shutil.copytree(SOURCE / name, target / name)
        else:
            shutil.copyfile(SOURCE / name, target / name)
    for name in (".venv", "build"):
        (target / name).symlink_to(SOURCE / name)
    return target


def _build_release(source: Path, target: Path, version: str, publisher: Publisher) -> None:
    command = [str(source / "packaging/payload/build.sh"), str(target), version]
    quickly = os.environ | {"PAYLOAD_COMPRESSION": "1"}
    result = subprocess.run(command, env=quickly, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    shutil.rmtree(target / "parts", ignore_errors=True)
    write_record(target / "app.raw", version, publisher)


def _size_for(file: Path) -> str:
    return f"{(file.stat().st_size >> 20) * 5 // 4 + 32}M"
