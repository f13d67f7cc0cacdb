"""The agent's half of heartbeats: what is said, and that nothing of it disturbs the agent."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.core.clock import SystemClock
from agent.core.config import AgentConfig
from agent.core.errors import HardwareError, NetworkError, PeerProtocolError
from agent.core.version import software_version
from agent.identity.key import init_key
from agent.identity.session import SessionKeeper, Subject
from agent.service.affiliation import Affiliation
from agent.service.heartbeat import PLACE, Heart, Pulse, describe, heart_of, registrar_line
from agent.service.state import AgentStatus, StatusBoard
from agent.statements.envelope import parse_proof
from agent.statements.kinds import Heartbeat, SessionCertificate
from agent.trust.records import ServerRecord
from tests.simulators.clock import SetClock
from tests.simulators.registrar import PlayedRegistrar, Said
from tests.simulators.repository_server import running_proxy

SUBJECT = Subject("ab" * 32, "hospital-a", "node-a")
REGISTRAR = ServerRecord(address="registrar.example.org:8443", root_certificates="")
WELL = AgentStatus("online", 7, session="valid", session_expires_s=1_900_000_000, site="hospital-a")


class Played:
    """A box's heart whose line does as told."""

    def __init__(self, directory: Path, *, every_s: float = 180.0) -> None:
        self.clock = SetClock()
        self.key = init_key(f"software:{directory / 'node.key'}")
        self.keeper = SessionKeeper(self.key, SUBJECT, clock=self.clock, timestamp_version=lambda: 3)
        self.status = WELL
        self.sent: list[bytes] = []
        self.came = threading.Semaphore(0)
        self.taken: list[int] = []
        self.note_heard = self.taken.append
        self.failure: Exception | None = None
        self.heart = Heart(
            SUBJECT,
            session=self.keeper.current,
            status=self.current,
            registrar=lambda: REGISTRAR,
            send=self.send,
            on_taken=self.note_heard,
            clock=self.clock,
            dice=random.Random(1),
            pulse=Pulse(every_s, self.clock.monotonic_s() - 60),
        )

    def current(self) -> AgentStatus:
        return self.status

    def send(self, registrar: ServerRecord, body: bytes) -> None:
        assert registrar == REGISTRAR
        self.sent.append(body)
        self.came.release()
        if self.failure is not None:
            raise self.failure

    def said(self, index: int = -1) -> Heartbeat:
        return Heartbeat.parse(parse_proof(json.loads(self.sent[index])["heartbeat"].encode()).payload)


@pytest.fixture
def box(tmp_path: Path) -> Played:
    played = Played(tmp_path)
    played.keeper.renew()
    return played


def test_a_heartbeat_says_who_and_how(box: Played) -> None:
    box.heart.beat()
    now_s = int(box.clock.now().timestamp())
    assert box.said() == Heartbeat(
        consortium="ab" * 32,
        site="hospital-a",
        node="node-a",
        release=software_version(),
        link="online",
        session="valid",
        health="well",
        trouble="",
        uptime_s=60,
        issued_s=now_s,
    )
    certificate = SessionCertificate.parse(parse_proof(json.loads(box.sent[0])["certificate"].encode()).payload)
    assert (certificate.root_key, certificate.node) == (box.key.key_id, "node-a")
    assert box.taken == [now_s]


def health(status: AgentStatus) -> tuple[str, str, str]:
    said = describe(status, SUBJECT, uptime_s=1, now_s=1)
    return said.health, said.session, said.trouble


def test_a_lost_link_is_degraded() -> None:
    assert health(replace(WELL, link="lost", trouble="fleet.unreachable")) == ("degraded", "valid", "fleet.unreachable")


def test_a_key_that_does_not_answer_is_degraded() -> None:
    assert health(replace(WELL, session="due")) == ("degraded", "due", "")


def test_a_key_that_wants_its_person_says_so() -> None:
    assert health(replace(WELL, session="needs-person")) == ("needs-person", "needs-person", "")


def test_without_a_session_nothing_is_sent(tmp_path: Path) -> None:
    box = Played(tmp_path)
    box.heart.beat()
    assert (box.sent, box.taken) == ([], [])


@pytest.mark.parametrize(
    "failure",
    [
        NetworkError("enrolment.unreachable", "Away.", next_step="Wait."),
        HardwareError("identity.tpm_gone", "Gone.", next_step="Look."),
        ValueError("a fault of ours"),
    ],
)
def test_a_failure_goes_no_further_and_the_next_one_is_sent(box: Played, failure: Exception) -> None:
    box.failure = failure
    box.heart.beat()
    assert box.taken == []
    box.failure = None
    box.heart.beat()
    assert len(box.taken) == 1


def test_they_are_sent_again_and_again_until_the_end(tmp_path: Path) -> None:
    box = Played(tmp_path, every_s=0.01)
    box.keeper.renew()
    with box.heart.beating():
        for _ in range(3):
            assert box.came.acquire(timeout=10)
    assert not any(thread.name == "heart" for thread in threading.enumerate())


@pytest.mark.parametrize("told", [True, False])
def test_the_hospital_decides_whether_there_are_any(box: Played, told: bool) -> None:
    parts = {"node": {"state_directory": "/s"}, "key": {"uri": "tpm:"}, "data": {"catalog": "/c"}}
    config = AgentConfig.model_validate(parts | {"federation": {"heartbeats": told}})
    company = SimpleNamespace(digest=SUBJECT.consortium, node=SUBJECT.node)
    home = cast("Affiliation", SimpleNamespace(site=SUBJECT.site, company=company, registrar=lambda: REGISTRAR))
    with heart_of(config, home, box.keeper, cast("StatusBoard", box), box.clock, Pulse(180.0, 0.0)):
        assert any(thread.name == "heart" for thread in threading.enumerate()) == told


def test_they_go_through_the_hospitals_proxy_to_the_registrar_alone(tmp_path: Path) -> None:
    with PlayedRegistrar(tmp_path) as registrar, running_proxy() as proxy:
        send = registrar_line(SystemClock(), f"http://localhost:{proxy.port}")
        send(registrar.consortium.registrar, b"{}")
        assert [(asked.method, asked.path, asked.body) for asked in registrar.asked] == [("POST", PLACE, b"{}")]
    assert proxy.asked == [f"CONNECT {registrar.address} HTTP/1.1"]


def test_a_server_that_is_not_the_registrar_gets_none(tmp_path: Path) -> None:
    with PlayedRegistrar(tmp_path / "true") as registrar, PlayedRegistrar(tmp_path / "other") as other:
        record = registrar.consortium.registrar.model_copy(update={"address": other.address})
        with pytest.raises(PeerProtocolError) as refused:
            registrar_line(SystemClock(), None)(record, b"{}")
    assert refused.value.code == "enrolment.not_the_registrar"
    assert other.asked == []


def test_a_registrar_that_answers_without_end_is_hung_up_on(tmp_path: Path) -> None:
    with PlayedRegistrar(tmp_path) as registrar:
        registrar.before = lambda _: Said(body=b"x" * 65_536, endless=True)
        with pytest.raises(PeerProtocolError) as refused:
            registrar_line(SystemClock(), None)(registrar.consortium.registrar, b"{}")
    assert refused.value.code == "enrolment.bad_answer"
