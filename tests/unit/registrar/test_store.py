"""The registrar's memory, on both databases."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.exc import IntegrityError

from agent.attestation.credential import Credential
from agent.core.errors import HardwareError, OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import EvidenceClass, KeyKind
from provisioning.authority.appraisal import Subject
from provisioning.registrar.challenge import Enrolment, Refusal, SiteTalk, State
from provisioning.registrar.heartbeats import BoxHeartbeat
from provisioning.registrar.store import HEARTBEAT_KEPT_S, SEEN_EVERY_S, StaleError, Store, connect, migrate
from provisioning.registrar.tables import Table
from provisioning.tokens.token import TokenEntry
from tests.simulators.clock import SetClock
from tests.simulators.postgresql import PostgreSQL

A, B = SiteID("hospital-a"), SiteID("hospital-b")
ENTRY = TokenEntry(id="00" * 8, site=A, secret_digest="11" * 32, expires_s=2_000_000_000, issuer="22" * 32)
SUBJECT = Subject(KeyKind.TPM, b"public", b"\x00\x0bek", b"\x00\x0bkey")
OPEN = Enrolment("one", ENTRY.id, A, SUBJECT, b"link", bytes(32), 1_700_000_000)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PostgreSQL]:
    with PostgreSQL() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registrar.db'}"
    cluster: PostgreSQL = request.getfixturevalue("cluster")
    engine = connect(cluster.url)
    migrate(engine, "head")
    migrate(engine, "base")
    engine.dispose()
    return cluster.url


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(url: str, clock: SetClock) -> Iterator[Store]:
    store = Store.open(url, clock)
    try:
        yield store
    finally:
        store.close()


def test_tables_are_those_that_the_code_reads(url: str) -> None:
    engine = connect(url)
    try:
        migrate(engine)
        found = {
            name: {column["name"]: column["nullable"] for column in inspect(engine).get_columns(name)}
            for name in Table.metadata.tables
        }
        wanted = {
            name: {column.name: column.nullable for column in table.columns}
            for name, table in Table.metadata.tables.items()
        }
        assert found == wanted
        migrate(engine, "base")
        assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    finally:
        engine.dispose()


def test_what_was_written_is_there_after_a_restart(url: str, store: Store, clock: SetClock) -> None:
    store.add_token(ENTRY)
    full = replace(
        store.create(OPEN),
        state=State.CREDENTIALED,
        evidence=b"evidence",
        secret=bytes(32),
        credential=Credential(b"blob", b"seed"),
        grade=EvidenceClass.TEST,
        talk=SiteTalk("33" * 32, b"n" * 32, b"shown", b"p" * 32, Credential(b"theirs", b"seed"), b"a" * 32),
        refusal=Refusal("No.", "Ask."),
        superlink_node=str(1 << 63),
    )
    changed = store.swap(OPEN, full)
    store.close()
    again = Store.open(url, clock)
    try:
        assert again.token(ENTRY.id) == ENTRY
        assert again.enrolment("one") == again.of_token(ENTRY.id) == changed == replace(full, revision=1)
    finally:
        again.close()


def test_a_token_twice_is_one_and_another_of_its_name_is_refused(store: Store) -> None:
    store.add_token(ENTRY)
    store.add_token(ENTRY)
    with pytest.raises(OperatorError, match="id already"):
        store.add_token(ENTRY.model_copy(update={"site": B}))
    assert store.token(ENTRY.id) == ENTRY
    assert [event.what for event in store.events()] == ["token_added"]


def test_a_token_begins_one_enrolment_however_many_come_at_once(store: Store) -> None:
    store.add_token(ENTRY)
    start = threading.Barrier(8)

    def create(number: int) -> str:
        start.wait()
        return store.create(replace(OPEN, id=f"number-{number}")).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(create, range(8)))) == 1
    assert [event.what for event in store.events()] == ["open", "token_added"]


def test_what_a_failed_statement_was_to_write_stands_in_no_log(store: Store) -> None:
    with pytest.raises(IntegrityError) as caught:  # nobody knows its token
        store.create(replace(OPEN, secret=b"credential's secret"))
    assert "credential's secret" not in str(caught.value)


def test_of_two_changes_at_once_one_is_stale(store: Store) -> None:
    store.add_token(ENTRY)
    known = store.create(OPEN)
    start = threading.Barrier(8)

    def change(number: int) -> bool:
        start.wait()
        try:
            store.swap(known, replace(known, state=State.APPRAISED, evidence=bytes([number])))
        except StaleError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(8))) == 1
    assert [event.what for event in store.events(site=A, limit=2)] == ["appraised", "open"]


def test_a_request_is_taken_once_and_forgotten_when_its_date_refuses_it(store: Store, clock: SetClock) -> None:
    now_s = int(clock.now().timestamp())
    store.use_nonce(A, "00" * 32, expires_s=now_s + 600)
    store.use_nonce(B, "00" * 32, expires_s=now_s + 600)
    with pytest.raises(OperatorError, match="taken already"):
        store.use_nonce(A, "00" * 32, expires_s=now_s + 600)
    clock.move(601)
    store.use_nonce(A, "00" * 32, expires_s=now_s + 1200)


def test_enrolments_are_found_by_state_and_hospital(store: Store, clock: SetClock) -> None:
    for number, site in enumerate([A, A, B]):
        entry = ENTRY.model_copy(update={"id": f"{number:016x}", "site": site})
        store.add_token(entry)
        store.create(replace(OPEN, id=f"number-{number}", token=entry.id, site=site, opened_s=1_700_000_000 - number))
    assert [known.id for known in store.in_states({State.OPEN}, site=A)] == ["number-1", "number-0"]
    assert len(store.in_states({State.OPEN})) == 3
    clock.move(SEEN_EVERY_S + 800_000_000)
    store.note_seen("number-0")
    assert [known.id for known in store.heard_of({State.OPEN}, A, limit=2)] == ["number-0", "number-1"]
    assert [known.id for known in store.heard_of({State.OPEN}, A, limit=1)] == ["number-0"]
    assert store.in_states({State.APPRAISED}) == []


def test_a_box_is_noted_now_and_then(store: Store, clock: SetClock) -> None:
    store.add_token(ENTRY)
    begun_s = int(clock.now().timestamp())
    store.create(replace(OPEN, opened_s=begun_s))
    clock.move(SEEN_EVERY_S - 1)
    store.note_seen("one")
    assert store.last_seen(A) == {SUBJECT.key_name.hex(): begun_s}
    clock.move(1)
    store.note_seen("one")
    assert store.last_seen(A) == {SUBJECT.key_name.hex(): begun_s + SEEN_EVERY_S}
    assert store.last_seen(B) == {}


def test_nobody_else_reads_the_file(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "registrar.db"
    Store.open(f"sqlite:///{path}", clock).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_database_that_is_away_is_said_in_plain_words(tmp_path: Path, clock: SetClock) -> None:
    for url in (f"sqlite:///{tmp_path}/nowhere/registrar.db", f"postgresql://postgres@/postgres?host={tmp_path}"):
        with pytest.raises(HardwareError, match="does not answer"):
            Store.open(url, clock)


def test_a_restart_of_the_server_costs_one_answer_at_most(cluster: PostgreSQL, clock: SetClock) -> None:
    store = Store.open(cluster.url, clock)
    try:
        store.add_token(ENTRY)
        cluster.restart()
        assert store.token(ENTRY.id) == ENTRY
    finally:
        store.close()
        engine = connect(cluster.url)
        migrate(engine, "base")
        engine.dispose()


@pytest.mark.parametrize("url", ["registrar.db", "mysql://localhost/registrar", "postgresql://host:port/name", ""])
def test_another_database_is_refused(clock: SetClock, url: str) -> None:
    with pytest.raises(OperatorError, match="SQLite or PostgreSQL"):
        Store.open(url, clock)


BEAT = BoxHeartbeat("ab" * 32, A, "node-a", "1.4.0", "online", "valid", "well", "", 60, 100, 4000, 105)


def now_s(clock: SetClock) -> int:
    return int(clock.now().timestamp())


def test_a_later_heartbeat_takes_the_place_of_the_last_one(store: Store, clock: SetClock) -> None:
    first = replace(BEAT, seen_s=now_s(clock))
    later = replace(first, issued_s=101, release="1.5.0", trouble="fleet.unreachable")
    other = replace(first, key_id="cd" * 32, node="node-b")
    for each in (first, other, later):
        store.note_heartbeat(each)
    assert store.heartbeats() == {later.key_id: later, other.key_id: other}


@pytest.mark.parametrize("issued_s", [99, 100])
def test_a_heartbeat_that_is_not_later_changes_nothing(store: Store, clock: SetClock, issued_s: int) -> None:
    first = replace(BEAT, seen_s=now_s(clock))
    store.note_heartbeat(first)
    with pytest.raises(OperatorError) as refused:
        store.note_heartbeat(replace(first, issued_s=issued_s, release="0.1.0"))
    assert refused.value.code == "registrar.old_heartbeat"
    assert store.heartbeats() == {first.key_id: first}


def test_one_of_two_equal_heartbeats_at_once_is_taken(store: Store, clock: SetClock) -> None:
    beat = replace(BEAT, seen_s=now_s(clock))

    def take(_: int) -> bool:
        try:
            store.note_heartbeat(beat)
        except OperatorError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [False, False, False, True]


def test_heartbeats_of_boxes_that_are_long_gone_go(store: Store, clock: SetClock) -> None:
    store.note_heartbeat(replace(BEAT, seen_s=now_s(clock)))
    clock.move(HEARTBEAT_KEPT_S + 1)
    fresh = replace(BEAT, key_id="cd" * 32, seen_s=now_s(clock))
    store.note_heartbeat(fresh)
    assert store.heartbeats() == {fresh.key_id: fresh}


def test_enrolments_are_counted_by_state(store: Store) -> None:
    store.add_token(ENTRY)
    store.create(OPEN)
    counts = store.enrolments_by_state()
    assert (counts[State.OPEN], sum(counts.values()), set(counts)) == (1, 1, set(State))
