"""One suite that every kind of key passes; `tests/contract/rigs.py` says which."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.identity.key import HardwareKey, PresenceState, init_key, open_key
from agent.statements.envelope import Statement, encode_proof, parse_proof
from agent.statements.roots import verify_proof
from tests.contract.rigs import RIG_FOR_SCHEME, Rig

ECDSA = ec.ECDSA(hashes.SHA256())


class Note(Statement):
    kind = "contract-note"
    text: str


@pytest.fixture(params=sorted(RIG_FOR_SCHEME))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with RIG_FOR_SCHEME[request.param](tmp_path) as rig:
        yield rig


@pytest.fixture
def key(rig: Rig) -> HardwareKey:
    return init_key(rig.uri, person=rig.person)


def test_a_proof_verifies_after_its_journey(key: HardwareKey) -> None:
    proof = parse_proof(encode_proof(key.prove(Note(text="vouched for"))))
    verify_proof(proof, key.root())
    assert Note.parse(proof.payload).text == "vouched for"


def test_making_a_key_twice_keeps_the_first(key: HardwareKey, rig: Rig) -> None:
    assert init_key(rig.uri, person=rig.person).key_id == key.key_id
    assert open_key(rig.uri, person=rig.person).key_id == key.key_id


def test_opening_where_no_key_was_made_says_so(rig: Rig) -> None:
    with pytest.raises(SecureHealthError) as failure:
        open_key(rig.uri, person=rig.person)
    assert "key init" in failure.value.next_step


def test_signs_exactly_if_it_says_so(key: HardwareKey) -> None:
    if not key.capabilities.signs:
        with pytest.raises(HardwareError, match="cannot sign"):
            key.sign(b"message")
        return
    key.public_key().verify(key.sign(b"message"), b"message", ECDSA)
    with pytest.raises(InvalidSignature):
        key.public_key().verify(key.sign(b"message"), b"another", ECDSA)


def test_signing_key_is_what_flower_takes(key: HardwareKey) -> None:
    if not key.capabilities.signs:
        with pytest.raises(HardwareError, match="cannot sign"):
            _ = key.signing_key
        return
    private = key.signing_key
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert (private.curve.name, private.key_size) == ("secp256r1", 256)
    private.public_key().verify(private.sign(b"timestamp", ECDSA), b"timestamp", ECDSA)


def test_session_keys_are_fresh_and_sign(key: HardwareKey) -> None:
    one, two = key.new_session_key(), key.new_session_key()
    assert one.public_key() != two.public_key() != key.public_key()
    one.public_key().verify(one.sign(b"message", ECDSA), b"message", ECDSA)


def test_ready_when_there(key: HardwareKey) -> None:
    assert key.presence().state is PresenceState.READY


def test_pulled_out_says_so_and_proves_nothing(key: HardwareKey, rig: Rig) -> None:
    rig.pull_out()
    presence = key.presence()
    assert presence.state is PresenceState.ABSENT
    assert presence.next_step
    with pytest.raises(HardwareError):
        key.prove(Note(text="never"))


def test_put_back_works_within_two_seconds(key: HardwareKey, rig: Rig) -> None:
    rig.pull_out()
    with pytest.raises(HardwareError):
        key.prove(Note(text="never"))
    rig.put_back()
    start = time.monotonic()
    while key.presence().state is not PresenceState.READY:
        assert time.monotonic() - start < 2.0
        time.sleep(0.01)
    verify_proof(key.prove(Note(text="again")), key.root())
    assert time.monotonic() - start < 2.0


def test_another_device_in_its_place_is_refused(key: HardwareKey, rig: Rig) -> None:
    rig.swap()
    assert key.presence().state is PresenceState.FOREIGN
    with pytest.raises(HardwareError, match="not the one"):
        key.prove(Note(text="in another's name"))


def test_many_threads_share_one_key(key: HardwareKey) -> None:
    faults: list[SecureHealthError] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                verify_proof(key.prove(Note(text=f"{number} {turn}")), key.root())
        except SecureHealthError as fault:
            faults.append(fault)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_two_handles_to_one_key_agree(key: HardwareKey, rig: Rig) -> None:
    other = open_key(rig.uri, person=rig.person)
    for _ in range(3):
        verify_proof(other.prove(Note(text="other")), key.root())
        verify_proof(key.prove(Note(text="one")), other.root())


def test_unknown_options_are_refused(rig: Rig) -> None:
    with pytest.raises(OperatorError, match="option 'colour'"):
        open_key(f"{rig.uri}{'&' if '?' in rig.uri else '?'}colour=blue", person=rig.person)


def test_no_secret_in_any_repr(key: HardwareKey) -> None:
    assert "PRIVATE" not in f"{key!r}{key.presence()!r}{key.capabilities!r}"
