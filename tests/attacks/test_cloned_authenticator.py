"""A security key that somebody copied: what another hospital, and the coordinator, notice without meeting either."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.ids import SiteID
from agent.identity.key import HardwareKey, init_key, open_key
from agent.identity.session import SessionKeeper, Subject
from agent.statements.chain import NodeRecord, Session
from agent.statements.envelope import encode_proof, parse_proof
from agent.statements.roots import FIDO2Terms, KeyKind, RootKey
from agent.trust import counters as counters_module
from agent.trust.counters import COUNTERS_FILE_NAME, OVERLAP_S, CounterStore
from agent.trust.peers import PinnedPeers, consortium_digest, node_name
from agent.trust.roster import Roster, RosterNode
from tests.simulators.authenticator import Authenticator
from tests.simulators.clock import SetClock
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.person import Technician
from tests.unit.coordinator.test_secure import Federation

SITE = "hospital-a"


@dataclass
class Rig:
    """A hospital with a security key, and a peer that watches it."""

    place: Path
    authenticator: Authenticator
    key: HardwareKey
    coordinator: ec.EllipticCurvePublicKey
    clock: SetClock

    @property
    def file(self) -> Path:
        return self.place / "peer" / COUNTERS_FILE_NAME

    def peer(self) -> PinnedPeers:
        """The peer, as after a restart."""
        nodes = (RosterNode(SiteID(SITE), replace(self.key.root(), fido2=FIDO2Terms("node.secur-e-health"))),)
        return PinnedPeers(Roster({SiteID(SITE): nodes}, self.coordinator), self.clock, CounterStore(self.file))

    def certificate(self, authenticator: Authenticator | None = None) -> bytes:
        """Somebody touches a key: the hospital's own, or a copy."""
        subject = Subject(consortium_digest(self.coordinator), SITE, node_name(self.key.key_id))
        with plugged_in(HIDKey(authenticator or self.authenticator)):
            key = open_key(self.key.uri, person=Technician())
            return SessionKeeper(key, subject, clock=self.clock, timestamp_version=lambda: 0).renew().certificate


def rig_with(place: Path, authenticator: Authenticator) -> Rig:
    with plugged_in(HIDKey(authenticator)):
        key = init_key(f"fido2:{place}/key.json", person=Technician())
    return Rig(place, authenticator, key, ec.generate_private_key(ec.SECP256R1()).public_key(), SetClock())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return rig_with(tmp_path, Authenticator())


def refused(peer: PinnedPeers, certificate: bytes) -> PeerProtocolError:
    with pytest.raises(PeerProtocolError) as caught:
        peer.verify_certificate(SITE, certificate)
    return caught.value


def test_clone_is_found_out_by_a_peer_and_its_hospital_is_named(rig: Rig) -> None:
    peer, clone = rig.peer(), rig.authenticator.cloned()
    peer.verify_certificate(SITE, rig.certificate())
    error = refused(peer, rig.certificate(clone))
    assert (error.details["peer"], error.details["cause"]) == (SITE, "trust.cloned_key")
    assert "may have been cloned" in error.sentence
    assert "revoke" in error.next_step


def test_clone_is_found_out_across_a_restart_of_the_peer(rig: Rig) -> None:
    clone = rig.authenticator.cloned()
    rig.peer().verify_certificate(SITE, rig.certificate())
    assert refused(rig.peer(), rig.certificate(clone)).details["cause"] == "trust.cloned_key"


def test_clone_that_comes_first_gives_itself_away_when_the_hospital_renews(rig: Rig) -> None:
    peer, clone = rig.peer(), rig.authenticator.cloned()
    peer.verify_certificate(SITE, rig.certificate(clone))
    assert refused(peer, rig.certificate()).details["cause"] == "trust.cloned_key"


def test_clone_that_stops_counting(tmp_path: Path) -> None:
    store = CounterStore(tmp_path / COUNTERS_FILE_NAME)
    store.check(session_of(b"key", 7), now_s=0)
    with pytest.raises(PeerProtocolError, match="may have been cloned"):
        store.check(session_of(b"key", 0), now_s=0)


def test_same_certificate_again_is_no_clone(rig: Rig) -> None:
    certificate = rig.certificate()
    key = rig.peer().verify_certificate(SITE, certificate)
    peer = rig.peer()
    for _ in range(3):
        assert peer.verify_certificate(SITE, certificate) == key


