"""What strangers, neighbours and broken boxes try with heartbeats, and what a registrar tries to learn from them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agent.core.errors import SecureHealthError
from agent.identity.session import Subject
from agent.service.heartbeat import describe
from agent.service.state import AgentStatus
from agent.statements.kinds import Heartbeat, Possession
from agent.statements.roots import LONGEST_LIFETIME_S, KeyKind
from provisioning.registrar.fleet import SILENT_S, Condition, survey
from provisioning.registrar.guard import MAX_SMALL_BYTES
from provisioning.registrar.heartbeats import FRESH_S, verify_heartbeat
from provisioning.registrar.limits import HEARTBEAT_RATE
from provisioning.registrar.publish import Published, PublishedReader
from provisioning.registrar.settings import parse_settings
from tests.simulators.beating_box import BeatingBox, new_key, request_body, sign
from tests.simulators.clock import SetClock
from tests.simulators.registrar_host import RegistrarHost, own_client
from tests.simulators.superlink import free_port

A, B = "hospital-a", "hospital-b"
SUBJECT = Subject("ab" * 32, A, "node-a")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistrarHost]:
    host = RegistrarHost.found(tmp_path_factory.mktemp("registrar") / "authority", A, B)
    settings = host.directory / "registrar.toml"
    settings.write_text(f'operator = "127.0.0.1:{free_port()}"\n{settings.read_text()}', encoding="utf-8")
    with host:
        yield host


@pytest.fixture
def client(host: RegistrarHost) -> Iterator[httpx.Client]:
    with own_client(host) as client:
        yield client


@pytest.fixture(scope="module")
def known(host: RegistrarHost) -> tuple[BeatingBox, BeatingBox]:
    """Two boxes on record, one of each hospital."""
    return BeatingBox.on_record(host.consortium, A), BeatingBox.on_record(host.consortium, B)


@pytest.fixture
def box(known: tuple[BeatingBox, BeatingBox]) -> BeatingBox:
    return known[0]


@pytest.fixture
def neighbour(known: tuple[BeatingBox, BeatingBox]) -> BeatingBox:
    return known[1]


@pytest.fixture
def published(host: RegistrarHost, box: BeatingBox) -> Published:
    return PublishedReader(host.consortium.publisher.files, host.consortium.clock).current()


def refused(published: Published, body: bytes, *, later_s: int = 0) -> str:
    """The code with which a registrar refuses a request's body."""
    fields = json.loads(body)
    with pytest.raises(SecureHealthError) as failure:
        verify_heartbeat(
            fields["certificate"].encode(),
            fields["heartbeat"].encode(),
            published.snapshot,
            now_s=int(time.time()) + later_s,
        )
    return failure.value.code


# Strangers and neighbours.


def test_a_true_heartbeat_is_taken(client: httpx.Client, host: RegistrarHost) -> None:
    assert BeatingBox.on_record(host.consortium, A).beat(client).status_code == 200


def test_replayed_heartbeat_is_refused(client: httpx.Client, host: RegistrarHost) -> None:
    body = BeatingBox.on_record(host.consortium, A).body()
    assert client.post("/v1/heartbeats", content=body).status_code == 200
    again = client.post("/v1/heartbeats", content=body)
    assert (again.status_code, again.json()["code"]) == (409, "registrar.old_heartbeat")


def test_older_heartbeat_that_was_held_back_is_refused(client: httpx.Client, host: RegistrarHost) -> None:
    box, now_s = BeatingBox.on_record(host.consortium, A), int(time.time())
    held_back = box.body(issued_s=now_s - 60, health="degraded")
    assert box.beat(client, issued_s=now_s).status_code == 200
    assert client.post("/v1/heartbeats", content=held_back).json()["code"] == "registrar.old_heartbeat"


@pytest.mark.parametrize("later_s", [FRESH_S, -FRESH_S - 1])
def test_heartbeat_of_another_time_is_refused(box: BeatingBox, published: Published, later_s: int) -> None:
    # The certificate counts at both times, so that only the heartbeat's own time is at fault.
    now_s = int(time.time())
    certificate = box.certificate(issued_s=now_s - 900, expires_s=now_s + 900)
    body = request_body(certificate, sign(box.heartbeat(issued_s=now_s - later_s), box.session))
    assert refused(published, body) == "registrar.heartbeat_not_taken"


def test_heartbeat_in_another_boxs_name_is_refused(
    box: BeatingBox, neighbour: BeatingBox, published: Published
) -> None:
    assert refused(published, neighbour.body(site=box.site, node=box.node)) == "statements.not_accepted"
    same_site = BeatingBox(box.consortium, box.site)
    assert refused(published, same_site.body(node=box.node)) == "statements.not_accepted"
    assert refused(published, box.body(node="another-box")) == "registrar.heartbeat_not_taken"


