"""Attacks on the evidence of a FIDO2 key: forged, relayed or borrowed registrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fido2 import cbor
from fido2.webauthn import AttestationObject
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation.evidence import Evidence
from agent.attestation.fido2 import appraise_fido2
from agent.attestation.makers import TrustStore
from agent.core.errors import HardwareError, PeerProtocolError
from agent.identity.key import HardwareKey, init_key
from agent.statements.roots import NODE_RP_ID, EvidenceClass, KeyKind
from tests.simulators.authenticator import AAGUID, UP, UV, Authenticator
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.makers import Maker, authenticator_maker
from tests.simulators.person import Technician

NOW_S = 1_800_000_000
ASKED = bytes(range(32))
STORES = (TrustStore(EvidenceClass.TEST, (authenticator_maker().root,)),)


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(PeerProtocolError, match=words):
        yield


def key_in(authenticator: Authenticator, directory: Path) -> HardwareKey:
    return init_key(f"fido2:{directory}/key.json", person=Technician())


def evidence_from(authenticator: Authenticator, directory: Path) -> Evidence:
    with plugged_in(HIDKey(authenticator)):
        return key_in(authenticator, directory).attest(ASKED)


def appraise(evidence: Evidence, *, asked: bytes = ASKED, stores: tuple[TrustStore, ...] = STORES) -> EvidenceClass:
    return appraise_fido2(evidence, asked, stores, now_s=NOW_S).root.evidence


def with_part(evidence: Evidence, **parts: bytes) -> Evidence:
    return replace(evidence, parts={**evidence.parts, **parts})


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_from(Authenticator(), tmp_path_factory.mktemp("honest"))


def test_honest_key_is_accepted_and_put_on_record(evidence: Evidence) -> None:
    appraisal = appraise_fido2(evidence, ASKED, STORES, now_s=NOW_S)
    root = appraisal.root
    assert (root.evidence, root.public_key, appraisal.aaguid) == (EvidenceClass.TEST, evidence.public_key, AAGUID)
    assert root.fido2 is not None
    assert (root.fido2.rp_id, root.fido2.user_verified) == (NODE_RP_ID, True)
    assert root.fido2.last_count > 0


def test_key_of_an_unknown_maker(tmp_path: Path) -> None:
    with refused("No known maker"):
        appraise(evidence_from(Authenticator(maker=Maker("Virtual FIDO2 Root (test)")), tmp_path))


def test_key_that_vouches_for_itself(tmp_path: Path, evidence: Evidence) -> None:
    with plugged_in(HIDKey(Authenticator(self_attested=True))):
        key = key_in(Authenticator(), tmp_path)
        with pytest.raises(HardwareError, match="cannot show evidence"):
            key.attest(ASKED)
        record = (tmp_path / "key.json").read_text()
    attestation = AttestationObject(bytes.fromhex(record.split('"attestation_object": "')[1].split('"')[0]))
    challenge = bytes.fromhex(record.split('"registration_challenge": "')[1].split('"')[0])
    claimed = replace(
        evidence,
        public_key=bytes.fromhex(record.split('"public_key": "')[1].split('"')[0]),
        parts={**evidence.parts, "attestation_object": bytes(attestation), "registration_challenge": challenge},
    )
    with refused("only the key itself vouches"):
        appraise(claimed)


def test_evidence_relayed_from_another_exchange(evidence: Evidence) -> None:
    with refused("signature does not hold"):
        appraise(evidence, asked=bytes(32))


def test_registration_with_another_challenge(evidence: Evidence) -> None:
    with refused("does not hold"):
        appraise(with_part(evidence, registration_challenge=bytes(32)))


def test_registration_for_another_relying_party(evidence: Evidence) -> None:
    """What a steward's key, or a key on a web page, registered, makes no node key."""
    with refused("another relying party"):
        appraise_fido2(evidence, ASKED, STORES, rp_id="steward.secur-e-health", now_s=NOW_S)


def test_registration_of_another_key(evidence: Evidence, tmp_path: Path) -> None:
    other = evidence_from(Authenticator(), tmp_path)
    with refused("about another key"):
        appraise(replace(evidence, public_key=other.public_key))


def altered(
    evidence: Evidence, *, flags: int | None = None, fmt: str | None = None, statement: object = None
) -> Evidence:
    attestation = AttestationObject(evidence.parts["attestation_object"])
    data = bytearray(attestation.auth_data)
    if flags is not None:
        data[32] = data[32] & ~(UP | UV) | flags
    parts = {
        "fmt": fmt or attestation.fmt,
        "authData": bytes(data),
        "attStmt": attestation.att_stmt if statement is None else statement,
    }
    return with_part(evidence, attestation_object=cbor.encode(parts))


@pytest.mark.parametrize("flags", [0, UP, UV])
def test_registration_with_nobody_there(evidence: Evidence, flags: int) -> None:
    with refused("nobody was"):
        appraise(altered(evidence, flags=flags))


@pytest.mark.parametrize("copied", [0, 0x10], ids=["could be copied", "was copied"])
def test_key_that_can_be_copied_to_other_devices(evidence: Evidence, copied: int) -> None:
    """A passkey that its owner's account carries from device to device lives in no hardware."""
    with refused("copied to other devices"):
        appraise(altered(evidence, flags=UP | UV | 0x08 | copied))


@pytest.mark.parametrize("fmt", ["none", "fido-u2f", "android-safetynet", ""])
def test_attestation_of_a_form_that_proves_less(evidence: Evidence, fmt: str) -> None:
    with refused("of a form that does not count" if fmt else "does not"):
        appraise(altered(evidence, fmt=fmt, statement={}))


@pytest.mark.parametrize(
    "statement",
    [
        {},
        {"alg": -7},
        {"alg": -7, "sig": b""},
        {"alg": 99, "sig": b"", "x5c": [b""]},
        {"alg": -7, "sig": b"", "x5c": "text"},
        {"alg": -7, "sig": 1, "x5c": [b"\x30\x00"]},
        {"ecdaaKeyId": b"", "alg": -7, "sig": b""},
        [],
    ],
)
def test_attestation_statements_that_make_no_sense(evidence: Evidence, statement: object) -> None:
    with pytest.raises(PeerProtocolError):
        appraise(altered(evidence, statement=statement))


def test_model_that_is_another_than_its_certificates(tmp_path: Path) -> None:
    authenticator = Authenticator()
    authenticator.aaguid = bytes(16)
    with refused("does not hold"):
        appraise(evidence_from(authenticator, tmp_path))


@pytest.mark.parametrize("now_s", [1_600_000_000, 2_500_000_000])
def test_attestation_out_of_its_time(evidence: Evidence, now_s: int) -> None:
    with refused("No known maker"):
        appraise_fido2(evidence, ASKED, STORES, now_s=now_s)


def test_other_kinds_of_evidence_are_refused(evidence: Evidence) -> None:
    with refused("another kind"):
        appraise(replace(evidence, kind=KeyKind.PIV))
    with refused("larger than"):
        appraise(with_part(evidence, attestation_object=bytes(1 << 15)))


# A bent serial number may be negative, of which `cryptography` warns.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(part=st.sampled_from(["attestation_object", "registration_challenge", "possession"]), data=st.data())
@settings(max_examples=200, deadline=None)
def test_no_altered_byte_is_accepted_or_crashes(evidence: Evidence, part: str, data: st.DataObject) -> None:
    original = evidence.parts[part]
    at = data.draw(st.integers(0, len(original) - 1))
    changed = original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :]
    with pytest.raises(PeerProtocolError):
        appraise(with_part(evidence, **{part: changed}))
