from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.key import HardwareKey, Nobody, init_key
from agent.identity.session import OFFER_LIFE_S, SessionKeeper, SessionState, Subject, renewal_policy
from agent.statements.chain import NodeRecord, TrustView, verify_session, verify_statement
from agent.statements.envelope import encode_proof, parse_proof
from agent.statements.kinds import Possession, SessionCertificate
from agent.statements.roots import LONGEST_LIFETIME_S, KeyKind
from tests.simulators.fake_key import FakeKey

SUBJECT = Subject("c0" * 32, "north", "box-1")
PING = Possession(purpose="ping", challenge="ab" * 32)


@dataclass
class HandClock:
    """Stands still until told."""

    time: datetime = datetime(2026, 11, 24, 6, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic_s(self) -> float:
        return self.time.timestamp()

    def pass_(self, **duration: float) -> None:
        self.time += timedelta(**duration)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def key() -> FakeKey:
    return FakeKey()


@pytest.fixture
def keeper(key: FakeKey, clock: HandClock) -> SessionKeeper:
    return keeper_for(key, clock)


def keeper_for(key: HardwareKey, clock: HandClock) -> SessionKeeper:
    return SessionKeeper(key, SUBJECT, clock=clock, timestamp_version=lambda: 7)


def view_of(key: HardwareKey) -> TrustView:
    record = NodeRecord("north", "box-1", key.root())
    return TrustView(SUBJECT.consortium, {key.key_id: record}, frozenset(), 7, 7)


def test_what_it_issues_is_what_peers_accept(keeper: SessionKeeper, key: FakeKey, clock: HandClock) -> None:
    assert keeper.tick().state is SessionState.VALID
    session, now_s = keeper.current(), int(clock.now().timestamp())
    verified = verify_session(session.certificate, view_of(key), now_s=now_s)
    assert verify_statement(session.prove(PING), verified, Possession, now_s=now_s) == PING


@pytest.mark.parametrize(
    ("kind", "unattended"),
    [(kind, unattended) for kind in KeyKind for unattended in (True, kind is KeyKind.SOFTWARE)],
)
def test_every_kind_asks_for_no_more_than_peers_accept(kind: KeyKind, *, unattended: bool) -> None:
    policy = renewal_policy(FakeKey(kind=kind, unattended=unattended))
    assert 0 < policy.renew_before_s < policy.lifetime_s <= LONGEST_LIFETIME_S[kind]


def test_renewed_before_it_ends_and_not_sooner(keeper: SessionKeeper, key: FakeKey, clock: HandClock) -> None:
    keeper.tick()
    first = keeper.current()
    clock.pass_(hours=5.9)
    keeper.tick()
    assert keeper.current() is first
    clock.pass_(hours=0.2)
    keeper.tick()
    second = keeper.current()
    assert second.expires_s > first.expires_s
    assert second.signing_key.public_key() != first.signing_key.public_key()
    assert key.proofs == 2


def test_pulled_out_key_is_bridged_then_says_so_then_recovers(
    keeper: SessionKeeper, key: FakeKey, clock: HandClock
) -> None:
    keeper.tick()
    key.plugged = False
    clock.pass_(hours=7)
    assert keeper.tick().state is SessionState.DUE
    assert keeper.current()
    clock.pass_(hours=6)
    status = keeper.tick()
    assert (status.state, status.sentence, status.next_step) == (
        SessionState.LAPSED,
        "The fake key is out.",
        "Put it back.",
    )
    with pytest.raises(HardwareError, match="cannot prove who it is"):
        keeper.current()
    key.plugged = True
    assert keeper.tick().state is SessionState.VALID
    assert keeper.current()


def test_nothing_can_be_proven_before_the_first_session(keeper: SessionKeeper) -> None:
    with pytest.raises(HardwareError, match="cannot prove"):
        keeper.current()


def test_person_is_asked_for_and_never_bothered_unasked(clock: HandClock) -> None:
    key = FakeKey(kind=KeyKind.PIV, unattended=False)
    keeper = keeper_for(key, clock)
    for _ in range(5):
        assert keeper.tick().state is SessionState.NEEDS_PERSON
    keeper.renew()
    assert key.proofs == 1
    assert keeper.tick().state is SessionState.VALID
    clock.pass_(hours=9.5)
    assert keeper.tick().state is SessionState.VALID
    clock.pass_(hours=1)
    status = keeper.tick()
    assert status.state is SessionState.NEEDS_PERSON
    assert status.sentence == (
        "The smartcard must vouch for this box again before 2026-11-24 18:00 UTC, and that takes a person."
    )
    assert "seh-agent key renew" in status.next_step
    assert keeper.current(), "what is still valid goes on counting while the person is on the way"
    clock.pass_(hours=2)
    status = keeper.tick()
    assert (status.state, status.expires_s) == (SessionState.NEEDS_PERSON, None)
    with pytest.raises(HardwareError, match="cannot prove") as failure:
        keeper.current()
    assert "seh-agent key renew" in failure.value.next_step
    assert key.proofs == 1
    assert not key.looks, "a device that is polled cannot be used by whoever stands there with it"


def test_what_is_offered_is_signed_elsewhere_and_taken_back(clock: HandClock) -> None:
    key = FakeKey(kind=KeyKind.PIV, unattended=False)
    keeper = keeper_for(key, clock)
    offer = keeper.offer()
    assert (offer.site, offer.node, offer.root_key) == (SUBJECT.site, SUBJECT.node, key.key_id)
    session = keeper.accept(encode_proof(key.prove(offer)))
    assert keeper.current() is session
    assert keeper.status().state is SessionState.VALID
    now_s = int(clock.now().timestamp())
    verified = verify_session(session.certificate, view_of(key), now_s=now_s)
    assert verify_statement(session.prove(PING), verified, Possession, now_s=now_s) == PING


def test_an_offer_is_taken_back_once_and_within_five_minutes(
    keeper: SessionKeeper, key: FakeKey, clock: HandClock
) -> None:
    with pytest.raises(OperatorError, match="waits for nothing"):
        keeper.accept(encode_proof(key.prove(PING)))
    signed = encode_proof(key.prove(keeper.offer()))
    clock.pass_(seconds=OFFER_LIFE_S)
    session = keeper.accept(signed)
    with pytest.raises(OperatorError, match="waits for nothing"):
        keeper.accept(signed)
    late = encode_proof(key.prove(keeper.offer()))
    clock.pass_(seconds=OFFER_LIFE_S + 1)
    with pytest.raises(OperatorError, match="waits for nothing") as failure:
        keeper.accept(late)
    assert failure.value.code == "identity.no_offer"
    assert keeper.current() is session


def test_the_latest_offer_counts(keeper: SessionKeeper, key: FakeKey) -> None:
    first, second = keeper.offer(), keeper.offer()
    with pytest.raises(OperatorError, match="not what this box asked for") as failure:
        keeper.accept(encode_proof(key.prove(first)))
    assert failure.value.code == "identity.another_offer"
    assert keeper.accept(encode_proof(key.prove(second))) is keeper.current()


def test_an_offer_does_not_disturb_a_renewal_that_needs_nobody(keeper: SessionKeeper, key: FakeKey) -> None:
    offer = keeper.offer()
    assert keeper.tick().state is SessionState.VALID
    assert keeper.accept(encode_proof(key.prove(offer))) is keeper.current()


def test_what_is_handed_back_is_trusted_for_nothing(keeper: SessionKeeper, key: FakeKey) -> None:
    offer, stranger = keeper.offer(), FakeKey()
    proof = key.prove(offer)
    longer = offer.model_copy(update={"expires_s": offer.expires_s + 1})
    stolen = replace(stranger.prove(offer), key_id=key.key_id)
    envelopes: dict[type[Exception], list[bytes]] = {
        OperatorError: [
            encode_proof(key.prove(longer)),
            encode_proof(key.prove(PING)),
            encode_proof(replace(proof, payload_type=PING.payload_type())),
            encode_proof(stranger.prove(offer)),
        ],
        PeerProtocolError: [
            b"",
            b"junk",
            bytes(100_000),
            encode_proof(stolen),
            encode_proof(replace(proof, signature=b"")),
        ],
    }
    for failure, forged in envelopes.items():
        for envelope in forged:
            with pytest.raises(failure):
                keeper.accept(envelope)
    with pytest.raises(OperatorError, match="another key"):
        keeper.accept(encode_proof(stranger.prove(offer)))
    with pytest.raises(HardwareError):
        keeper.current()
    assert keeper.accept(encode_proof(proof)) is keeper.current()


def test_no_more_than_the_statement_is_kept_of_what_was_handed_back(keeper: SessionKeeper, key: FakeKey) -> None:
    envelope = encode_proof(key.prove(keeper.offer()))
    padded = json.dumps(json.loads(envelope) | {"more": "x" * 1000}).encode()
    assert keeper.accept(padded).certificate == envelope


def test_many_offer_and_accept_at_once(keeper: SessionKeeper, key: FakeKey) -> None:
    taken: list[bytes] = []

    def renew() -> None:
        with contextlib.suppress(OperatorError):  # somebody else was later
            taken.append(keeper.accept(encode_proof(key.prove(keeper.offer()))).certificate)

    threads = [threading.Thread(target=renew) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keeper.current().certificate in taken


def test_session_keys_come_from_where_they_shall(key: FakeKey, clock: HandClock) -> None:
    made = ec.generate_private_key(ec.SECP256R1())
    keeper = SessionKeeper(key, SUBJECT, clock=clock, timestamp_version=lambda: 7, new_session_key=lambda: made)
    keeper.tick()
    assert keeper.current().signing_key is made


def test_renewal_by_hand_says_what_failed(keeper: SessionKeeper, key: FakeKey) -> None:
    key.plugged = False
    with pytest.raises(HardwareError, match="fake key is out"):
        keeper.renew()


def test_clock_set_back_makes_a_new_session(keeper: SessionKeeper, clock: HandClock) -> None:
    keeper.tick()
    first = keeper.current()
    clock.pass_(days=-30)
    with pytest.raises(HardwareError):
        keeper.current()
    assert keeper.tick().state is SessionState.VALID
    assert keeper.current().issued_s < first.issued_s


def test_names_the_newest_state_of_the_repository_at_issue(key: FakeKey, clock: HandClock) -> None:
    versions = iter([7, 8])
    keeper = SessionKeeper(key, SUBJECT, clock=clock, timestamp_version=lambda: next(versions))
    for expected in (7, 8):
        keeper.renew()
        certificate = SessionCertificate.parse(parse_proof(keeper.current().certificate).payload)
        assert certificate.timestamp_version == expected


def test_no_key_in_any_repr(keeper: SessionKeeper) -> None:
    keeper.tick()
    assert "signing_key" not in repr(keeper.current())


def test_software_key_vouches_for_an_hour(clock: HandClock, tmp_path: Path) -> None:
    key = init_key(f"software:{tmp_path / 'key.pem'}")
    keeper = keeper_for(key, clock)
    keeper.tick()
    certificate, now_s = keeper.current().certificate, int(clock.now().timestamp())
    verify_session(certificate, view_of(key), now_s=now_s + 3599)
    with pytest.raises(PeerProtocolError, match="expired"):
        verify_session(certificate, view_of(key), now_s=now_s + 3600)


def test_nobody_is_nobody() -> None:
    nobody = Nobody()
    assert not nobody.risks_last_attempt
    for ask in (lambda: nobody.ask_pin("Card", attempts_remaining=3), lambda: nobody.ask_touch("Key")):
        with pytest.raises(OperatorError, match="nobody is at the box"):
            ask()
