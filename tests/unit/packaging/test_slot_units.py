"""The slot tool's units: without a fault, exposed as little as root can be, and in step with the tool and the agent."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.update import tool
from agent.update.handover import READY_FILE
from agent.update.state import TRIES
from agent.update.trial import Limits
from tests.simulators.stick import find_tool

PACKAGING = Path(__file__).parents[3] / "packaging"
UNITS = PACKAGING / "systemd"
MOST_EXPOSED = {"activate": 5, "install": 9, "confirm": 9, "rollback": 5}
"""Tenths; systemd's scale ends at 100. They are root, as the slots are root's."""
COMMANDS = {"activate": "activate", "install": "install", "confirm": "confirm", "rollback": "fail"}
STARTED = [f"seh-{name}.service" for name in MOST_EXPOSED] + ["seh-install.path", "seh-confirm.timer"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the host's units, ours, and the slot tool."""
    root = tmp_path_factory.mktemp("root")
    place = root / "usr/lib/systemd/system"
    shutil.copytree("/usr/lib/systemd/system", place, symlinks=True)
    for unit in STARTED:
        shutil.copy(UNITS / unit, place / unit)
    program = root / "usr/lib/secur-e-health/bin/seh-slot"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    return root


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((find_tool("systemd-analyze"), *arguments), check=False, capture_output=True, text=True)


def setting(unit: str, name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("unit", STARTED)
def test_systemd_finds_no_fault(installed: Path, unit: str) -> None:
    done = analyze("verify", f"--root={installed}", "--man=no", unit)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "seh-" in line]) == (0, [])


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_no_more_exposed_than_said(installed: Path, name: str) -> None:
    arguments = ("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED[name]}")
    done = analyze(*arguments, f"seh-{name}.service")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_they_run_commands_that_there_are(name: str) -> None:
    unit = f"seh-{name}.service"
    program, command = setting(unit, "ExecStart").split()
    assert program == "/usr/lib/secur-e-health/bin/seh-slot"
    assert tool._parser().parse_args([command]).command.__name__ == f"_{COMMANDS[name]}"
    if name != "activate":
        # Nothing to be done is no failure; but where nothing may run, nothing is started.
        assert setting(unit, "SuccessExitStatus") == str(tool.NOTHING)


@pytest.mark.parametrize("name", COMMANDS)
def test_they_can_write_where_the_tool_writes_and_not_where_the_agent_does(name: str) -> None:
    paths = setting(f"seh-{name}.service", "ReadWritePaths").split()
    assert {f"/{tool.SLOTS}", f"/{tool.VOLATILE}"} <= set(paths)
    assert (f"/{tool.INCOMING}" in paths) == (name == "install")
    made = (PACKAGING / "tmpfiles.d/secur-e-health-slots.conf").read_text()
    for path in (tool.SLOTS, tool.VOLATILE):
        assert f"d /{path} 0755 root root -\n" in made
    assert "-/var/lib/secur-e-health" in setting(f"seh-{name}.service", "InaccessiblePaths").split()


def test_they_answer_to_the_names_that_others_ask_for() -> None:
    assert setting("seh-install.path", "PathExists") == f"/{tool.INCOMING / READY_FILE}"
    assert (UNITS / tool.TIMER_UNIT).exists()
    assert (UNITS / tool.AGENT_UNIT).exists()
    assert "seh-rollback.service" in setting(tool.AGENT_UNIT, "OnFailure")


def test_a_start_of_the_agent_is_never_refused_for_being_one_too_many() -> None:
    assert setting("seh-activate.service", "StartLimitIntervalSec") == "0"


def test_a_broken_release_is_given_up_within_half_a_minute() -> None:
    # One that ends at its start: each try is a start of a second or two and a pause; the next one is the old release.
    pause_s = int(setting(tool.AGENT_UNIT, "RestartSec"))
    assert (TRIES + 1) * (2 + pause_s) <= 30
    # One that never becomes ready: judged at the timer's next tick.
    tick_s = int(setting(tool.TIMER_UNIT, "OnUnitInactiveSec").removesuffix("s"))
    assert Limits().ready_s + tick_s + 2 + pause_s <= 30
