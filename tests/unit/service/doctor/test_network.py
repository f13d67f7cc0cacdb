"""What the doctor finds on the way to the servers: clock, names, proxy, opened TLS, servers, repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.note import COSIGNATURE, note_key
from agent.core.clock import SystemClock
from agent.core.errors import Fault
from agent.service.doctor import clock, interception, names, proxy, registrar, repository, superlink, witness
from agent.service.doctor.box import Box, open_box
from agent.service.doctor.examination import Check, examine
from agent.service.doctor.finding import Finding, Outcome
from agent.service.state import AgentStatus
from agent.trust.records import WitnessRecord
from tests.simulators.clock import SetClock
from tests.simulators.https import PlayedServer
from tests.simulators.interceptor import ISSUER, running_interceptor
from tests.simulators.registrar import SITE
from tests.simulators.repository_server import running_proxy
from tests.simulators.superlink import free_port
from tests.unit.service.doctor.conftest import Enrolled, Place, tell_time

NETWORK = (
    clock.check,
    names.check,
    proxy.check,
    interception.check,
    registrar.check,
    repository.check,
    superlink.check,
    witness.check,
)


def told(finding: Finding) -> tuple[Outcome, str]:
    return finding.outcome, finding.code


def proxied(port: int) -> str:
    return f'[network]\nproxy = "http://name:pass@127.0.0.1:{port}"\n'


@pytest.mark.parametrize("check", NETWORK)
def test_a_box_that_knows_no_server_has_no_way_that_could_be_broken(check: Check, place: Place) -> None:
    assert examine(place.box(), check).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("off", "outcome"),
    [
        (timedelta(), Outcome.OK),
        (timedelta(seconds=-60), Outcome.WARN),
        (timedelta(minutes=10), Outcome.FAIL),
        (timedelta(days=-400), Outcome.FAIL),
    ],
)
def test_a_clock_is_held_against_a_server_s(
    off: timedelta, outcome: Outcome, place: Place, server: PlayedServer
) -> None:
    now = datetime.now(UTC)
    tell_time(server, now)
    finding = examine(place.pinned(server, clock=SetClock(now + off)), clock.check)
    assert told(finding) == (outcome, "" if outcome is Outcome.OK else "doctor.clock_wrong")


def test_a_clock_before_what_the_consortium_signed_is_wrong_without_any_server(
    enrol: Callable[..., Enrolled],
) -> None:
    enrolled = enrol()
    with open_box(enrolled.config, SystemClock()) as box:
        early = Box(box.config, SetClock(datetime.now(UTC) - timedelta(days=2)), box.record, box.snapshot)
        finding = examine(early, clock.check)
    assert told(finding) == (Outcome.FAIL, "doctor.clock_wrong")
    assert "48 h" in finding.sentence


def test_a_name_without_an_address(place: Place, server: PlayedServer) -> None:
    assert examine(place.pinned(server, host="localhost"), names.check).outcome is Outcome.OK
    finding = examine(place.pinned(server, host="superlink.invalid"), names.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.name_unknown"), Fault.NETWORK)
    assert "superlink.invalid" in finding.sentence


def test_behind_a_proxy_only_its_own_name_is_looked_up(place: Place, server: PlayedServer) -> None:
    box = place.pinned(server, host="superlink.invalid", rest=proxied(1))
    assert examine(box, names.check).outcome is Outcome.NOT_APPLICABLE


def test_a_proxy_that_lets_the_box_through(place: Place, server: PlayedServer) -> None:
    with running_proxy() as seen:
        box = place.pinned(server, rest=proxied(seen.port))
        finding = examine(box, proxy.check)
        assert examine(box, superlink.check).outcome is Outcome.OK
    assert finding.outcome is Outcome.OK
    assert "pass" not in finding.sentence
    assert set(seen.credentials) == {"name:pass"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, "doctor.proxy_wants_password"),
        (HTTPStatus.FORBIDDEN, "doctor.proxy_refuses"),
    ],
)
def test_a_proxy_that_does_not(
    answer: HTTPStatus, code: str, place: Place, server: PlayedServer, tmp_path: Path
) -> None:
    (tmp_path / "proxy").mkdir()
    with running_interceptor(tmp_path / "proxy", answer=answer) as address:
        finding = examine(place.pinned(server, rest=f'[network]\nproxy = "{address}"\n'), proxy.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, code), Fault.OPERATOR)


@pytest.mark.parametrize("known", [True, False], ids=["with a server", "before enrolment"])
def test_a_proxy_that_is_not_there(known: bool, place: Place, server: PlayedServer) -> None:
    rest = proxied(free_port())
    finding = examine(place.pinned(server, rest=rest) if known else place.box(rest), proxy.check)
    assert told(finding) == (Outcome.FAIL, "doctor.no_answer")
    assert "proxy" in finding.sentence


def test_a_device_that_opens_tls_is_named_by_its_issuer(place: Place, server: PlayedServer, tmp_path: Path) -> None:
    assert examine(place.pinned(server), interception.check).outcome is Outcome.OK
    (tmp_path / "device").mkdir()
    with running_interceptor(tmp_path / "device") as address:
        box = place.pinned(server, rest=f'[network]\nproxy = "{address}"\n')
        finding = examine(box, interception.check)
        refused = examine(box, superlink.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.tls_opened"), Fault.NETWORK)
    assert ISSUER in finding.sentence
    assert told(refused) == (Outcome.FAIL, "doctor.wrong_certificate")


def test_a_certificate_for_another_name_is_the_server_s_fault(place: Place, server: PlayedServer) -> None:
    with running_proxy() as seen:
        box = place.pinned(server, host="other.example", rest=proxied(seen.port))
        assert examine(box, interception.check).outcome is Outcome.OK
        finding = examine(box, superlink.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.wrong_certificate"), Fault.PEER)


def test_a_superlink_that_does_not_answer(place: Place, server: PlayedServer) -> None:
    box = place.pinned(server, port=free_port())
    assert examine(box, interception.check).outcome is Outcome.NOT_APPLICABLE
    finding = examine(box, superlink.check)
    assert (told(finding), finding.fault) == ((Outcome.FAIL, "doctor.no_answer"), Fault.NETWORK)


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [
        (AgentStatus("online"), Outcome.OK, ""),
        (None, Outcome.OK, ""),
        (AgentStatus("joining"), Outcome.FAIL, "doctor.not_online"),
        (AgentStatus("lost", trouble="fleet.clock", sentence="S.", next_step="N."), Outcome.FAIL, "fleet.clock"),
    ],
)
def test_what_the_agent_says_of_its_superlink(
    status: AgentStatus | None, outcome: Outcome, code: str, place: Place, server: PlayedServer
) -> None:
    assert told(examine(place.pinned(server, status=status), superlink.check)) == (outcome, code)


def test_an_enrolled_box_and_its_registrar(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    with open_box(enrolled.config, SystemClock()) as box:
        checks = (clock.check, interception.check, registrar.check, repository.check)
        # The SuperLink of this consortium does not exist.
        with_registrar = Box(box.config, box.clock, box.record, box.snapshot, repository=box.repository)
        outcomes = {check.__module__: examine(with_registrar, check).outcome for check in checks}
        silent = examine(with_registrar, superlink.check)
    assert set(outcomes.values()) == {Outcome.OK}
    assert told(silent) == (Outcome.FAIL, "doctor.no_answer")


def test_a_registrar_that_is_gone(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    enrolled.consortium._server.shutdown()
    enrolled.consortium._server.server_close()
    with open_box(enrolled.config, SystemClock()) as box:
        found = [told(examine(box, check)) for check in (registrar.check, repository.check)]
    assert found[0] == (Outcome.FAIL, "doctor.no_answer")
    assert found[1][0] is Outcome.FAIL
    assert found[1][1].startswith("trust.")


def test_a_box_that_was_revoked_hears_so(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    enrolled.consortium.revoke(SITE, enrolled.key.public_key())
    with open_box(enrolled.config, SystemClock()) as box:
        finding = examine(box, repository.check)
    assert told(finding) == (Outcome.WARN, "doctor.standing")
    assert "revoked" in finding.sentence


def test_a_box_that_lost_what_it_knew_says_so_and_looks_at_the_rest(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    shutil.rmtree(enrolled.config.node.state_directory / "enrolment/trust")
    with open_box(enrolled.config, SystemClock()) as box:
        assert told(examine(box, repository.check)) == (Outcome.FAIL, "doctor.trust_unreadable")
        assert examine(box, superlink.check).outcome is Outcome.NOT_APPLICABLE


def test_the_agent_s_own_copy_is_neither_locked_nor_changed(enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    state = enrolled.config.node.state_directory
    enrolled.consortium.revoke(SITE, enrolled.key.public_key())
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    with open_box(enrolled.config, SystemClock()) as box:
        examine(box, repository.check)
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_of_several_witnesses_one_that_answers_is_enough(server: PlayedServer, enrol: Callable[..., Enrolled]) -> None:
    enrolled = enrol()
    away, there = (_witness(name, port, server) for name, port in (("away", free_port()), ("there", server.port)))
    for witnesses, expected in (
        ((), (Outcome.NOT_APPLICABLE, "")),
        ((away,), (Outcome.FAIL, "doctor.no_answer")),
        ((away, there), (Outcome.OK, "")),
    ):
        with open_box(enrolled.config, SystemClock()) as box:
            assert box.snapshot is not None
            consortium = box.snapshot.consortium.model_copy(update={"witnesses": witnesses})
            seen = Box(box.config, box.clock, box.record, replace(box.snapshot, consortium=consortium))
            assert told(examine(seen, witness.check)) == expected


def _witness(name: str, port: int, server: PlayedServer) -> WitnessRecord:
    vkey = note_key(name, Ed25519PrivateKey.generate(), COSIGNATURE).vkey
    roots = server.files.root.read_text(encoding="ascii")
    return WitnessRecord(name=name, vkey=vkey, address=f"127.0.0.1:{port}", root_certificates=roots)
