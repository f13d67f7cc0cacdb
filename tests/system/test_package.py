"""The package as Debian's own tools see it: clean, complete, the same bytes each time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.simulators.packages import build_package, run, wrap_release, write_release
from tests.simulators.releases import Publisher

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
VERSION = "1.4.0"


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, publisher: Publisher) -> Path:
    return build_package(tmp_path_factory.mktemp("package"), VERSION, publisher)


@pytest.mark.slow
def test_debians_policy_finds_nothing(package: Path) -> None:
    assert run("lintian", "--no-cfg", "--allow-root", "--fail-on", "error,warning", str(package)) == ""


@pytest.mark.slow
def test_the_same_release_gives_the_same_package(tmp_path: Path, publisher: Publisher) -> None:
    release = write_release(tmp_path / "release", VERSION, publisher)
    first, second = (tmp_path / name for name in ("first", "second"))
    for place in (first, second):
        place.mkdir()
    one = wrap_release(release, first, publisher)
    for file in release.iterdir():
        file.touch()  # as in another checkout, on another day
    assert one.read_bytes() == wrap_release(release, second, publisher).read_bytes()


def test_a_package_holds_all_that_a_box_needs_of_us(package: Path) -> None:
    held = {line.split()[-1].strip("./") for line in run("dpkg-deb", "--contents", str(package)).splitlines()}
    units = {f"usr/lib/systemd/system/{unit.name}" for unit in (PACKAGING / "systemd").glob("seh-*")}
    assert units
    assert units <= held
    share = "usr/share/secur-e-health"
    trust = {f"{share}/{name}" for name in ("release-keys.json", "release-root.json")}
    payload = {f"{share}/payload/{name}" for name in ("app.raw", "release.json")}
    assert held >= trust | payload | {"usr/bin/seh-agent", "usr/lib/secur-e-health/bin/seh-slot"}
    assert "usr/lib/udev/rules.d/70-secur-e-health-usb.rules" not in held, "would take a hospital's keyboards away"


def test_what_a_unit_starts_of_ours_is_in_package_or_payload(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "--extract", str(package), str(tmp_path))
    payload = (PACKAGING / "payload" / "build.sh").read_text()
    for unit in (PACKAGING / "systemd").glob("*.service"):
        parts = [unit, *unit.with_name(f"{unit.name}.d").glob("*.conf")]
        text = "\n".join(part.read_text() for part in parts)
        for program in re.findall(r"^Exec\w+=[-+!:]*(/usr/lib/secur-e-health/\S+)", text, re.MULTILINE):
            there = (
                f"$tree{program}" in payload if "\nRootImage=" in text else (tmp_path / program.lstrip("/")).is_file()
            )
            assert there, f"{unit.name} starts {program}, which is nowhere"


def test_an_older_release_is_refused_before_anything_changes(package: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "--control", str(package), str(tmp_path))
    refused = subprocess.run(
        [tmp_path / "preinst", "upgrade", "1.10.0"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin"},
    )
    assert refused.returncode == 1
    assert f"this box has release 1.10.0; {VERSION} is older and was not installed" in refused.stderr
    run(str(tmp_path / "preinst"), "upgrade", "1.3.9")


def test_a_unit_that_wants_a_mount_point_the_payload_lacks_is_found_at_build(tmp_path: Path) -> None:
    unit, tree = tmp_path / "seh-new.service", tmp_path / "tree"
    tree.mkdir()
    unit.write_text("[Service]\nRootImage=/x\nStateDirectory=new\nBindReadOnlyPaths=-/etc/new:/opt/new /run/y\n")
    check = [str(PACKAGING / "payload" / "check-mounts.sh"), str(tree), str(unit)]
    found = subprocess.run(check, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert [line for line in ("/var/lib/new", "/opt/new", "/run/y") if line in found.stderr] == [
        "/var/lib/new",
        "/opt/new",
    ]
    for place in ("var/lib/new", "opt/new"):
        (tree / place).mkdir(parents=True)
    run(*check)


def test_every_tool_that_packaging_calls_is_installed() -> None:
    assert all(
        shutil.which(tool, path="/usr/sbin:/usr/bin") for tool in ("mmdebstrap", "mksquashfs", "lintian", "zstd")
    )
