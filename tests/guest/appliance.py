"""A guest with the appliance's package in it: what its agent says, what its slots hold, what is asked of it."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.update.handover import Handover
from tests.guest.package import Releases
from tests.guest.rig import BOOTED, HOST, Guest
from tests.guest.tree import BUILD, Machine

INSTALLED = "installed"
"""The snapshot of `load_installed`."""
STATE = "/var/lib/secur-e-health"
SLOTS = "/var/lib/secur-e-health-slots"
INCOMING = "/var/lib/secur-e-health-update/incoming"
SHARE = "/usr/share/secur-e-health"
HEALTH = "/run/secur-e-health/agent/health.json"
SLOT_TOOL = "/usr/lib/secur-e-health/bin/seh-slot"
READY_LIMIT_S = 600.0
TRIAL_LIMIT_S = 1500.0
_CONFIRM = f"{SLOT_TOOL} confirm --ready-s 600 --well-s 5 --deadline-s 1200"
# The guest is some ten times slower than a box; what is promised in seconds is not asked of it.
PATIENCE = {
    "seh-agent.service": "[Service]\nTimeoutStartSec=600\nWatchdogSec=600",
    "seh-enrol-stick@.service": "[Service]\nTimeoutStartSec=180",
    "seh-confirm.service": f"[Service]\nExecStart=\nExecStart={_CONFIRM}",
    # Every five seconds would leave the agent no processor to start on.
    "seh-confirm.timer": "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nOnUnitInactiveSec=60s",
}


@dataclass(frozen=True, slots=True)
class Appliance:
    """The appliance in a guest.

    Args:
        guest: Where.
    """

    guest: Guest

    def install(self, releases: Releases) -> float:
        """Install the package of the old release; returns how many seconds that took, the copying in apart."""
        for unit, lines in PATIENCE.items():
            self.guest.write(f"/etc/systemd/system/{unit}.d/guest.conf", f"{lines}\n".encode())
        self.guest.bring(releases.package, "/root/package")
        begin = time.monotonic()
        self.guest.run("DEBIAN_FRONTEND=noninteractive dpkg -i /root/package/*.deb", limit_s=600)
        took_s = time.monotonic() - begin
        self.guest.run("rm -rf /root/package && udevadm settle")
        return took_s

    def reach(self, ports: tuple[int, ...]) -> None:
        """Have ports of the host's loopback be ports of the guest's: certificates name the loopback."""
        for port in ports:
            unit = f"/etc/systemd/system/host-{port}"
            self.guest.write(f"{unit}.socket", f"[Socket]\nListenStream=127.0.0.1:{port}\n".encode())
            proxy = f"[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd {HOST}:{port}\n"
            self.guest.write(f"{unit}.service", proxy.encode())
            wanted = "/etc/systemd/system/sockets.target.wants"
            self.guest.run(f"mkdir -p {wanted} && ln -sf {unit}.socket {wanted}/")
            self.guest.run(f"systemctl daemon-reload && systemctl start host-{port}.socket")

    def preset(self, root_digest: str) -> None:
        """Have the box be one of an image that is made for one consortium."""
        self.guest.write(f"{SHARE}/consortium.json", json.dumps({"root_digest": root_digest}).encode())

    def wait_until_ready(self, *, limit_s: float = READY_LIMIT_S) -> float:
        """Until the agent told its service manager so."""
        return self.guest.wait_for("systemctl is-active --quiet seh-agent.service", limit_s=limit_s)

    def wait_for_link(self, link: str, *, limit_s: float = READY_LIMIT_S) -> float:
        """Until the agent of a box that has never joined says so."""
        return self.guest.wait_for(f'grep -q \'"link": *"{link}"\' {STATE}/status.json', limit_s=limit_s)

    def wait_until_online(self, *, limit_s: float = READY_LIMIT_S) -> float:
        """Until this start of the agent has joined: what it says of itself lies in memory, and goes with it."""
        joined = f"grep -q '\"superlink\": *true' {HEALTH}"
        return self.guest.wait_for(joined, limit_s=limit_s)

    def wait_for_slots(self, limit_s: float = TRIAL_LIMIT_S, **wanted: object) -> float:
        """Until `seh-slot status` says so: `phase="steady"`."""
        begin = time.monotonic()
        while True:
            status = self.slots()
            if all(status[name] == value for name, value in wanted.items()):
                return time.monotonic() - begin
            assert time.monotonic() - begin < limit_s, f"{wanted}: {status}\n{self.journal()}"
            time.sleep(1)

    def wait_until_settled(self) -> None:
        """Until nothing is asked of the slot tool any more, no release is on trial, and the chosen one has joined."""
        at_work = "systemctl is-active seh-install.service | grep -qx -e active -e activating"
        self.guest.wait_for(f"test ! -e {INCOMING}/ready && ! {at_work}", limit_s=TRIAL_LIMIT_S)
        self.wait_for_slots(phase="steady")
        joined = f'grep -q \'"superlink": *true\' {HEALTH} && grep -q \'"version": *"{self.version}"\' {HEALTH}'
        self.guest.wait_for(joined, limit_s=READY_LIMIT_S)

    def slots(self) -> dict[str, Any]:
        """What `seh-slot status` says."""
        status: dict[str, Any] = json.loads(self.guest.run(f"{SLOT_TOOL} status", limit_s=TRIAL_LIMIT_S))
        return status

    @property
    def version(self) -> str:
        """Of the release that `current` names."""
        status = self.slots()
        return str(status["slots"][status["current"]]["version"])

    def running_version(self) -> str:
        """As the agent says of itself."""
        return str(json.loads(self.guest.read(HEALTH))["version"])

    def bring_release(self, image: Path, version: str) -> None:
        """Put a release where the updater puts those that it has fetched."""
        self.guest.bring(image, f"{INCOMING}/{version}")

    def ask_for(self, version: str) -> None:
        """Ask the slot tool for a release, as the updater does: the last thing it writes."""
        request = Handover("install", version).encode().decode()
        self.guest.run(f"printf %s {shlex.quote(request)} > {INCOMING}/.ready && mv {INCOMING}/.ready {INCOMING}/ready")

    def change_over_at_any_hour(self, **settings: str) -> None:
        """Have the hospital's window be as good as the whole day.

        Args:
            settings: More of the configuration's [update].
        """
        lines = {"window": "00:00-23:59"} | settings
        section = "".join(f'{name} = "{value}"\n' for name, value in lines.items())
        self.guest.run(f"printf '%s' {shlex.quote(f'[update]{chr(10)}{section}')} >> /etc/secur-e-health/agent.toml")

    def identity(self) -> dict[str, str]:
        """What must outlive everything: where the box belongs, and its hospital's catalog."""
        record = json.loads(self.guest.read(f"{STATE}/enrolment/record.json"))
        catalog = self.guest.run("sha256sum /etc/secur-e-health/catalog.toml")
        return {"node": record["node"], "key": record["key_id"], "root": record["root_digest"], "catalog": catalog}

    def journal(self) -> str:
        """The end of what our units said."""
        return self.guest.run("journalctl -b --no-pager -o short-monotonic -u 'seh-*' | tail -60")


def load_installed(machine: Machine, releases: Releases) -> Path:
    """A stored guest with the package in it, its agent waiting to be enrolled; made where it is not there yet."""
    stored = BUILD / f"i-{releases.directory.name}-{machine.directory.name}"
    if not stored.exists():
        directory = Path(tempfile.mkdtemp(prefix="seh-g-"))
        with Guest.unpack(machine, directory) as guest:
            guest.start(BOOTED)
            box = Appliance(guest)
            print(f"installation of the package: {box.install(releases):.1f} s")  # noqa: T201 - measured
            box.wait_until_ready()
            box.wait_for_link("waiting for enrolment")
            guest.save(INSTALLED)
            guest.close()
            guest.store(stored)
        shutil.rmtree(directory)
    return stored