def test_heartbeat_under_another_boxs_certificate_is_refused(
    box: BeatingBox, neighbour: BeatingBox, published: Published
) -> None:
    stolen = request_body(box.certificate(), sign(box.heartbeat(), neighbour.session))
    assert refused(published, stolen) == "statements.unverified"


def test_heartbeat_of_a_hospital_that_is_not_there_is_refused(box: BeatingBox, published: Published) -> None:
    assert refused(published, box.body(site="hospital-z")) == "registrar.heartbeat_not_taken"


def test_heartbeat_for_another_consortium_is_refused(box: BeatingBox, published: Published) -> None:
    assert refused(published, box.body(consortium="cd" * 32)) == "registrar.heartbeat_not_taken"


def test_heartbeat_by_a_revoked_box_is_refused(client: httpx.Client, host: RegistrarHost) -> None:
    box = BeatingBox.on_record(host.consortium, A)
    assert box.beat(client, issued_s=int(time.time()) - 1).status_code == 200
    host.consortium.publish(host.consortium.desk(A).revoke(box.key_id, "stolen"))
    answer = box.beat(client)
    assert (answer.status_code, answer.json()["code"]) == (422, "statements.not_accepted")
    assert "revoked" in answer.json()["sentence"]


def test_revoked_box_is_off_the_fleet(host: RegistrarHost, published: Published) -> None:
    box = BeatingBox.on_record(host.consortium, A)
    before = PublishedReader(host.consortium.publisher.files, host.consortium.clock).current().snapshot
    host.consortium.publish(host.consortium.desk(A).revoke(box.key_id, "stolen"))
    after = PublishedReader(host.consortium.publisher.files, host.consortium.clock).current().snapshot
    nodes = [{seen.node for seen in survey(each, {}, now_s=1).boxes} for each in (before, after)]
    assert (box.node in nodes[0], box.node in nodes[1]) == (True, False)


def test_heartbeat_under_a_session_that_has_ended_is_refused(box: BeatingBox, published: Published) -> None:
    now_s = int(time.time())
    certificate = box.certificate(issued_s=now_s - 600, expires_s=now_s - 1)
    assert (
        refused(published, request_body(certificate, sign(box.heartbeat(), box.session))) == "statements.not_accepted"
    )


def test_heartbeat_under_a_session_for_longer_than_its_key_may_vouch_is_refused(
    box: BeatingBox, published: Published
) -> None:
    now_s = int(time.time())
    certificate = box.certificate(issued_s=now_s, expires_s=now_s + LONGEST_LIFETIME_S[KeyKind.SOFTWARE] + 1)
    assert (
        refused(published, request_body(certificate, sign(box.heartbeat(), box.session))) == "statements.not_accepted"
    )


def test_heartbeat_under_a_stale_session_is_refused(box: BeatingBox, published: Published) -> None:
    stale = replace(published, snapshot=replace(published.snapshot, oldest_timestamp=2))
    body = request_body(box.certificate(timestamp_version=1), sign(box.heartbeat(), box.session))
    assert refused(stale, body) == "statements.not_accepted"


def test_heartbeat_under_a_certificate_by_another_key_is_refused(box: BeatingBox, published: Published) -> None:
    forger = BeatingBox(box.consortium, box.site, new_key(), box.session)
    forged = forger.certificate(node=box.node, root_key=box.key_id)
    body = request_body(replace(forged, key_id=box.key_id), sign(box.heartbeat(), box.session))
    assert refused(published, body) == "statements.unverified"


def test_altered_heartbeat_is_refused(box: BeatingBox, published: Published) -> None:
    signed = sign(box.heartbeat(health="degraded", link="lost"), box.session)
    altered = replace(signed, payload=signed.payload.replace(b"degraded", b"well"))
    assert refused(published, request_body(box.certificate(), altered)) == "statements.unverified"


def test_another_statement_of_the_box_is_no_heartbeat(box: BeatingBox, published: Published) -> None:
    other = sign(Possession(purpose="key-test", challenge="00" * 32), box.session)
    assert refused(published, request_body(box.certificate(), other)) == "statements.malformed"
    renamed = replace(sign(box.heartbeat(), box.session), payload_type=Possession.payload_type())
    assert refused(published, request_body(box.certificate(), renamed)) == "statements.not_accepted"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("release", "<script>alert(1)</script>"),
        ("release", "1" * 33),
        ("trouble", "Everything of hospital-b is broken"),
        ("link", "superb"),
        ("uptime_s", -1),
        ("patients", 12),
    ],
)
def test_heartbeat_of_a_broken_box_says_nothing_but_its_fixed_words(
    box: BeatingBox, published: Published, name: str, value: object
) -> None:
    class Loose(Heartbeat):
        model_config = Heartbeat.model_config | {"extra": "allow"}

    loose = Loose.model_construct(**(box.heartbeat().model_dump() | {name: value}))
    body = request_body(box.certificate(), sign(loose, box.session))
    assert refused(published, body) == "statements.malformed"


# Floods.


