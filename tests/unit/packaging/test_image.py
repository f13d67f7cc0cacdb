"""What makes an appliance of an installed Debian: nobody can log in, and only what is meant to can be written."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.simulators.stick import find_tool

IMAGE = Path(__file__).resolve().parents[3] / "packaging" / "image"
UNITS = "usr/lib/systemd/system"
CONFIGURATION = r"etc-secur\x2de\x2dhealth.mount"
"""As systemd wants `configuration.mount` to be called."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The least of an installed system, after `settle.sh`."""
    for place in (UNITS, "etc/systemd/system", "usr/lib/udev", "var/lib/dpkg", "usr/share/doc/bash", "tmp", "run"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "etc/shadow").write_text("root::19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n")
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (tmp_path / "usr/lib/os-release").write_text("ID=debian\n")
    su = tmp_path / "usr/su"
    su.touch()
    su.chmod(0o4755)
    (tmp_path / UNITS / "seh-screen.service").touch()
    shutil.copytree(IMAGE / "tree", tmp_path, dirs_exist_ok=True)
    subprocess.run([IMAGE / "settle.sh", tmp_path, "1.4.0"], check=True)
    return tmp_path


@pytest.mark.parametrize("unit", ["getty@", "serial-getty@", "console-getty", "debug-shell", "rescue", "autovt@"])
def test_no_console_has_a_login(tree: Path, unit: str) -> None:
    assert (tree / f"etc/systemd/system/{unit}.service").readlink() == Path("/dev/null")


def test_root_has_no_password_and_no_shell_and_nothing_becomes_root(tree: Path) -> None:
    assert (tree / "etc/shadow").read_text().startswith("root:!*:")
    assert (tree / "etc/passwd").read_text() == "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    assert not (tree / "usr/su").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    assert "systemctl --force reboot" in (tree / UNITS / "emergency.service.d/again.conf").read_text()


def test_the_screen_and_the_mounts_start_with_the_box(tree: Path) -> None:
    for target, unit in (
        ("multi-user.target.wants", "seh-screen.service"),
        ("local-fs.target.wants", "var.mount"),
        ("local-fs.target.wants", CONFIGURATION),
        ("boot-complete.target.requires", "seh-system-good.service"),
    ):
        assert (tree / UNITS / target / unit).resolve(strict=True) == tree / UNITS / unit


def test_var_begins_empty_and_the_version_is_the_image_s(tree: Path) -> None:
    assert list((tree / "var").iterdir()) == []
    assert "IMAGE_VERSION=1.4.0\n" in (tree / "usr/lib/os-release").read_text()


@pytest.mark.parametrize("unit", sorted(path.name for path in (IMAGE / "tree" / UNITS).glob("*.*") if path.is_file()))
def test_systemd_finds_no_fault_in_the_appliance_s_units(tmp_path: Path, unit: str) -> None:
    shutil.copytree("/usr/lib/systemd/system", tmp_path / UNITS, symlinks=True)
    shutil.copytree(IMAGE / "tree", tmp_path, dirs_exist_ok=True)
    if unit == "configuration.mount":
        unit = CONFIGURATION
        (tmp_path / UNITS / "configuration.mount").rename(tmp_path / UNITS / unit)
    for program in ("usr/lib/secur-e-health/bin/seh-slot", "bin/true"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).touch(mode=0o755)
    (tmp_path / UNITS / "systemd-cryptsetup@.service").write_text(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart=/bin/true\n"
    )
    done = subprocess.run(
        (find_tool("systemd-analyze"), "verify", f"--root={tmp_path}", "--man=no", unit),
        check=False,
        capture_output=True,
        text=True,
    )
    assert [line for line in done.stderr.splitlines() if unit in line] == []


def test_a_slot_that_started_well_gets_its_tries_again(tmp_path: Path) -> None:
    program = (IMAGE / "tree/usr/lib/secur-e-health/bin/seh-boot-rearm").read_text()
    entries = tmp_path / "EFI" / "Linux"
    entries.mkdir(parents=True)
    for name in ("seh-a.efi", "seh-b+0-3.efi"):
        (entries / name).touch()
    subprocess.run(["sh", "-c", program.replace("/efi", str(tmp_path))], check=True)
    assert sorted(path.name for path in entries.iterdir()) == ["seh-a+3.efi", "seh-b+0-3.efi"]


@pytest.mark.parametrize("script", [*sorted(IMAGE.glob("*.sh")), IMAGE / "initrd" / "init"], ids=lambda path: path.name)
def test_the_shell_reads_every_script(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
