"""The slot tool's units on a systemd that runs: an update by a file, a broken one undone unattended, and how fast.

The agent is played: a shell script that does what its release's version says. Nothing else is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.update.handover import Handover
from agent.update.window import parse_window
from tests.simulators.container import Container
from tests.simulators.packages import build_package, write_release
from tests.simulators.releases import Publisher

GOOD, NEWER, ENDING, HANGING, BLIND = "1.4.0", "1.5.0", "1.6.0", "1.7.0", "1.8.0"
ROLLED_BACK_WITHIN_S = 30
SLOTS, INCOMING = "/var/lib/secur-e-health-slots", "/var/lib/secur-e-health-update/incoming"
# As agent/service/health.py writes it, with the agent's modes; PAYLOAD says which release's script this is.
AGENT = f"""#!/bin/sh
version=$(cat /run/agent-release-$(sha256sum < {SLOTS}/current/app.raw | cut -c1-16))
echo "$version" >> /run/agent-starts
[ "$version" = {ENDING} ] && exit 1
[ "$version" = {HANGING} ] && exec sleep infinity
self_test=true
[ "$version" = {BLIND} ] && self_test=false
checks="{{\\"agent\\": true, \\"key\\": true, \\"superlink\\": true, \\"self_test\\": $self_test}}"
umask 077
echo "{{\\"version\\": \\"$version\\", \\"pid\\": $$, \\"checks\\": $checks}}" > "$RUNTIME_DIRECTORY/health.json"
systemd-notify --ready
exec sleep infinity
"""
UNIT = """[Unit]
Requires=seh-activate.service
After=seh-activate.service
OnFailure=seh-rollback.service
StartLimitIntervalSec=60
StartLimitBurst=5
[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/local/bin/agent
Restart=always
RestartSec=1
TimeoutStartSec=30
TimeoutStopSec=10
User=secur-e-health
RuntimeDirectory=secur-e-health/agent
RuntimeDirectoryMode=0755
[Install]
WantedBy=multi-user.target
"""
CONFIRM = "[Service]\nExecStart=\nExecStart=/usr/lib/secur-e-health/bin/seh-slot confirm --well-s 3\n"


@dataclass
class Box:
    """A container in which the package is installed."""

    inside: Container

    @property
    def status(self) -> dict[str, object]:
        code, text = self.inside.run("cat /run/secur-e-health/slots/status.json")
        return dict(json.loads(text)) if code == 0 else {}

    def ask(self, handover: Handover) -> None:
        """As the updater does."""
        run, place = self.inside.do, f"{INCOMING}/{handover.version}"
        if handover.action == "install":
            run(f"install -d {place}; cp /mnt/{handover.version}/app.raw /mnt/{handover.version}/release.json {place}")
            run(f"chown -R secur-e-health-update: {INCOMING}; chmod 700 {place}")
        run(f"echo '{handover.encode().decode().strip()}' > {INCOMING}/ready.new")
        run(f"mv {INCOMING}/ready.new {INCOMING}/ready")

    def wait_until(self, version: str, phase: str, limit_s: float) -> float:
        """Until the agent runs a release and the update stands there.

        Returns:
            How long it took, in seconds.
        """
        begin_s = time.monotonic()
        while True:
            state = self.status
            slot = state.get("active")
            runs = state["slots"][slot] if slot and isinstance(state["slots"], dict) else None
            started = self.inside.run("tail -n1 /run/agent-starts")[1].strip()
            up = self.inside.run("systemctl is-active seh-agent")[1].strip() == "active"
            if up and runs and (runs["version"], started, state["phase"]) == (version, version, phase):
                return time.monotonic() - begin_s
            log = "journalctl -n 60 --no-pager; systemctl status 'seh-*' --no-pager"
            assert time.monotonic() - begin_s < limit_s, f"{state} {started}\n{self.inside.run(log)[1]}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    publisher, place = Publisher(), tmp_path_factory.mktemp("shared")
    for version in (NEWER, ENDING, HANGING, BLIND):
        write_release(place / version, version, publisher)
    build_package(place, GOOD, publisher)
    (place / "agent").write_text(AGENT)
    (place / "unit").write_text(UNIT)
    (place / "confirm").write_text(CONFIRM)
    return place


@pytest.fixture
def box(shared: Path) -> Iterator[Box]:
    with Container(shared) as inside:
        inside.do(
            "install -m 755 /mnt/agent /usr/local/bin/agent; cp /mnt/unit /etc/systemd/system/seh-agent.service;"
            "install -m 666 /dev/null /run/agent-starts;"
            "install -D -m 644 /mnt/confirm /etc/systemd/system/seh-confirm.service.d/quick.conf;"
            "for v in /mnt/1.*; do echo ${v##*/} > /run/agent-release-$(sha256sum < $v/app.raw | cut -c1-16); done;"
            "dpkg -i /mnt/packages/*.deb"
        )
        inside.do(f"id secur-e-health-update; install -d -o secur-e-health-update {INCOMING}")
        box = Box(inside)
        box.wait_until(GOOD, "steady", 60)
        yield box


def test_a_release_goes_in_and_is_committed(box: Box) -> None:
    box.ask(Handover("install", NEWER))
    box.wait_until(NEWER, "trial", 60)
    box.wait_until(NEWER, "steady", 60)
    assert box.inside.run("systemctl is-active seh-confirm.timer")[1].strip() == "inactive"
    assert box.inside.run(f"ls {INCOMING}/ready")[0] != 0
    box.ask(Handover("rollback", GOOD))
    box.wait_until(GOOD, "steady", 60)
    assert box.status["failed"] == NEWER


@pytest.mark.parametrize("version", [ENDING, HANGING, BLIND])
def test_a_broken_release_is_undone_within_half_a_minute_unattended(box: Box, version: str) -> None:
    box.ask(Handover("install", version))
    while f"{version}\n" not in box.inside.run("cat /run/agent-starts")[1]:
        time.sleep(0.05)
    took_s = box.wait_until(GOOD, "steady", 120)
    print(f"{version}: back on {GOOD} after {took_s:.1f} s")  # noqa: T201
    assert (box.status["failed"], took_s <= ROLLED_BACK_WITHIN_S) == (version, True)


def test_a_release_waits_for_its_window(box: Box) -> None:
    hour = int(box.inside.do("date +%H"))
    window = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"
    box.ask(Handover("install", NEWER, parse_window(window)))
    box.wait_until(GOOD, "staged", 60)
    assert box.status["window"] == window
    assert box.inside.run("systemctl is-active seh-confirm.timer")[1].strip() == "active"


def test_an_agent_that_fails_without_a_trial_is_started_again(box: Box) -> None:
    for _ in range(6):
        box.inside.run("systemctl kill -s KILL seh-agent; sleep 0.1")
    box.wait_until(GOOD, "steady", 60)
