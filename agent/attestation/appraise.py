"""Appraises a TPM's evidence, in numbered steps, from a stranger's bytes to a key that is known to live in a TPM.

Two rounds make it whole. `appraise_evidence` checks all that is signed and gives a `Candidate`; whether its attestation
key really lives in the TPM that the EK certificate speaks of is only shown when the box opens `challenge`'s credential,
and `confirm_activation` turns the candidate into an `Appraisal`. Nothing accepts a candidate in an appraisal's place.

Source: RATS (RFC 9334) for the terms; TCG "TPM 2.0 Keys for Device Identity and Attestation", 5 and 6, for the steps.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.attestation.binding import Exchange
from agent.attestation.credential import Credential, RandomBytes, activation_answer, make_credential
from agent.attestation.eventlog import Event, parse_event_log, replay
from agent.attestation.evidence import Evidence
from agent.attestation.makers import TrustStore, check_certifies, parse_certificate, verify_ek_certificate
from agent.attestation.reader import Reader, malformed
from agent.attestation.structures import (
    Algorithm,
    Attribute,
    Certified,
    NVCertified,
    Quoted,
    TPMAttest,
    TPMPublic,
    object_name,
    parse_attest,
    parse_public,
    parse_signature,
    verify_signature,
)
from agent.core.errors import PeerProtocolError
from agent.statements.roots import EvidenceClass, KeyKind

BOUND = Attribute.FIXED_TPM | Attribute.FIXED_PARENT | Attribute.SENSITIVE_DATA_ORIGIN
"""Born in this TPM and unable to leave it (0x32)."""
BOOT_REGISTERS = tuple(range(8))
"""What the firmware measures before the operating system: every quote covers them."""
_MAX_INTERMEDIATES_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Policy:
    """What the relying party demands.

    Args:
        stores: Makers, best class first.
        vouched_eks: Names of EKs without a maker's certificate that a site has vouched for in a signed token.
        reference_values: By register, the values that count as healthy; a register without an entry may have any.
    """

    stores: tuple[TrustStore, ...]
    vouched_eks: frozenset[bytes] = frozenset()
    reference_values: Mapping[int, frozenset[bytes]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Evidence whose signatures hold, of a TPM that has yet to show that it is the one with this EK.

    Args:
        evidence: What the maker's word is worth.
        ek: The endorsement key.
        ak: The attestation key.
        node_key: The node key.
        registers: Quoted PCR values of the SHA-256 bank.
        events: The boot log, if one was sent and explains the quote.
        qualifying_data: (32,), what everything was bound to.
    """

    evidence: EvidenceClass
    ek: TPMPublic
    ak: TPMPublic
    node_key: TPMPublic
    registers: Mapping[int, bytes]
    events: tuple[Event, ...]
    qualifying_data: bytes


@dataclass(frozen=True, slots=True)
class Appraisal:
    """A node key that lives in a certain TPM.

    Args:
        evidence: Its class, for the node's record.
        ek_name: Name of the TPM's endorsement key: the same TPM has the same.
        ak: The attestation key, for later quotes.
        public_key: SubjectPublicKeyInfo (DER) of the node key.
        registers: PCR values at that time.
    """

    evidence: EvidenceClass
    ek_name: bytes
    ak: TPMPublic
    public_key: bytes
    registers: Mapping[int, bytes]


