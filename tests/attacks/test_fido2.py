"""Attacks on keys that live in a FIDO2 authenticator: borrowed assertions, clones, guesses, absent people."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from fido2.rpid import verify_rp_id
from fido2.webauthn import CollectedClientData

from agent.attestation.fido2 import registration_hash
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.logging import configure_logging
from agent.identity.fido2 import find_devices
from agent.identity.fido2_record import load_record
from agent.identity.key import HardwareKey, Presence, PresenceState, init_key, open_key
from agent.statements.envelope import Proof, Statement
from agent.statements.roots import NODE_RP_ID, FIDO2Terms, RootKey, encode_assertion, verify_proof
from tests.simulators.authenticator import UP, UV, Authenticator
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.person import Technician, WatchedTechnician


class Note(Statement):
    kind = "fido2-attack-note"
    text: str


NOTE = Note(text="vouched for")


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(PeerProtocolError, match=words):
        yield


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator()


@pytest.fixture
def port(authenticator: Authenticator) -> Iterator[HIDKey]:
    key = HIDKey(authenticator)
    with plugged_in(key):
        yield key


@pytest.fixture
def person() -> Technician:
    return Technician()


@pytest.fixture
def key(port: HIDKey, tmp_path: Path, person: Technician) -> HardwareKey:
    return init_key(f"fido2:{tmp_path}/key.json", person=person)


@pytest.fixture
def root(key: HardwareKey) -> RootKey:
    return key.root()


def assertion_by(
    authenticator: Authenticator, client_data_hash: bytes, *, flags: int, rp_id: str = NODE_RP_ID
) -> bytes:
    """What malware with the authenticator in its hands, but without its holder, may get out of it."""
    (credential,) = authenticator.credentials.values()
    credential.rp_id = rp_id
    authenticator._pending = (client_data_hash, flags, None)
    answer = authenticator._assert(credential)
    credential.rp_id = NODE_RP_ID
    return encode_assertion(answer[2], answer[3])


def proof_with(honest: Proof, signature: bytes) -> Proof:
    return replace(honest, signature=signature)


def hash_of(proof: Proof) -> bytes:
    return hashlib.sha256(proof.signed_bytes()).digest()


# Borrowed assertions


def test_assertion_over_a_zero_hash(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    """Clients ask with a zero hash whether a credential is there; such an answer vouches for nothing."""
    honest = key.prove(NOTE)
    with refused("signature does not hold"):
        verify_proof(proof_with(honest, assertion_by(authenticator, bytes(32), flags=UP | UV)), root)


def test_preflight_answers_are_made_without_anybody(key: HardwareKey, authenticator: Authenticator) -> None:
    """What we ask ourselves with a zero hash comes back without UP, so nobody can use it even by mistake."""
    seen: list[int] = []
    original = authenticator._assert

    def spying(credential: object) -> dict[object, object]:
        client_data_hash, flags, _ = authenticator._pending
        seen.append(flags if client_data_hash == bytes(32) else -1)
        return original(credential)  # type: ignore[arg-type] # passed through as it came

    authenticator._assert = spying  # type: ignore[method-assign] # a spy
    key.prove(NOTE)
    assert key.presence().state is PresenceState.READY
    assert seen == [0, -1, 0]


def test_assertion_for_another_relying_party(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    honest = key.prove(NOTE)
    stolen = assertion_by(authenticator, hash_of(honest), flags=UP | UV, rp_id="steward.secur-e-health")
    with refused("another relying party"):
        verify_proof(proof_with(honest, stolen), root)


def test_assertion_without_a_touch(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    honest = key.prove(NOTE)
    for flags in (0, UV):
        with refused("nobody touched"):
            verify_proof(proof_with(honest, assertion_by(authenticator, hash_of(honest), flags=flags)), root)


def test_assertion_without_a_verified_person(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    honest = key.prove(NOTE)
    touched_only = proof_with(honest, assertion_by(authenticator, hash_of(honest), flags=UP))
    with refused("not verified by PIN"):
        verify_proof(touched_only, root)
    verify_proof(touched_only, replace(root, fido2=FIDO2Terms(NODE_RP_ID, user_verified=False)))


def test_assertion_of_another_statement(key: HardwareKey, root: RootKey) -> None:
    one, two = key.prove(NOTE), key.prove(Note(text="another"))
    with refused("signature does not hold"):
        verify_proof(proof_with(one, two.signature), root)


def test_registration_taken_for_a_statement(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    """What is signed when a key is made begins with a payload type of its own."""
    honest = key.prove(NOTE)
    record = load_record(Path(key.uri.removeprefix("fido2:")))
    registered = registration_hash(NODE_RP_ID, bytes.fromhex(record.registration_challenge))
    assert registered != hash_of(honest)
    with refused("signature does not hold"):
        verify_proof(proof_with(honest, assertion_by(authenticator, registered, flags=UP | UV)), root)


def test_statement_cannot_be_read_as_client_data(key: HardwareKey) -> None:
    """A web page cannot have a statement signed, nor a statement be shown as a sign-in: neither parses as the other."""
    signed = key.prove(NOTE).signed_bytes()
    assert signed.startswith(b"DSSEv1 ")
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(signed)
    with pytest.raises(ValueError, match="Expecting value"):
        CollectedClientData(signed)


def test_web_page_signs_in_with_the_nodes_credential(
    key: HardwareKey, root: RootKey, authenticator: Authenticator
) -> None:
    """A page that gets the node's credential to sign its own client data has signed no statement."""
    honest = key.prove(NOTE)
    client_data = CollectedClientData.create(type="webauthn.get", challenge=hash_of(honest), origin="https://evil.test")
    phished = assertion_by(authenticator, client_data.hash, flags=UP | UV)
    with refused("signature does not hold"):
        verify_proof(proof_with(honest, phished), root)


