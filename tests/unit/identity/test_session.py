from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.identity.key import Capabilities, HardwareKey, Nobody, Presence, PresenceState, init_key, no_evidence
from agent.identity.session import RENEWAL_FOR_KIND, SessionKeeper, SessionState, Subject
from agent.statements.chain import NodeRecord, TrustView, verify_session, verify_statement
from agent.statements.envelope import parse_proof
from agent.statements.kinds import Possession, SessionCertificate
from agent.statements.roots import LONGEST_LIFETIME_S, KeyKind, hash_for

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


@dataclass
class FakeKey(HardwareKey):
    """A key of any kind that can be unplugged."""

    kind: KeyKind = KeyKind.TPM
    unattended: bool = True
    plugged: bool = True
    uri: str = "fake:"
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    proofs: int = 0

    @property
    @override
    def capabilities(self) -> Capabilities:
        return Capabilities(signs=True, unattended=self.unattended)

    @override
    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self.private.public_key()

    @override
    def presence(self) -> Presence:
        return Presence(PresenceState.READY if self.plugged else PresenceState.ABSENT, "Fake key", "")

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        raise no_evidence(self.kind)

    @override
    def _signature_over(self, message: bytes) -> bytes:
        if not self.plugged:
            raise HardwareError("test.unplugged", "The fake key is out.", next_step="Put it back.")
        self.proofs += 1
        return self.private.sign(message, ec.ECDSA(hash_for(self.public_key())))


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


@pytest.mark.parametrize("kind", list(KeyKind))
def test_every_kind_asks_for_no_more_than_peers_accept(kind: KeyKind) -> None:
    policy = RENEWAL_FOR_KIND[kind]
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
    key = FakeKey(kind=KeyKind.FIDO2, unattended=False)
    keeper = keeper_for(key, clock)
    for _ in range(5):
        assert keeper.tick().state is SessionState.NEEDS_PERSON
    assert key.proofs == 0
    keeper.renew()
    assert keeper.tick().state is SessionState.VALID
    clock.pass_(hours=22.5)
    status = keeper.tick()
    assert status.state is SessionState.NEEDS_PERSON
    assert "takes a person" in status.sentence
    assert keeper.current(), "what is still valid goes on counting while the person is on the way"
    key.plugged = False
    assert "is not there" in keeper.status().sentence


def test_renewal_by_a_person_with_another_key_is_refused(keeper: SessionKeeper) -> None:
    with pytest.raises(OperatorError, match="another key"):
        keeper.renew(FakeKey())
    with pytest.raises(HardwareError):
        keeper.current()


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
