"""The units of the operator's hosts: systemd finds no fault with them, and they name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.core.ids import IDENTIFIER_PATTERN
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.opening import CREDENTIAL_NAME
from provisioning.witness.settings import SETTINGS_NAME
from tests.simulators.stick import find_tool

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "packaging" / "operator"
UNITS = sorted(path.name for path in OPERATOR.glob("*.service"))
MOST_EXPOSED = 12
"""Tenths; systemd's scale ends at 100. They serve a network, so they cannot be without one."""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A tree that holds the units and the program that they start."""
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    for name in UNITS:
        shutil.copy(OPERATOR / name, tmp_path / "usr/lib/systemd/system" / name)
    program = tmp_path / "usr/lib/secur-e-health/bin/seh-provision"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for target in ("network-online", "time-sync", "multi-user", "sysinit", "basic", "shutdown"):
        (tmp_path / f"usr/lib/systemd/system/{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((find_tool("systemd-analyze"), *arguments), check=False, capture_output=True, text=True)


def instance(name: str) -> str:
    return name.replace("@.", "@consortium-a.")


def test_there_is_one_for_each_server() -> None:
    assert [f"seh-{server}@.service" for server in ("cosigner", "registrar", "superlink", "witness")] == UNITS


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault(installed: Path, name: str) -> None:
    done = analyze("verify", f"--root={installed}", "--man=no", instance(name))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "seh-" in line]) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_exposed_as_little_as_a_server_can_be(installed: Path, name: str) -> None:
    arguments = ("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED}")
    done = analyze(*arguments, instance(name))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", UNITS)
def test_names_files_and_commands_that_there_are(name: str) -> None:
    unit = (OPERATOR / name).read_text()
    layout = AuthorityLayout(Path("/var/lib/secur-e-health-authority/%i"))
    (command,) = re.findall(r"^ExecStart=/usr/lib/secur-e-health/bin/seh-provision (.*)$", unit, re.MULTILINE)
    group, action, option, value = command.split()
    assert (group, action) == (name.split("@", maxsplit=1)[0].removeprefix("seh-"), "run")
    expected = {
        "registrar": ("--config", str(layout.registrar_settings)),
        "cosigner": ("--config", str(layout.cosigner_settings)),
        "superlink": ("--directory", str(layout.path)),
        "witness": ("--config", str(layout.path / SETTINGS_NAME)),
    }
    assert (option, value) == expected[group]
    credentials = re.findall(r"^LoadCredentialEncrypted=(\S+):", unit, re.MULTILINE)
    assert credentials == ([] if group == "superlink" else [CREDENTIAL_NAME])
    assert re.fullmatch(IDENTIFIER_PATTERN, "consortium-a")  # an instance needs no escaping
    (user,) = re.findall(r"^User=(\S+)$", unit, re.MULTILINE)
    assert f"u {user} " in (OPERATOR / "secur-e-health-authority.sysusers.conf").read_text()
