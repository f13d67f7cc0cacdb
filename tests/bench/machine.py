"""The package on a whole emulated machine, some ten times slower than a box: what a start costs, and what it takes.

Nothing here is held against a target in seconds; the peer of a start is the same machine without the package.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.table import Row, at_most
from tests.guest.appliance import TRIAL_LIMIT_S, Appliance, load_installed
from tests.guest.package import BROKEN, load_releases
from tests.guest.rig import Guest
from tests.guest.tree import Machine, load_machine

_PROCESSOR_S = "systemctl show --value -p CPUUsageNSec seh-agent.service"
_AGENT = "$(systemctl show --value -p MainPID seh-agent.service)"
_MEMORY_KIB = f"awk '/^Pss:/ {{print $2}}' /proc/{_AGENT}/smaps_rollup"


def rows() -> Iterator[Row]:
    """A cold start, a start of the agent alone, its memory, and a release that breaks."""
    machine, releases = load_machine(), load_releases()
    installed = load_installed(machine, releases)
    place = Path(tempfile.mkdtemp(prefix="seh-b-"))
    try:
        bare_s = _bare_start_s(machine, place / "bare")
        with Guest.unpack(machine, place / "box", stored=installed) as guest:
            box = Appliance(guest)
            begin_s = time.monotonic()
            guest.start()
            box.wait_until_ready()
            ready_s = time.monotonic() - begin_s
            yield Row(
                "emulated machine: switched on -> READY", ready_s, "s", peer=bare_s, peer_name="without the package"
            )
            begin_s = time.monotonic()
            guest.run("systemctl restart seh-agent.service", limit_s=TRIAL_LIMIT_S)
            yield Row("emulated machine: agent restarted -> READY", time.monotonic() - begin_s, "s")
            yield Row("emulated machine: processor's time until READY", int(guest.run(_PROCESSOR_S)) / 1e9, "s")
            memory = int(guest.run(_MEMORY_KIB)) * 1024 / 1e6
            yield at_most("idle memory of the agent in the machine (PSS)", memory, "MB", 120)
            box.bring_release(releases.release(BROKEN), BROKEN)
            box.ask_for(BROKEN)
            box.wait_for_slots(current="b", phase="trial")
            took_s = box.wait_for_slots(current="a", failed=BROKEN)
            yield Row("emulated machine: broken release started -> old one chosen", took_s, "s")
    finally:
        shutil.rmtree(place)


def _bare_start_s(machine: Machine, place: Path) -> float:
    with Guest.unpack(machine, place) as guest:
        begin_s = time.monotonic()
        guest.start()
        guest.wait_for("systemctl is-system-running | grep -qx -e running -e degraded", limit_s=TRIAL_LIMIT_S)
        return time.monotonic() - begin_s
