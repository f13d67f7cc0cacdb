"""Attacks on a box's shell: what its units, rules and wrapper would let in or out."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from agent.cli.screen import draw, view_of
from agent.service.state import AgentStatus

PACKAGING = Path(__file__).parents[2] / "packaging"


def what_it_sees(tmp_path: Path, command: str) -> set[str]:
    """Places of the machine that `seh-agent COMMAND` is shown, with everything around the wrapper played."""
    script = (PACKAGING / "deb/seh-agent").read_text()
    for path in ("/var/lib/secur-e-health-slots/current", "/run/systemd/system", "/run/seh-agent.XXXXXX"):
        script = script.replace(path, f"{tmp_path}{path}")
    slot = tmp_path / "var/lib/secur-e-health-slots/current"
    tools = tmp_path / "bin"
    for directory in (slot, tools, tmp_path / "run/systemd/system"):
        directory.mkdir(parents=True)
    (slot / "app.raw").touch()
    (slot / "app.roothash").write_text("ab" * 32)
    for name, text in {"id": "echo 0", "systemd-run": 'printf "%s\\n" "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ("/bin/sh", "-c", script, "seh-agent", command, "status"),
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )
    bound = re.findall(r"^--property=Bind(?:ReadOnly)?Paths=(.*)$", done.stdout, re.MULTILINE)
    return {place.lstrip("-").partition(":")[0] for line in bound for place in line.split()}


@pytest.mark.parametrize(("command", "shown"), [("key", True), ("update", False)])
def test_a_broken_into_updater_reads_no_record_of_the_hospital(tmp_path: Path, command: str, shown: bool) -> None:
    assert ("/srv/secur-e-health" in what_it_sees(tmp_path, command)) is shown


def authorised(**device: str) -> str:
    """The `authorized` of a USB interface for which udev has gone through the appliance's rules, as udev(7) says.

    Args:
        device: Attributes of the interface, as the kernel has made it.
    """
    facts = {
        "ACTION": "add",
        "SUBSYSTEM": "usb",
        "SUBSYSTEMS": "usb",
        "KERNEL": "1-2:1.0",
        "ENV{DEVTYPE}": "usb_interface",
    }
    facts |= {f"ATTR{{{name}}}": value for name, value in device.items()}
    rules = (PACKAGING / "udev/70-secur-e-health-usb.rules").read_text()
    wanted = ""
    for line in (line for line in rules.splitlines() if line and not line.startswith("#")):
        terms = re.findall(r'([A-Z]+(?:\{\w+\})?)(==|!=|\+=|=)"([^"]*)"', line)
        if wanted and ("LABEL", "=", wanted) not in terms:
            continue
        tests = [(key, operator == "==", value) for key, operator, value in terms if operator in {"==", "!="}]
        if all(fnmatch(facts.get(key, ""), value) is expected for key, expected, value in tests):
            facts |= {key: value for key, operator, value in terms if operator == "="}
            wanted = next((value for key, operator, value in terms if (key, operator) == ("GOTO", "=")), "")
    return facts["ATTR{authorized}"]


@pytest.mark.parametrize("before", ["0", "1"], ids=["plugged in later", "there when the machine starts"])
@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (("03", "01", "01"), "0"),  # a keyboard
        (("02", "06", "00"), "0"),  # a network card
        (("ff", "ff", "ff"), "0"),  # what only its own driver knows
        (("08", "06", "50"), "1"),  # a stick
        (("0b", "00", "00"), "1"),  # a card reader
        (("03", "00", "00"), "1"),  # a security key
    ],
)
def test_a_device_of_another_kind_gets_no_driver_whenever_it_was_plugged_in(
    kind: tuple[str, str, str], before: str, after: str
) -> None:
    usb_class, subclass, protocol = kind
    found = authorised(
        bInterfaceClass=usb_class, bInterfaceSubClass=subclass, bInterfaceProtocol=protocol, authorized=before
    )
    assert found == after


@pytest.mark.parametrize("size", [(80, 25), (80, 12), (240, 67)])
def test_a_broken_into_agent_writes_no_commands_to_the_screen_s_terminal(size: tuple[int, int]) -> None:
    command = "\x1b]52;c;cm0=\x07\x1b[2J\x9b6n"
    status = AgentStatus(
        command,
        sentence=command,
        next_step=command,
        session=command,
        session_sentence=command,
        site=command,
        notice=command,
        version=command,
        box=command,
        box_words=command,
        phone_address=command,
        phone_code=command,
    )
    lines = draw(view_of(status, [command], command), *size)
    assert "".join(lines).isprintable()
