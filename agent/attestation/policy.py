"""TPM policies computed without a TPM: what a release's signer approves, and what a sealed object demands.

An object is sealed to an approver's key, not to boot values. The approver signs which boot values may open it, so a
signed update brings the approval of its own values along, and nothing has to be sealed anew.

Source: TCG TPM 2.0 Library Part 3, 23.7 (PolicyPCR), 23.9 (PolicyNV), 23.16 (PolicyAuthorize); Part 2, 6.5.2.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.reader import malformed
from agent.attestation.structures import Algorithm, Attribute, object_name
from agent.core.cbor import decode_plain
from agent.core.errors import PeerProtocolError

POLICY_REF = b"secur-e-health sealed state v1"
"""Names what the approver's signature is for, inside the signature."""
UNSIGNED_LE = 0x0009
"""TPM_EO: operand A (the counter) is at most operand B (6.7)."""
MAX_APPROVAL_BYTES = 4096

_CC_POLICY_NV, _CC_POLICY_AUTHORIZE, _CC_POLICY_PCR = 0x00000149, 0x0000016A, 0x0000017F
_EMPTY = bytes(32)
_NULL = 0x0010


@dataclass(frozen=True, slots=True)
class CounterLimit:
    """The policy ends when a counter passes a value: an old release's approval dies with the release.

    Args:
        index_name: The TPM's name for the counter (34 bytes).
        at_most: Its highest value with which the policy holds.
    """

    index_name: bytes
    at_most: int


@dataclass(frozen=True, slots=True)
class Approval:
    """Which boot state may open what is sealed.

    Args:
        registers: The PCRs that matter, SHA-256 bank, ascending.
        policy: (32,), the policy digest that is approved.
        counter: Until when, if it is bounded.
        signature: The approver's ECDSA (DER, P-256 and SHA-256) over `policy || POLICY_REF`.
    """

    registers: tuple[int, ...]
    policy: bytes
    counter: CounterLimit | None
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What the approver signs."""
        return self.policy + POLICY_REF


def state_policy(registers: Mapping[int, bytes], counter: CounterLimit | None = None) -> bytes:
    """The policy that holds exactly in one boot state: (32,).

    Args:
        registers: PCR values of the SHA-256 bank, each (32,).
        counter: Until when, if it is bounded.
    """
    values = hashlib.sha256(b"".join(registers[register] for register in sorted(registers))).digest()
    digest = _extend(_EMPTY, _CC_POLICY_PCR, _selection(registers), values)
    if counter is None:
        return digest
    operand = struct.pack(">Q", counter.at_most)
    arguments = hashlib.sha256(operand + struct.pack(">HH", 0, UNSIGNED_LE)).digest()
    return _extend(digest, _CC_POLICY_NV, arguments, counter.index_name)


def sealing_policy(approver: ec.EllipticCurvePublicKey) -> bytes:
    """The policy of an object that opens whenever `approver` has approved the state: (32,)."""
    first = _extend(_EMPTY, _CC_POLICY_AUTHORIZE, approver_name(approver))
    return hashlib.sha256(first + POLICY_REF).digest()


def approver_public(approver: ec.EllipticCurvePublicKey) -> bytes:
    """TPMT_PUBLIC with which the approver's key is shown to a TPM.

    Raises:
        PeerProtocolError: The key is not on P-256.
    """
    if approver.curve.name != "secp256r1":
        raise malformed("an approver's key on another curve than P-256")
    numbers = approver.public_numbers()
    attributes = Attribute.SIGN | Attribute.USER_WITH_AUTH
    return (
        struct.pack(">HHI", Algorithm.ECC, Algorithm.SHA256, attributes)
        + _sized(b"")
        + struct.pack(">HHHHH", _NULL, Algorithm.ECDSA, Algorithm.SHA256, 0x0003, _NULL)
        + _sized(numbers.x.to_bytes(32, "big"))
        + _sized(numbers.y.to_bytes(32, "big"))
    )


def approver_name(approver: ec.EllipticCurvePublicKey) -> bytes:
    """The TPM's name for the approver's key."""
    return object_name(Algorithm.SHA256, approver_public(approver))


def approve(
    registers: Mapping[int, bytes], sign: Callable[[bytes], bytes], counter: CounterLimit | None = None
) -> Approval:
    """Approve a boot state.

    Args:
        registers: PCR values of the SHA-256 bank, each (32,).
        sign: ECDSA (P-256, SHA-256, DER) over a message, with the key that releases are signed with.
        counter: Until when, if it is bounded.
    """
    draft = Approval(tuple(sorted(registers)), state_policy(registers, counter), counter, b"")
    return replace(draft, signature=sign(draft.signed_bytes()))


def verify_approval(approval: Approval, approver: ec.EllipticCurvePublicKey) -> None:
    """Verify that `approver` signed `approval`.

    Raises:
        PeerProtocolError: It did not.
    """
    try:
        approver.verify(approval.signature, approval.signed_bytes(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise PeerProtocolError(
            "attestation.bad_approval",
            "An approval of a boot state is not signed by the key that releases are signed with.",
            next_step="Fetch the release again; if it repeats, do not install it and tell the consortium.",
        ) from None


def encode_approval(approval: Approval) -> bytes:
    """The approval as CBOR; the inverse of `parse_approval`."""
    counter = [approval.counter.index_name, approval.counter.at_most] if approval.counter else None
    return cbor2.dumps([list(approval.registers), approval.policy, counter, approval.signature], canonical=True)


def parse_approval(data: bytes) -> Approval:
    """Parse an approval; it is not verified yet.

    Raises:
        PeerProtocolError: The bytes are none.
    """
    if len(data) > MAX_APPROVAL_BYTES:
        raise malformed("more bytes than an approval may have")
    try:
        value = decode_plain(data, max_depth=2, text_keys=True)
        if not isinstance(value, list):
            raise malformed("a form that is no approval")
        registers, policy, counter, signature = value
        limit = None if counter is None else CounterLimit(*counter)
        approval = Approval(tuple(registers), policy, limit, signature)
    except (ValueError, TypeError) as error:
        raise malformed("a form that is no approval") from error
    if not _is_sound(approval):
        raise malformed("a form that is no approval")
    return approval


def _is_sound(approval: Approval) -> bool:
    registers, counter = approval.registers, approval.counter
    return (
        all(type(register) is int and 0 <= register < 24 for register in registers)
        and list(registers) == sorted(set(registers))
        and isinstance(approval.policy, bytes)
        and len(approval.policy) == 32
        and isinstance(approval.signature, bytes)
        and (counter is None or _is_sound_limit(counter))
    )


def _is_sound_limit(counter: CounterLimit) -> bool:
    name, at_most = counter.index_name, counter.at_most
    return isinstance(name, bytes) and len(name) == 34 and type(at_most) is int and 0 <= at_most < 1 << 64


def _selection(registers: Mapping[int, bytes]) -> bytes:
    # Part 2, 10.9.7: TPML_PCR_SELECTION with one bank and three bytes of bitmap.
    bitmap = bytearray(3)
    for register in registers:
        bitmap[register // 8] |= 1 << register % 8
    return struct.pack(">IHB", 1, Algorithm.SHA256, 3) + bytes(bitmap)


def _extend(digest: bytes, command: int, *arguments: bytes) -> bytes:
    return hashlib.sha256(digest + struct.pack(">I", command) + b"".join(arguments)).digest()


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data
