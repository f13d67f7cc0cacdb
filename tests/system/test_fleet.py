"""A real agent and a real registrar: how the operator sees the box, and that heartbeats never trouble the agent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from agent.core.clock import SystemClock
from agent.core.version import software_version
from agent.enrolment.record import EnrolmentRecord
from agent.identity.key import open_key
from agent.service.trust import found_repository
from agent.trust.peers import node_name
from agent.trust.records import public_pem
from agent.trust.snapshot import Environment
from provisioning.authority.layout import AuthorityLayout
from provisioning.cli.fleet import load_fleet
from provisioning.registrar.fleet import FleetBox
from tests.simulators.hospital import RunningHospital
from tests.simulators.registrar_host import RegistrarHost
from tests.simulators.superlink import free_port, wait_until

pytestmark = pytest.mark.slow

SITE = "hospital-a"
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def page() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def host(tmp_path: Path, page: str) -> Iterator[RegistrarHost]:
    # Nobody listens at its SuperLink: the agent's link never comes up, and the operator shall see that.
    host = RegistrarHost.found(tmp_path / "authority", SITE, superlink=f"127.0.0.1:{free_port()}")
    settings = host.directory / "registrar.toml"
    settings.write_text(f'operator = "{page}"\n{settings.read_text()}', encoding="utf-8")
    with host:
        yield host


@pytest.fixture
def box(tmp_path: Path, host: RegistrarHost) -> Iterator[RunningHospital]:
    """On record, as its enrolment left it; it does not run yet."""
    with RunningHospital.bare(tmp_path / "box", site=SITE) as box:
        key = open_key(f"software:{box.directory / 'node.key'}")
        name, pem = node_name(key.key_id), public_pem(key.public_key())
        host.consortium.enrol(SITE, node=name, public_key=pem, link_key=public_pem(box.link))
        folder, digest = box.folder, host.root_digest
        folder.trust(digest).mkdir(parents=True)
        url = f"https://{host.address}/repository/"
        with closing(
            found_repository(folder.trust(digest), url, host.root, digest, SystemClock(), proxy=None)
        ) as repository:
            repository.refresh()
        record = EnrolmentRecord(
            site=SITE,
            node=name,
            key_id=key.key_id,
            root_digest=digest,
            environment=Environment.TEST,
            consortium="consortium-a",
            name="Consortium A",
            registrar=host.address,
            enrolled=datetime.now(UTC),
        )
        folder.store_authority(host.authority.read_bytes())
        folder.store_record(record)
        box.heartbeat_s = 0.5
        runtime = box.directory / "run"
        runtime.mkdir()
        box.environment["RUNTIME_DIRECTORY"] = str(runtime)
        yield box


def seen(host: RegistrarHost) -> FleetBox:
    (only,) = load_fleet(AuthorityLayout(host.directory)).boxes
    return only


def taken(box: RunningHospital) -> int:
    status = box.status
    return (status and status.heard_s) or 0


def test_the_operator_sees_a_box_and_its_release(host: RegistrarHost, box: RunningHospital, page: str) -> None:
    assert seen(host).seen_s is None
    box.start()
    wait_until(lambda: taken(box) > 0, limit_s=30, what="the registrar takes a heartbeat")
    wait_until(lambda: seen(host).trouble == "fleet.unreachable", limit_s=30, what="the operator sees what is wrong")
    there = seen(host)
    assert (there.release, there.condition.value, there.session) == (software_version(), "degraded", "valid")
    shown = subprocess.run(
        [str(PROGRAMS / "seh-agent"), "status", "--config", str(box.config)], capture_output=True, text=True, check=True
    ).stdout
    assert f"release {software_version()}" in shown
    assert "the registrar heard of it last at" in shown
    html = httpx.get(f"http://{page}/").text
    assert (there.node in html, "degraded" in html) == (True, True)
    answered = httpx.get(f"http://{page}/metrics").text
    assert 'seh_registrar_requests_total{place="/v1/heartbeats",status="2xx"}' in answered
    file = box.directory / "run" / "metrics.prom"
    wait_until(file.exists, limit_s=20, what="the agent writes its metrics")
    assert 'seh_agent_link_state{state="online"} 0.0' in file.read_text()
    assert box.stop()[0] == 0
    assert not file.exists()


def test_heartbeats_that_fail_do_not_trouble_the_agent(host: RegistrarHost, box: RunningHospital) -> None:
    box.start()
    wait_until(lambda: taken(box) > 0, limit_s=30, what="the registrar takes a heartbeat")
    host.stop()
    wait_until(lambda: bool(box.events("heartbeat_not_taken")), limit_s=30, what="nobody takes the next one")
    last = taken(box)
    host.start()
    wait_until(lambda: taken(box) > last, limit_s=60, what="the registrar takes them again")
    host.consortium.publish(host.consortium.desk(SITE).revoke(seen(host).key_id, "a test of revocation"))
    failures = len(box.events("heartbeat_not_taken"))
    wait_until(
        lambda: len(box.events("heartbeat_not_taken")) > failures, limit_s=30, what="those of a revoked box are refused"
    )
    assert not box.events("heartbeat_broke")
    assert box.stop()[0] == 0