@pytest.mark.parametrize("origin", ["https://evil.test", "https://secur-e-health.test", "http://node.secur-e-health"])
def test_browser_cannot_ask_for_the_nodes_relying_party(origin: str) -> None:
    assert not verify_rp_id(NODE_RP_ID, origin)


@pytest.mark.parametrize("cut", [0, 1, 2, 36, 38, 39, 60])
def test_assertions_cut_short(key: HardwareKey, root: RootKey, cut: int) -> None:
    honest = key.prove(NOTE)
    with pytest.raises(PeerProtocolError):
        verify_proof(proof_with(honest, honest.signature[:cut]), root)


# Clones


def remembering(root: RootKey, count: int) -> RootKey:
    assert root.fido2 is not None
    return replace(root, fido2=replace(root.fido2, last_count=count))


def test_cloned_key_is_found_out_by_its_counter(
    key: HardwareKey, root: RootKey, authenticator: Authenticator, person: Technician
) -> None:
    clone = authenticator.cloned()
    count = verify_proof(key.prove(NOTE), root)
    count = verify_proof(key.prove(NOTE), remembering(root, count))
    with plugged_in(HIDKey(clone)):
        stale = open_key(key.uri, person=person).prove(NOTE)
    with refused("may have been cloned"):
        verify_proof(stale, remembering(root, count))
    verify_proof(key.prove(NOTE), remembering(root, count))


def test_replayed_assertion_is_found_out_by_its_counter(key: HardwareKey, root: RootKey) -> None:
    proof = key.prove(NOTE)
    count = verify_proof(proof, root)
    with refused("may have been cloned"):
        verify_proof(proof, remembering(root, count))


def test_key_that_keeps_no_counter_is_accepted(tmp_path: Path, person: Technician) -> None:
    with plugged_in(HIDKey(Authenticator(counts=False))):
        key = init_key(f"fido2:{tmp_path}/key.json", person=person)
        for _ in range(2):
            assert verify_proof(key.prove(NOTE), key.root()) == 0


def test_key_that_stops_counting(key: HardwareKey, root: RootKey, authenticator: Authenticator) -> None:
    count = verify_proof(key.prove(NOTE), root)
    authenticator.counts, authenticator.count = False, 0
    with refused("may have been cloned"):
        verify_proof(key.prove(NOTE), remembering(root, count))


# Another key


def test_another_key_in_its_place_sees_no_pin(key: HardwareKey, person: Technician) -> None:
    other = Authenticator()
    other.set_pin("another person's")
    asked = len(person.asked)
    with plugged_in(HIDKey(other)):
        assert key.presence().state is PresenceState.FOREIGN
        with pytest.raises(HardwareError, match="not the one that holds this node's key"):
            key.prove(NOTE)
    assert len(person.asked) == asked
    assert other.pin.attempts == 8


def test_key_that_claims_our_credential_but_cannot_sign(key: HardwareKey, authenticator: Authenticator) -> None:
    impostor = Authenticator()
    impostor.set_pin("246813")
    (ours,) = authenticator.credentials.values()
    impostor.credentials = {ours.id: replace(ours, private=ec.generate_private_key(ec.SECP256R1()))}
    with plugged_in(HIDKey(impostor)), pytest.raises(HardwareError, match="not the one that holds this node's key"):
        key.prove(NOTE)


# A hostile key