def appraise_evidence(evidence: Evidence, exchange: Exchange, policy: Policy, *, now_s: int) -> Candidate:
    """Check all that is signed in a TPM's evidence.

    Args:
        evidence: As parsed.
        exchange: As the asker knows it; the box's word for it is not asked.
        policy: What counts here.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: Any step fails; nothing may be done with the evidence then.
    """
    # 1. All of it must be readable, within limits, before any of it is believed.
    if evidence.kind is not KeyKind.TPM:
        raise malformed("another kind of key than a TPM's")
    ek = parse_public(evidence.part("ek_public"))
    ak = parse_public(evidence.part("ak_public"))
    node_key = parse_public(evidence.part("node_public"))
    # 2. A known maker, or this hospital for this one TPM, must vouch for the EK.
    _check_role(ek, BOUND | Attribute.RESTRICTED | Attribute.DECRYPT, Attribute.SIGN, "endorsement key")
    evidence_class = _appraise_maker(evidence, ek, policy, now_s)
    # 3. The AK must be one that signs only what its TPM says.
    _check_role(ak, BOUND | Attribute.RESTRICTED | Attribute.SIGN, Attribute.DECRYPT, "attestation key")
    # 4. The node key must be bound to its TPM, and sign: neither decrypt nor speak for the TPM.
    _check_role(node_key, BOUND | Attribute.SIGN, Attribute.DECRYPT | Attribute.RESTRICTED, "node key")
    if spki_of(node_key) != evidence.public_key:
        raise _not_shown("the node key that was certified is another than the one that is to be enrolled")
    # 5. The TPM must have certified that node key, in this exchange.
    qualifying_data = exchange.qualifying_data(ek.name, node_key.name)
    certified = _verify_attest(evidence, "certify", ak, qualifying_data).attested
    if not isinstance(certified, Certified) or certified.name != node_key.name:
        raise _not_shown("the TPM certified another key")
    # 6. The TPM must have quoted its boot state, in this exchange.
    registers = _appraise_quote(evidence, ak, qualifying_data)
    # 7. A boot log, where one is sent, must explain that quote.
    events = _appraise_log(evidence, registers)
    # 8. The boot state must be one that counts as healthy.
    _check_reference_values(registers, policy.reference_values)
    return Candidate(evidence_class, ek, ak, node_key, registers, events, qualifying_data)


def challenge(candidate: Candidate, secret: bytes, *, random_bytes: RandomBytes) -> Credential:
    """Make the credential that only the TPM with the candidate's EK can open, and only if its AK lives in it.

    Args:
        candidate: From `appraise_evidence`.
        secret: (32,), random, for this candidate alone; every asker makes its own.
        random_bytes: `secrets.token_bytes`.
    """
    return make_credential(candidate.ek, candidate.ak.name, secret, random_bytes=random_bytes)


def confirm_activation(candidate: Candidate, secret: bytes, answer: bytes) -> Appraisal:
    """Check the box's answer to `challenge`.

    Args:
        candidate: The same that was challenged.
        secret: The same that was hidden in the credential.
        answer: `activation_answer` of the box.

    Raises:
        PeerProtocolError: The answer is wrong: the AK does not live in the TPM that the EK certificate speaks of.
    """
    if not hmac.compare_digest(activation_answer(secret, candidate.qualifying_data), answer):
        raise _not_shown("its TPM did not open the credential, so the keys may live elsewhere")
    node_key = spki_of(candidate.node_key)
    return Appraisal(candidate.evidence, candidate.ek.name, candidate.ak, node_key, candidate.registers)


def appraise_counter(
    info: bytes, signature: bytes, index_public: bytes, ak: TPMPublic, *, handle: int, qualifying_data: bytes
) -> int:
    """The value of a monotonic counter, as the TPM certifies it (TPM2_NV_Certify).

    Args:
        info: TPMS_ATTEST.
        signature: TPMT_SIGNATURE over it.
        index_public: TPMS_NV_PUBLIC of the index.
        ak: The node's attestation key, from its appraisal.
        handle: Which index it must be.
        qualifying_data: (32,), the asker's.

    Raises:
        PeerProtocolError: It is no such certificate, or the index is no counter.
    """
    parsed_signature, attest = parse_signature(signature), parse_attest(info)
    verify_signature(ak, parsed_signature, info)
    _check_extra_data(attest, qualifying_data)
    name = _check_counter_index(index_public, handle)
    certified = attest.attested
    if not isinstance(certified, NVCertified) or certified.index_name != name:
        raise _not_shown("the TPM certified another counter")
    if certified.offset or len(certified.contents) != 8:
        raise _not_shown("the TPM certified a part of the counter")
    return int.from_bytes(certified.contents, "big")


def _check_counter_index(index_public: bytes, handle: int) -> bytes:
    # Part 2, 13.2 (TPM_NT_COUNTER = 1 in bits 4 to 7), 13.4 (TPMA_NV_WRITTEN = bit 29), 13.5 (TPMS_NV_PUBLIC).
    reader = Reader(index_public, limit=128)
    index, name_algorithm, attributes = reader.u32(), reader.u16(), reader.u32()
    reader.sized(limit=64)
    size = reader.u16()
    reader.end()
    if index != handle or attributes >> 4 & 0xF != 1 or not attributes >> 29 & 1 or size != 8:
        raise _not_shown("the index is not the counter that was asked for")
    return object_name(name_algorithm, index_public)


