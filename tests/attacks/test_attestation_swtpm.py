"""Attacks that need a real TPM's behaviour: the box's own half of the evidence, against swtpm."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss import ESAPI, TPM2B_SENSITIVE, TPM2B_SENSITIVE_CREATE, TPMT_SENSITIVE
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_ECC_PARAMETER, TPMT_SYM_DEF_OBJECT, TPMU_SENSITIVE_COMPOSITE

from agent.attestation.appraise import (
    Appraisal,
    Candidate,
    Policy,
    appraise_counter,
    appraise_evidence,
    challenge,
    confirm_activation,
)
from agent.attestation.binding import Exchange
from agent.attestation.credential import activation_answer, make_credential
from agent.attestation.evidence import encode_evidence, parse_evidence
from agent.attestation.makers import build_store
from agent.core.errors import HardwareError, PeerProtocolError
from agent.identity.key import init_key
from agent.identity.tpm import NODE_KEY_HANDLE, TPMKey
from agent.identity.tpm_counter import COUNTER_HANDLE, TPMCounter
from agent.identity.tpm_device import flushed
from agent.identity.tpm_evidence import ensure_ak
from agent.identity.tpm_objects import ensure_srk, find, sign, template
from agent.statements.roots import EvidenceClass
from tests.simulators.forged_tpm import now_s
from tests.simulators.swtpm import Swtpm, shared_maker

EXCHANGE = Exchange("enrolment v1", "aa" * 32, "c0" * 32, "token-1", "north", bytes(range(32)))


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


def policy_of(tpm: Swtpm) -> Policy:
    return Policy((build_store(EvidenceClass.TEST, [path.read_bytes() for path in tpm.ca_certificates]),))


def key_in(tpm: Swtpm, options: str = "") -> TPMKey:
    key = init_key(tpm.uri + options)
    assert isinstance(key, TPMKey)
    return key


def appraise(key: TPMKey, tpm: Swtpm, policy: Policy | None = None) -> Candidate:
    evidence = key.attest(EXCHANGE.qualifying_data(*key.evidence_names()))
    received = parse_evidence(encode_evidence(evidence))
    return appraise_evidence(received, EXCHANGE, policy or policy_of(tpm), now_s=now_s())


def enrol(key: TPMKey, tpm: Swtpm) -> Appraisal:
    candidate, secret = appraise(key, tpm), secrets.token_bytes(32)
    opened = key.activate(challenge(candidate, secret, random_bytes=secrets.token_bytes))
    return confirm_activation(candidate, secret, activation_answer(opened, candidate.qualifying_data))


@pytest.mark.parametrize("ek", ["", "?ek=p384", "?ek=rsa2048"])
def test_honest_tpm_is_enrolled(tpm: Swtpm, ek: str) -> None:
    key = key_in(tpm, ek)
    appraisal = enrol(key, tpm)
    assert (appraisal.evidence, appraisal.public_key) == (EvidenceClass.TEST, key.root().public_key)


def test_tpm_without_a_certificate_needs_its_hospitals_word(tpm: Swtpm) -> None:
    key = key_in(tpm, "?ek=p256")  # swtpm has no certificate for this one
    with pytest.raises(PeerProtocolError, match="no hospital has vouched"):
        appraise(key, tpm)
    ek_name, _ = key.evidence_names()
    vouched = replace(policy_of(tpm), vouched_eks=frozenset({ek_name}))
    assert appraise(key, tpm, vouched).evidence is EvidenceClass.VIRTUAL


def test_attestation_key_outlives_a_cleared_owner_hierarchy(tpm: Swtpm) -> None:
    before = enrol(key_in(tpm), tpm)
    key_in(tpm).device.run(lambda esapi: esapi.clear(ESYS_TR.LOCKOUT))
    after = enrol(key_in(tpm), tpm)
    assert (after.ek_name, after.ak.name) == (before.ek_name, before.ak.name)
    assert after.public_key != before.public_key


def test_key_without_fixed_tpm(tpm: Swtpm) -> None:
    def plant(esapi: ESAPI) -> None:
        loose = TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT
        wanted = template("ecc256:ecdsa-sha256:null", loose)
        private, public, *_ = esapi.create(ensure_srk(esapi), TPM2B_SENSITIVE_CREATE(), wanted)
        with flushed(esapi, esapi.load(ensure_srk(esapi), private, public)) as key:
            esapi.evict_control(ESYS_TR.OWNER, key, NODE_KEY_HANDLE + 0x10)

    key_in(tpm).device.run(plant)
    with pytest.raises(PeerProtocolError, match="could leave the TPM"):
        appraise(key_in(tpm, f"?key={NODE_KEY_HANDLE + 0x10:#x}"), tpm)


def test_key_brought_in_from_outside(tpm: Swtpm) -> None:
    def plant(esapi: ESAPI) -> None:
        wanted = template("ecc256:ecdsa-sha256:null", TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.SIGN_ENCRYPT)
        numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
        point = numbers.public_numbers
        wanted.publicArea.unique.ecc.x = point.x.to_bytes(32, "big")
        wanted.publicArea.unique.ecc.y = point.y.to_bytes(32, "big")
        secret = TPMU_SENSITIVE_COMPOSITE(ecc=TPM2B_ECC_PARAMETER(buffer=numbers.private_value.to_bytes(32, "big")))
        sensitive = TPMT_SENSITIVE(sensitiveType=TPM2_ALG.ECC, sensitive=secret)
        duplicate = TPM2B_SENSITIVE(sensitiveArea=sensitive).marshal()
        null = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
        private = esapi.import_(ensure_srk(esapi), b"", wanted, duplicate, b"", null)
        with flushed(esapi, esapi.load(ensure_srk(esapi), private, wanted)) as key:
            esapi.evict_control(ESYS_TR.OWNER, key, NODE_KEY_HANDLE + 0x10)

    key_in(tpm).device.run(plant)
    with pytest.raises(PeerProtocolError, match="could leave the TPM"):
        appraise(key_in(tpm, f"?key={NODE_KEY_HANDLE + 0x10:#x}"), tpm)


def test_credential_for_another_keys_name(tpm: Swtpm) -> None:
    key = key_in(tpm)
    candidate = appraise(key, tpm)
    credential = make_credential(candidate.ek, candidate.node_key.name, b"s" * 32, random_bytes=secrets.token_bytes)
    with pytest.raises(PeerProtocolError, match="made for another box"):
        key.activate(credential)


def test_credential_for_another_tpm(tpm: Swtpm) -> None:
    candidate = appraise(key_in(tpm), tpm)
    credential = challenge(candidate, b"s" * 32, random_bytes=secrets.token_bytes)
    with shared_maker().make("b") as other, pytest.raises(PeerProtocolError, match="made for another box"):
        key_in(other).activate(credential)


def test_altered_credential(tpm: Swtpm) -> None:
    key = key_in(tpm)
    credential = challenge(appraise(key, tpm), b"s" * 32, random_bytes=secrets.token_bytes)
    altered = bytearray(credential.blob)
    altered[-1] ^= 1
    with pytest.raises(PeerProtocolError, match="made for another box"):
        key.activate(replace(credential, blob=bytes(altered)))


def test_restricted_key_signs_nothing_that_looks_like_its_tpms_word(tpm: Swtpm) -> None:
    # The AK refuses an outside digest at all: only the TPM could say that it does not begin with TPM_GENERATED.
    with pytest.raises(HardwareError, match="refused"):
        key_in(tpm).device.run(lambda esapi: sign(esapi, ensure_ak(esapi), b"\xffTCG forged"))


def test_extended_register_is_seen(tpm: Swtpm) -> None:
    key = key_in(tpm)
    before = appraise(key, tpm).registers
    key.device.run(lambda esapi: esapi.pcr_event(ESYS_TR.PCR4, b"rootkit"))
    after = appraise(key, tpm).registers
    assert {register for register in before if before[register] != after[register]} == {4}


def test_counter_never_goes_back(tpm: Swtpm) -> None:
    counter = TPMCounter(key_in(tpm).device)
    first = counter.define()
    assert counter.define() == first
    assert counter.increment() == first + 1
    key_in(tpm).device.run(lambda esapi: esapi.nv_undefine_space(find(esapi, COUNTER_HANDLE), ESYS_TR.OWNER))
    assert counter.define() > first + 1


def test_counter_is_certified_for_one_asker(tpm: Swtpm) -> None:
    key = key_in(tpm)
    appraisal, counter = enrol(key, tpm), TPMCounter(key.device)
    counter.define()
    proof = counter.certify(b"q" * 32)
    fields = proof.info, proof.signature, proof.index_public, appraisal.ak
    assert appraise_counter(*fields, handle=COUNTER_HANDLE, qualifying_data=b"q" * 32) == counter.read()
    with pytest.raises(PeerProtocolError, match="another exchange"):
        appraise_counter(*fields, handle=COUNTER_HANDLE, qualifying_data=b"r" * 32)
    with pytest.raises(PeerProtocolError, match="not the counter"):
        appraise_counter(*fields, handle=COUNTER_HANDLE + 1, qualifying_data=b"q" * 32)


def test_another_counter_in_its_place(tpm: Swtpm) -> None:
    key = key_in(tpm)
    appraisal, counter, other = enrol(key, tpm), TPMCounter(key.device), TPMCounter(key.device, COUNTER_HANDLE + 1)
    counter.define()
    other.define()
    honest, wrong = counter.certify(b"q" * 32), other.certify(b"q" * 32)
    with pytest.raises(PeerProtocolError, match="certified another counter"):
        appraise_counter(
            wrong.info,
            wrong.signature,
            honest.index_public,
            appraisal.ak,
            handle=COUNTER_HANDLE,
            qualifying_data=b"q" * 32,
        )
