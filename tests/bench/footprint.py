"""What an agent costs a box that has nothing to do, and what the demonstration costs a reader's patience."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from statistics import median

from rich.console import Console

from agent.service.state import load_status
from provisioning.authority.superlink import flower_environment
from tests.bench.table import Row, at_most
from tests.demo.cohorts import COHORTS
from tests.demo.found import Consortium, found_consortium
from tests.demo.joining import bring_all_in
from tests.demo.keys import why_no_tpm
from tests.demo.live import open_view
from tests.demo.parts import Part, stop_all
from tests.simulators.families import descendants
from tests.simulators.memory import own_bytes, resident_bytes
from tests.simulators.superlink import wait_until

STARTS = 5
SETTLE_S = 5.0
READY_LIMIT_S = 30.0
DEMO_LIMIT_S = 300.0
# The HTTP library loads trio where it is installed: here by the browser's driver, and on no box.
AGENT = (sys.executable, "-P", "-c", "import sys; sys.modules['trio'] = None; from agent.cli.main import main; main()")
"""`seh-agent`, as on a box."""


def rows() -> Iterator[Row]:
    """Idle agent, then the whole demonstration."""
    with tempfile.TemporaryDirectory() as directory, _consortium(Path(directory)) as consortium:
        starts = [_start_and_stop(consortium) for _ in range(STARTS)]
        yield at_most("agent: start to READY", median(starts), "s", 2.0)
        resident, own = _idle_memory_mb(consortium)
        yield at_most("agent: resident memory when idle", resident, "MB", 120.0)
        yield Row("agent: without its libraries' unchanged pages", own, "MB")
    yield at_most("demonstration: command to report, 4 hospitals, 20 rounds", _demo_seconds(), "s", 60.0)


@contextmanager
def _consortium(directory: Path) -> Iterator[Consortium]:
    """A consortium and one hospital whose box is enrolled; its agent does not run."""
    cohort = COHORTS["heart"]()
    hospitals = cohort.hospitals[:1]
    names = {str(hospital.site): hospital.name for hospital in hospitals}
    view = open_view(Console(file=StringIO()), title=cohort.title, hospitals=names, rounds=1)
    keys = ["software" if why_no_tpm() else "tpm"] * len(hospitals)
    consortium = found_consortium(directory, cohort, hospitals, rounds=1, keys=keys, now=datetime.now(UTC), view=view)
    try:
        consortium.start_agents(view)
        bring_all_in(consortium, view)
        stop_all([member.agent for member in consortium.members if member.agent is not None])
        yield consortium
    finally:
        consortium.close()


def _start_and_stop(consortium: Consortium) -> float:
    """Seconds from the start of the process until it tells its service manager that it is ready."""
    with _agent(consortium) as (_, seconds):
        return seconds


def _idle_memory_mb(consortium: Consortium) -> tuple[float, float]:
    """All that is resident, and what of it no file stands behind; of the agent and whatever it has started."""
    state = consortium.members[0].state_directory
    with _agent(consortium) as (agent, _):
        wait_until(lambda: (now := load_status(state)) is not None and now.link == "online", limit_s=90, what="joined")
        time.sleep(SETTLE_S)
        family = [agent.process.pid, *(member.pid for member in descendants(agent.process.pid))]
        return sum(resident_bytes(pid) for pid in family) / 1e6, sum(own_bytes(pid) for pid in family) / 1e6


@contextmanager
def _agent(consortium: Consortium) -> Iterator[tuple[Part, float]]:
    """An agent that has said READY=1 (sd_notify(3)), and how many seconds that took."""
    home = consortium.members[0].directory
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, tempfile.TemporaryDirectory() as place:
        manager.bind(f"{place}/notify")
        environment = flower_environment(consortium.directory / "home") | {"NOTIFY_SOCKET": f"{place}/notify"}
        begin_s = time.monotonic()
        command = [*AGENT, "run", "--config", str(home / "agent.toml")]
        agent = Part.start("agent", command, log=home / "agent.log", environment=environment)
        try:
            _await_ready(manager, agent)
            yield agent, time.monotonic() - begin_s
        finally:
            stop_all([agent])


def _await_ready(manager: socket.socket, agent: Part) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s:
        agent.check()
        if select.select([manager], [], [], 0.1)[0] and b"READY=1" in manager.recv(4096).split(b"\n"):
            return
    raise TimeoutError("the agent has not said READY=1")


def _demo_seconds() -> float:
    """Wall time of the command; its own output is shown only if it fails."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "tests.demo", "--output", output]
        begin_s = time.monotonic()
        done = subprocess.run(
            command, env=os.environ, capture_output=True, text=True, timeout=DEMO_LIMIT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the demonstration failed:\n{done.stdout}{done.stderr}")
        return time.monotonic() - begin_s