def spki_of(public: TPMPublic) -> bytes:
    """SubjectPublicKeyInfo (DER) of a TPM key."""
    return public.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _appraise_maker(evidence: Evidence, ek: TPMPublic, policy: Policy, now_s: int) -> EvidenceClass:
    der = evidence.parts.get("ek_certificate", b"")
    if not der:
        if ek.name not in policy.vouched_eks:
            raise _not_shown("its TPM has no maker's certificate, and no hospital has vouched for it by name")
        return EvidenceClass.VIRTUAL
    certificate = parse_certificate(der)
    check_certifies(certificate, spki_of(ek))
    return verify_ek_certificate(certificate, _sent_intermediates(evidence), policy.stores, now_s=now_s)


def _sent_intermediates(evidence: Evidence) -> tuple[x509.Certificate, ...]:
    pem = evidence.parts.get("ek_intermediates", b"")
    if not pem:
        return ()
    if len(pem) > _MAX_INTERMEDIATES_BYTES:
        raise malformed("more intermediate certificates than any maker has")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise malformed("intermediate certificates that are none") from error


def _check_role(public: TPMPublic, needs: Attribute, lacks: Attribute, role: str) -> None:
    if public.attributes & needs != needs or public.attributes & lacks:
        raise _not_shown(f"its {role} may do other things than a key in that role may, or could leave the TPM")
    if role != "endorsement key" and not isinstance(public.key, ec.EllipticCurvePublicKey):
        raise _not_shown(f"its {role} is not an elliptic-curve key")


def _verify_attest(evidence: Evidence, what: str, ak: TPMPublic, qualifying_data: bytes) -> TPMAttest:
    info = evidence.part(f"{what}_info")
    signature, attest = parse_signature(evidence.part(f"{what}_signature")), parse_attest(info)
    verify_signature(ak, signature, info)
    _check_extra_data(attest, qualifying_data)
    return attest


def _check_extra_data(attest: TPMAttest, qualifying_data: bytes) -> None:
    if not hmac.compare_digest(attest.extra_data, qualifying_data):
        raise _not_shown("the evidence was made for another exchange (another asker, site, token or moment)")


def _appraise_quote(evidence: Evidence, ak: TPMPublic, qualifying_data: bytes) -> dict[int, bytes]:
    quoted = _verify_attest(evidence, "quote", ak, qualifying_data).attested
    if not isinstance(quoted, Quoted) or len(quoted.selections) != 1:
        raise _not_shown("the TPM quoted something else than one bank of registers")
    (selection,) = quoted.selections
    if selection.bank != Algorithm.SHA256 or not set(BOOT_REGISTERS) <= set(selection.registers):
        raise _not_shown("the quote leaves registers out that every boot measures into")
    values = evidence.part("registers")
    if len(values) != 32 * len(selection.registers) or hashlib.sha256(values).digest() != quoted.digest:
        raise _not_shown("the register values that were sent are not those that the TPM quoted")
    return {register: values[32 * i : 32 * i + 32] for i, register in enumerate(selection.registers)}


def _appraise_log(evidence: Evidence, registers: Mapping[int, bytes]) -> tuple[Event, ...]:
    log = evidence.parts.get("event_log", b"")
    if not log:
        return ()
    events = parse_event_log(log)
    replayed = replay(events, Algorithm.SHA256)
    # The operating system measures on into later registers, into a log of its own.
    for register in BOOT_REGISTERS:
        if registers[register] != replayed.get(register, bytes(32)):
            raise _not_shown(f"its boot log does not lead to what the TPM quoted for register {register}")
    return events


def _check_reference_values(registers: Mapping[int, bytes], wanted: Mapping[int, frozenset[bytes]]) -> None:
    for register, values in wanted.items():
        if registers.get(register) not in values:
            raise _not_shown(f"register {register} holds a boot state that is not known as healthy")


def _not_shown(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "attestation.not_shown",
        f"A box has not shown that its key lives in its TPM: {what}.",
        next_step="It is not enrolled. Restart the box and try once more; if it repeats, show this to the consortium.",
    )
