"""The updater's units: without a fault, exposed as little as they can be, and in step with what they start."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from agent.cli.main import app
from agent.core.config import UpdateSection
from agent.trust.channels import UPDATE_LABEL
from tests.simulators.stick import find_tool

PACKAGING = Path(__file__).parents[3] / "packaging"
UNITS = PACKAGING / "systemd"
SERVICE, STICK, TIMER = "seh-update.service", "seh-update-stick@sdb1.service", "seh-update.timer"
MOST_EXPOSED = {SERVICE: 10, STICK: 2}
"""Tenths; systemd's scale ends at 100."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the host's units, ours, and the payload's Python."""
    root = tmp_path_factory.mktemp("root")
    place = root / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", place, symlinks=True)
    for unit in (SERVICE, TIMER):
        shutil.copy(UNITS / unit, place / unit)
    shutil.copy(UNITS / "seh-update-stick@.service", place / STICK)
    program = root / "usr/bin/python3"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((find_tool("systemd-analyze"), *arguments), check=False, capture_output=True, text=True)


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", (UNITS / unit.replace("@sdb1", "@")).read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", [SERVICE, STICK, TIMER])
def test_systemd_finds_no_fault(installed: Path, unit: str) -> None:
    done = analyze("verify", f"--root={installed}", "--man=no", unit)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "seh-update" in line]) == (0, [])


@pytest.mark.parametrize("unit", MOST_EXPOSED)
def test_no_more_exposed_than_said(installed: Path, unit: str) -> None:
    arguments = ("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED[unit]}")
    done = analyze(*arguments, unit)
    assert done.returncode == 0, done.stdout


def test_they_start_what_there_is() -> None:
    (line,) = values(SERVICE, "ExecStart")
    *_, module, group, command, _, config = line.split()
    assert (module, group, command) == ("agent.cli", "update", "run")
    commands = get_command(app).commands["update"].commands  # type: ignore[attr-defined]
    assert command in commands
    (line,) = values(STICK, "ExecStart")
    assert line.split()[-2:] == ["agent.update.stick", config]


def test_they_see_what_the_configuration_s_defaults_name() -> None:
    defaults = UpdateSection()
    for unit in (SERVICE, STICK):
        assert values(unit, "StateDirectory") == [defaults.directory.name]
        bound = [value.removeprefix("-").rpartition(":")[2] for value in values(unit, "BindReadOnlyPaths")]
        assert {str(defaults.slots), str(defaults.slots_status), str(defaults.enrolment)} <= set(bound)
        assert str(defaults.root_file.parent) in bound
        assert "/var/lib/secur-e-health" not in bound
        assert values(unit, "User") == values(unit, "Group") == ["secur-e-health-update"]
    made = (PACKAGING / "tmpfiles.d/secur-e-health-update.conf").read_text()
    assert f"d {defaults.directory}/incoming 0755 secur-e-health-update" in made
    assert "u secur-e-health-update -" in (PACKAGING / "sysusers.d/secur-e-health-update.conf").read_text()


def test_the_updater_reaches_no_hardware_and_the_reader_no_network() -> None:
    assert values(SERVICE, "DeviceAllow") == []
    assert values(STICK, "DeviceAllow") == ["/dev/%I r"]
    assert values(STICK, "PrivateNetwork") == ["yes"]


def test_the_rule_starts_the_reader_by_its_label() -> None:
    rule = (PACKAGING / "udev/91-secur-e-health-update-stick.rules").read_text()
    assert f'ENV{{ID_FS_LABEL}}!="{UPDATE_LABEL}"' in rule
    assert 'ENV{SYSTEMD_WANTS}+="seh-update-stick@%k.service"' in rule