NONSENSE = [
    b"",
    b"\x00",
    b"\x00\xff",
    b"\x00\xa1\x01",
    b"\x00\x9f",
    b"\x00" + cbor2.dumps([]),
    b"\x00" + cbor2.dumps({}),
    b"\x00" + cbor2.dumps({1: 1, 2: 2, 3: 3, 4: 4, 5: "5", 6: 6}),
    b"\x00" + cbor2.dumps({1: {}, 2: b"", 3: b"", 4: [], 6: [[]]}),
    b"\x00" + cbor2.dumps({1: {1: 2, 3: -25, -1: 1, -2: b"", -3: b""}, 2: bytes(16), 3: 8}),
    b"\x00" + cbor2.dumps({1: ["FIDO_2_0"], 3: bytes(16), 4: {"clientPin": []}, 6: "ab"}),
    b"\x00" + b"\x81" * 2000,
]


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("command", [0x02, 0x04, 0x06])
def test_key_that_answers_nonsense_proves_nothing_and_breaks_nothing(
    key: HardwareKey, authenticator: Authenticator, command: int, nonsense: bytes
) -> None:
    honest = authenticator.process

    def process(request: bytes) -> bytes:
        return nonsense if request[0] == command else honest(request)

    authenticator.process = process  # type: ignore[method-assign] # a hostile device
    with pytest.raises(SecureHealthError):
        key.prove(NOTE)
    assert isinstance(key.presence(), Presence)
    assert find_devices() is not None


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_key_that_answers_nonsense_is_not_made(
    port: HIDKey, authenticator: Authenticator, tmp_path: Path, nonsense: bytes
) -> None:
    honest = authenticator.process

    def process(request: bytes) -> bytes:
        return nonsense if request[0] == 0x01 else honest(request)

    authenticator.process = process  # type: ignore[method-assign] # a hostile device
    with pytest.raises(SecureHealthError):
        init_key(f"fido2:{tmp_path}/key.json", person=Technician())
    assert not (tmp_path / "key.json").exists()


# Guesses and absence


def test_last_attempt_is_not_spent_by_accident(key: HardwareKey, authenticator: Authenticator) -> None:
    person = Technician(pin="wrong")
    guesser = open_key(key.uri, person=person)
    authenticator.pin.attempts = 1
    with pytest.raises(OperatorError, match="one PIN attempt left") as failure:
        guesser.prove(NOTE)
    assert "--force" in failure.value.next_step
    with pytest.raises(OperatorError, match="one PIN attempt left"):
        guesser.change_pin()
    assert (person.asked, authenticator.pin.attempts) == ([], 1)
    person.insists = True
    with pytest.raises(HardwareError, match="blocked"):
        guesser.prove(NOTE)
    assert authenticator.pin.attempts == 0


def test_authenticator_that_signs_without_showing_a_person(key: HardwareKey, authenticator: Authenticator) -> None:
    original = authenticator._verify_user

    def lazy(*arguments: object, **options: object) -> bool:
        original(*arguments, **options)  # type: ignore[arg-type] # passed through as it came
        return False

    authenticator._verify_user = lazy  # type: ignore[method-assign] # a faulty device
    with pytest.raises(HardwareError, match="without showing that a person was there"):
        key.prove(NOTE)


def test_pin_is_in_no_log_no_error_and_no_repr(port: HIDKey, tmp_path: Path) -> None:
    journal = io.StringIO()
    configure_logging(stream=journal, level=logging.DEBUG)
    library = logging.getLogger("fido2")
    handler = logging.StreamHandler(journal)
    library.addHandler(handler)
    library.setLevel(1)
    try:
        person = Technician(pin="correct horse", new_pin="correct horse")
        key = init_key(f"fido2:{tmp_path}/key.json", person=person)
        key.prove(NOTE)
        person.pin = "battery staple"
        with pytest.raises(OperatorError) as failure:
            key.prove(NOTE)
    finally:
        library.removeHandler(handler)
        library.setLevel(logging.NOTSET)
        structlog.reset_defaults()
    shown = "".join(traceback.format_exception(failure.value)) + repr(failure.value.details)
    everything = journal.getvalue() + shown + repr(key) + repr(key.presence()) + (tmp_path / "key.json").read_text()
    assert "pin_rejected" in everything
    for pin in (b"correct horse", b"battery staple"):
        assert pin.decode() not in everything
        assert pin.hex() not in everything.lower()
        assert hashlib.sha256(pin).hexdigest()[:32] not in everything.lower()


def test_pin_does_not_outlive_the_call(key: HardwareKey) -> None:
    person = WatchedTechnician()
    watched = open_key(key.uri, person=person)
    watched.prove(NOTE)
    watched.change_pin()
    assert (len(person.typed), person.held) == (2, 0)
