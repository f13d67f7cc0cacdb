"""Packages as `make package` builds them, with a payload of one file, signed by a publisher of the test's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from agent.statements.release import Release, Version
from provisioning.releases.image import measure_image
from tests.simulators.releases import Publisher

BUILD = Path(__file__).resolve().parents[2] / "packaging" / "deb" / "build.sh"
BUILT_S = 1_800_000_000


def build_package(place: Path, version: str, publisher: Publisher) -> Path:
    """Build the package of a release.

    Args:
        place: Where everything is put.
        version: X.Y.Z.
        publisher: Signs the release; the package trusts it.

    Returns:
        The .deb.
    """
    return wrap_release(write_release(place / version, version, publisher), place, publisher)


def write_release(release: Path, version: str, publisher: Publisher) -> Path:
    """A release directory: app.raw, which holds nothing but its version, and its record."""
    content = release / "content"
    content.mkdir(parents=True)
    (content / "version").write_text(version)
    image = release / "app.raw"
    options = ("-noappend", "-quiet", "-no-progress", "-all-root")
    run("mksquashfs", str(content), str(image), *options)
    write_record(image, version, publisher)
    return release


def write_record(image: Path, version: str, publisher: Publisher) -> None:
    """The signed record of an image, beside it."""
    measured = measure_image(image)
    release = Release(
        version=Version.parse(version),
        epoch=0,
        image_sha256=measured.sha256,
        image_bytes=measured.length,
        root_hash=measured.root_hash,
        salt=measured.salt,
        commit="0" * 40,
        built_s=BUILT_S,
    )
    image.with_name("release.json").write_bytes(publisher.record(release))


def wrap_release(release: Path, place: Path, publisher: Publisher) -> Path:
    """The package around a release directory."""
    trust, out = place / "trust", place / "packages"
    trust.mkdir(exist_ok=True)
    (trust / "release-keys.json").write_bytes(publisher.keys_file)
    (trust / "release-root.json").write_text("{}")
    known = set(out.glob("*.deb"))
    run(str(BUILD), str(out), str(release), str(trust))
    (package,) = set(out.glob("*.deb")) - known
    return package


def run(*command: str, path: str = "/usr/sbin:/usr/bin:/sbin:/bin") -> str:
    """Run a command that must do well.

    Args:
        command: It and its arguments.
        path: Where programs are looked for.

    Returns:
        What it printed, of both streams.
    """
    environment = {"PATH": path, "SOURCE_DATE_EPOCH": str(BUILT_S), "HOME": os.environ.get("HOME", "/")}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(command)}: {result.stdout[-2000:]}"
    return result.stdout