def test_oversize_heartbeat_is_not_read(client: httpx.Client) -> None:
    answer = client.post("/v1/heartbeats", content=b"x" * (MAX_SMALL_BYTES + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "registrar.too_large")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"certificate": 1, "heartbeat": 2}', b"{" * 10_000])
def test_heartbeat_that_is_none_is_refused(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/v1/heartbeats", content=content)
    assert (answer.status_code, answer.json()["code"]) == (400, "registrar.bad_request")


def test_flood_by_one_box_costs_that_box_alone(client: httpx.Client, host: RegistrarHost) -> None:
    loud, quiet = (BeatingBox.on_record(host.consortium, site) for site in (A, B))
    first_s, count = int(time.time()) - 100, int(HEARTBEAT_RATE.burst) + 1
    answers = [loud.beat(client, issued_s=first_s + step).status_code for step in range(count)]
    assert answers == [200] * (count - 1) + [429]
    assert quiet.beat(client).status_code == 200


def test_flood_in_a_boxs_name_does_not_keep_the_box_out(client: httpx.Client, host: RegistrarHost) -> None:
    box = BeatingBox.on_record(host.consortium, A)
    garbage = request_body(box.certificate(), sign(box.heartbeat(), new_key()))
    answers = {client.post("/v1/heartbeats", content=garbage).status_code for _ in range(int(HEARTBEAT_RATE.burst) + 5)}
    assert answers == {422}
    assert box.beat(client).status_code == 200


# A registrar that is curious.


def test_heartbeat_has_these_fields_and_no_other() -> None:
    assert set(Heartbeat.model_fields) == {
        "consortium",
        "site",
        "node",
        "release",
        "link",
        "session",
        "health",
        "trouble",
        "uptime_s",
        "issued_s",
    }


@pytest.mark.parametrize(
    "trouble",
    ["data.missing_column", "training.diverged", "secagg.used_round", "federation.no_study", "study.too_few_rows"],
)
def test_heartbeat_after_a_failure_on_data_is_the_one_of_a_box_that_is_well(trouble: str) -> None:
    quiet = AgentStatus("online", 7, session="valid", session_expires_s=1_900_000_000, site=A)
    failed = replace(
        quiet,
        answering="stroke masked 12",
        trouble=trouble,
        sentence="Only 3 rows are left.",
        next_step="Look.",
        notice="The study does not fit.",
    )
    assert describe(failed, SUBJECT, uptime_s=5, now_s=9) == describe(quiet, SUBJECT, uptime_s=5, now_s=9)


def test_heartbeat_in_a_round_is_the_one_between_rounds() -> None:
    idle = AgentStatus("online", 7, session="valid", site=A)
    busy = replace(idle, answering="stroke masked 12")
    assert describe(busy, SUBJECT, uptime_s=5, now_s=9) == describe(idle, SUBJECT, uptime_s=5, now_s=9)


# The operator's page.


def operator_address(host: RegistrarHost) -> str:
    text = (host.directory / "registrar.toml").read_text(encoding="utf-8")
    address = parse_settings(text.encode(), directory=host.directory).operator
    assert address is not None
    return address


@pytest.mark.parametrize("place", ["/", "/metrics", "/fleet.css"])
def test_operators_page_is_not_where_boxes_and_strangers_come(client: httpx.Client, place: str) -> None:
    assert client.get(place).status_code == 404


def test_operators_page_is_not_given_to_a_page_elsewhere(host: RegistrarHost) -> None:
    address = operator_address(host)
    for name, status in ((address, 200), ("evil.example.org", 403), ("127.0.0.1.evil.example.org", 403), ("", 403)):
        assert httpx.get(f"http://{address}/", headers={"host": name}).status_code == status


def test_operators_page_listens_on_loopback_alone(host: RegistrarHost) -> None:
    text = (host.directory / "registrar.toml").read_text(encoding="utf-8")
    for address in ("0.0.0.0:9643", "[::]:9643", "example.org:9643"):
        with pytest.raises(SecureHealthError, match="nobody signs in there"):
            parse_settings(text.replace(operator_address(host), address).encode(), directory=Path(host.directory))
    port = int(operator_address(host).rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass


def test_silent_box_does_not_look_well_for_longer_than_five_heartbeats(
    client: httpx.Client, box: BeatingBox, published: Published
) -> None:
    fields = json.loads(box.body())
    clock = SetClock()
    beat = verify_heartbeat(
        fields["certificate"].encode(), fields["heartbeat"].encode(), published.snapshot, now_s=int(time.time())
    )
    told = {box.key_id: replace(beat, seen_s=int(clock.now().timestamp()))}
    conditions = []
    for _ in range(2):
        fleet = survey(published.snapshot, told, now_s=int(clock.now().timestamp()))
        conditions.append(next(each.condition for each in fleet.boxes if each.key_id == box.key_id))
        clock.move(SILENT_S)
    assert conditions == [Condition.WELL, Condition.SILENT]
