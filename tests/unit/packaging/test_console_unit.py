"""The console's unit: as little exposed as the others, on loopback, and blind to the agent's secrets."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agent.core.config import ConsoleSection
from tests.simulators.worker_door import FENCED
from tests.unit.packaging.test_units import AGENT, UNITS, analyze, installed, settings, words

__all__ = ["installed"]
CONSOLE = "seh-console.service"
MOST_EXPOSED = 9
"""Tenths; systemd's scale ends at 100."""
STATE = "/var/lib/secur-e-health"


def test_it_is_no_more_exposed_than_said_and_without_a_fault(installed: Path) -> None:
    done = analyze("security", "--offline=yes", f"--root={installed}", f"--threshold={MOST_EXPOSED}", CONSOLE)
    assert done.returncode == 0, done.stdout
    verified = analyze("verify", f"--root={installed}", "--man=no", CONSOLE)
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if "seh-" in line]) == (0, [])


def test_it_runs_from_the_agent_s_slot_and_goes_with_the_agent() -> None:
    for name in ("RootImage", "RootVerity", "RootHash", "User", "Group"):
        assert settings(CONSOLE, name) == settings(AGENT, name)
    assert settings(CONSOLE, "PartOf") == [AGENT]
    assert AGENT in words(CONSOLE, "After")
    assert "[Install]" in (UNITS / CONSOLE).read_text(encoding="utf-8")


def test_it_sees_none_of_the_agent_s_secrets_and_writes_nothing() -> None:
    hidden = {f"{STATE}/{name}" for name in ("vault", "enrolment", "rounds", "audit", "approvals", "stewards")}
    assert hidden <= words(CONSOLE, "InaccessiblePaths")
    assert STATE in words(CONSOLE, "BindReadOnlyPaths")
    for name in ("BindPaths", "StateDirectory", "ReadWritePaths", "SupplementaryGroups", "DeviceAllow"):
        assert settings(CONSOLE, name) == []


def test_it_is_reached_from_this_host_alone_at_its_own_port() -> None:
    port = ConsoleSection().address.rpartition(":")[2]
    assert ConsoleSection().on_loopback
    assert (settings(CONSOLE, "IPAddressDeny"), settings(CONSOLE, "IPAddressAllow")) == (["any"], ["localhost"])
    assert (settings(CONSOLE, "SocketBindDeny"), settings(CONSOLE, "SocketBindAllow")) == (["any"], [f"tcp:{port}"])


def test_every_directory_that_it_is_shown_can_be_mounted() -> None:
    points = (UNITS.parent / "payload/mount-points.txt").read_text(encoding="utf-8")
    for path in words(CONSOLE, "BindReadOnlyPaths"):
        assert path.startswith("/run/") or re.search(rf"^d {path}$", points, re.MULTILINE), path


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        ("socket.create_server(('127.0.0.1', 0)).close()", "done"),
        ("socket.socket(socket.AF_UNIX).close()", "done"),
        ("socket.socket(socket.AF_PACKET)", "EAFNOSUPPORT"),
        ("mmap.mmap(-1, 4096, prot=7)", "EACCES"),
        ("os.chown('/dev/null', 0, 0)", "EPERM"),
        ("_call(310)", "EPERM"),  # process_vm_readv on x86-64
        ("_call(101)", "EPERM"),  # ptrace
    ],
)
def test_the_kernel_refuses_what_the_unit_forbids(attempt: str, outcome: str) -> None:
    code = f"""
    import ctypes, errno, mmap, os, socket
    def _call(number):
        library = ctypes.CDLL(None, use_errno=True)
        if library.syscall(number, 0, 0, 0, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "refused")
    try:
        {attempt}
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])
    """
    command = [sys.executable, "-P", str(FENCED), str(UNITS / CONSOLE), sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == outcome