def test_same_certificate_in_another_envelope_is_no_clone(rig: Rig) -> None:
    """Whoever relays a certificate can write it otherwise; that must not bring its hospital under suspicion."""
    certificate, peer = rig.certificate(), rig.peer()
    peer.verify_certificate(SITE, certificate)
    proof = parse_proof(certificate)
    at = 2 + int.from_bytes(proof.signature[:2], "big")
    r, s = decode_dss_signature(proof.signature[at:])
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = replace(proof, signature=proof.signature[:at] + encode_dss_signature(r, order - s))
    peer.verify_certificate(SITE, encode_proof(other))
    peer.verify_certificate(SITE, json.dumps(json.loads(certificate), indent=2).encode())


def test_certificate_before_counts_while_another_study_still_shows_it_and_no_longer(rig: Rig) -> None:
    """A key is renewed in the middle of two studies: one shows the new certificate before the other does."""
    first, second, peer = rig.certificate(), rig.certificate(), rig.peer()
    peer.verify_certificate(SITE, first)
    peer.verify_certificate(SITE, second)
    rig.clock.move(OVERLAP_S - 1)
    peer.verify_certificate(SITE, first)
    rig.clock.move(1)
    assert refused(rig.peer(), first).details["cause"] == "trust.cloned_key"
    rig.peer().verify_certificate(SITE, second)


def test_clone_is_found_out_by_the_coordinator_across_its_restart(rig: Rig) -> None:
    clone = rig.authenticator.cloned()
    with plugged_in(HIDKey(rig.authenticator)):
        key = open_key(rig.key.uri, person=Technician())
        federation = Federation(rig.place / "federation", keys={SITE: key}, rounds=1)
    federation.run()
    federation.directory.result.unlink()
    for checkpoint in federation.directory.checkpoints.iterdir():
        checkpoint.unlink()
    with plugged_in(HIDKey(clone)):
        federation.sites[SITE].restart()
    with pytest.raises(PeerProtocolError) as caught:
        federation.run()
    assert (caught.value.details["peer"], caught.value.details["cause"]) == (SITE, "trust.cloned_key")


def test_key_that_keeps_no_counter_is_believed(tmp_path: Path) -> None:
    rig = rig_with(tmp_path, Authenticator(counts=False))
    peer = rig.peer()
    for _ in range(2):
        peer.verify_certificate(SITE, rig.certificate())
    assert not rig.file.exists()


def test_counter_rises_for_nothing_that_was_not_accepted(rig: Rig) -> None:
    """A certificate for another consortium, however high its counter, must not shut the hospital out of ours."""
    clone, peer = rig.authenticator.cloned(), rig.peer()
    clone.count = 10_000
    foreign = replace(rig, coordinator=ec.generate_private_key(ec.SECP256R1()).public_key())
    assert refused(peer, foreign.certificate(clone)).details["cause"] == "statements.not_accepted"
    peer.verify_certificate(SITE, rig.certificate())


def test_counter_is_not_believed_before_the_disk_has_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    certificate, peer = rig.certificate(), rig.peer()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(2):
            with pytest.raises(HardwareError, match="cannot be written"):
                peer.verify_certificate(SITE, certificate)
    peer.verify_certificate(SITE, certificate)
    assert json.loads(rig.file.read_bytes())["counters"][rig.key.key_id]["count"] == rig.authenticator.count


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"counters": {"a": 1}}', b"\xff" * 10, b" " * (counters_module.MAX_FILE_BYTES + 1)]
)
def test_damaged_record_is_refused_whole(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / COUNTERS_FILE_NAME
    path.write_bytes(data)
    with pytest.raises(OperatorError, match="cannot be used") as caught:
        CounterStore(path)
    assert caught.value.code == "trust.bad_counters"


def test_record_stays_bounded_and_forgets_the_one_raised_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters_module, "MAX_KEYS", 2)
    store = CounterStore(tmp_path / COUNTERS_FILE_NAME)
    for name, count in ((b"one", 5), (b"two", 5), (b"one", 6), (b"three", 5)):
        store.check(session_of(name, count), now_s=0)
    with pytest.raises(PeerProtocolError):
        store.check(session_of(b"one", 5), now_s=OVERLAP_S)
    store.check(session_of(b"two", 1), now_s=0)  # it was forgotten


def test_only_security_keys_are_remembered(tmp_path: Path) -> None:
    store = CounterStore(tmp_path / COUNTERS_FILE_NAME)
    for kind in KeyKind:
        store.check(session_of(kind.value.encode(), 7, kind=kind), now_s=0)
    assert len(json.loads((tmp_path / COUNTERS_FILE_NAME).read_bytes())["counters"]) == 1


def session_of(key: bytes, count: int, *, kind: KeyKind = KeyKind.FIDO2) -> Session:
    """A verified session whose certificate was signed at `count`."""
    session_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = (key + bytes([count])).hex().ljust(64, "0")
    return Session(NodeRecord(SITE, "box", RootKey(kind, key)), session_key, 1000, count, 0, certificate)
