"""TPM 2.0 structures as plain values, read from bytes that a stranger sent. No TPM library is needed, or used.

Source: TCG TPM 2.0 Library Part 2 (Structures), level 00 revision 01.59; clause numbers below are its own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent.attestation.reader import Reader, malformed
from agent.core.errors import PeerProtocolError

GENERATED_VALUE = 0xFF544347
"""TPM_GENERATED_VALUE: only the TPM itself starts a signed structure with it (6.2)."""
MAX_STRUCTURE_BYTES = 4096
_NULL = 0x0010


class Algorithm(IntEnum):
    """TPM_ALG_ID, those that we accept (6.3)."""

    RSA = 0x0001
    AES = 0x0006
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    ECDSA = 0x0018
    ECC = 0x0023
    CFB = 0x0043


class Attribute(IntFlag):
    """TPMA_OBJECT, those that we look at (8.3)."""

    FIXED_TPM = 1 << 1
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18


class AttestType(IntEnum):
    """TPMI_ST_ATTEST, those that we ask for (6.9)."""

    NV = 0x8014
    CERTIFY = 0x8017
    QUOTE = 0x8018


HASH_FOR_ALGORITHM: dict[int, hashes.HashAlgorithm] = {
    Algorithm.SHA256: hashes.SHA256(),
    Algorithm.SHA384: hashes.SHA384(),
    Algorithm.SHA512: hashes.SHA512(),
}
HASH_NAME: dict[int, str] = {
    0x0004: "sha1",  # only ever read in event logs, never relied on
    Algorithm.SHA256: "sha256",
    Algorithm.SHA384: "sha384",
    Algorithm.SHA512: "sha512",
}
CURVE_FOR_ID: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}


@dataclass(frozen=True, slots=True)
class Symmetric:
    """TPMT_SYM_DEF_OBJECT: how a storage key encrypts its children (11.1.7).

    Args:
        algorithm: AES, or nothing that we know.
        key_bits: 128 or 256.
        mode: CFB.
    """

    algorithm: int
    key_bits: int
    mode: int


@dataclass(frozen=True, slots=True)
class TPMPublic:
    """TPMT_PUBLIC: a key's public area (12.2.4).

    Args:
        name_algorithm: Hash of the key's name.
        attributes: What the TPM lets the key do.
        policy: Digest of its authorisation policy; empty for none.
        symmetric: For a storage key; None for a signing key.
        scheme: Signing scheme; None where the caller chooses.
        key: The public key.
        encoded: The public area as it came.
    """

    name_algorithm: int
    attributes: Attribute
    policy: bytes
    symmetric: Symmetric | None
    scheme: int | None
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    encoded: bytes

    @property
    def name(self) -> bytes:
        """The key's name: the one thing that tells it from every other (Part 1, 16)."""
        return object_name(self.name_algorithm, self.encoded)


@dataclass(frozen=True, slots=True)
class PCRSelection:
    """TPMS_PCR_SELECTION: one bank and its selected registers (10.6.2)."""

    bank: int
    registers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Certified:
    """TPMS_CERTIFY_INFO: the certified object's name (10.12.3)."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Quoted:
    """TPMS_QUOTE_INFO: which registers, and the hash over their values (10.12.4)."""

    selections: tuple[PCRSelection, ...]
    digest: bytes


@dataclass(frozen=True, slots=True)
class NVCertified:
    """TPMS_NV_CERTIFY_INFO: the contents of an NV index (10.12.8)."""

    index_name: bytes
    offset: int
    contents: bytes


@dataclass(frozen=True, slots=True)
class TPMAttest:
    """TPMS_ATTEST: what a TPM says about something in it (10.12.12).

    Args:
        extra_data: What the asker bound it to.
        clock_ms: Milliseconds that the TPM has been powered.
        reset_count: Cold boots; obfuscated for keys outside the endorsement hierarchy.
        restart_count: Resumes since.
        attested: By type.
    """

    extra_data: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    attested: Certified | Quoted | NVCertified


@dataclass(frozen=True, slots=True)
class TPMSignature:
    """TPMT_SIGNATURE of a key of ours: ECDSA, here in DER (11.3.4)."""

    hash_algorithm: int
    signature: bytes


def object_name(name_algorithm: int, public_area: bytes) -> bytes:
    """A name: nameAlg || H(public area) (Part 1, 16)."""
    if name_algorithm not in HASH_FOR_ALGORITHM:
        raise malformed("a name algorithm that we do not accept")
    return struct.pack(">H", name_algorithm) + hashlib.new(HASH_NAME[name_algorithm], public_area).digest()


def parse_public(data: bytes) -> TPMPublic:
    """Parse a TPMT_PUBLIC (not the TPM2B around it) of an RSA or elliptic-curve key.

    Raises:
        PeerProtocolError: It is none, or of a kind or size that we do not accept.
    """
    reader = Reader(data, limit=MAX_STRUCTURE_BYTES)
    kind, name_algorithm, attributes = reader.u16(), reader.u16(), Attribute(reader.u32())
    policy = reader.sized(limit=64)
    if name_algorithm not in HASH_FOR_ALGORITHM:
        raise malformed("a name algorithm that we do not accept")
    symmetric = _read_symmetric(reader)
    if kind not in _READ_FOR_KIND:
        raise malformed("an object that is neither an RSA nor an elliptic-curve key")
    scheme, key = _READ_FOR_KIND[kind](reader)
    reader.end()
    return TPMPublic(name_algorithm, attributes, policy, symmetric, scheme, key, data)


def _read_symmetric(reader: Reader) -> Symmetric | None:
    algorithm = reader.u16()
    return None if algorithm == _NULL else Symmetric(algorithm, reader.u16(), reader.u16())


def _read_scheme(reader: Reader) -> int | None:
    scheme = reader.u16()
    if scheme == _NULL:
        return None
    if scheme != Algorithm.ECDSA:
        raise malformed("a signing scheme that we do not accept")
    if reader.u16() not in HASH_FOR_ALGORITHM:
        raise malformed("a signing scheme's hash that we do not accept")
    return scheme


def _read_ecc(reader: Reader) -> tuple[int | None, ec.EllipticCurvePublicKey]:
    scheme, curve = _read_scheme(reader), CURVE_FOR_ID.get(reader.u16())
    if curve is None:
        raise malformed("a curve other than P-256 and P-384")
    if reader.u16() != _NULL:
        raise malformed("a key-derivation scheme on a signing key")
    return scheme, _point(curve, reader.sized(limit=48), reader.sized(limit=48))


def _point(curve: ec.EllipticCurve, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
    except ValueError as error:
        raise malformed("a point that is not on its curve") from error


def _read_rsa(reader: Reader) -> tuple[int | None, rsa.RSAPublicKey]:
    scheme, bits, exponent = _read_scheme(reader), reader.u16(), reader.u32()
    modulus = int.from_bytes(reader.sized(limit=512), "big")
    if bits not in {2048, 3072, 4096} or modulus.bit_length() != bits:
        raise malformed("an RSA key of a size that we do not accept")
    try:
        # 12.2.3.5: exponent zero stands for 65537.
        return scheme, rsa.RSAPublicNumbers(exponent or 65537, modulus).public_key()
    except ValueError as error:
        raise malformed("an RSA key that is none") from error


_READ_FOR_KIND: dict[int, Callable[[Reader], tuple[int | None, ec.EllipticCurvePublicKey | rsa.RSAPublicKey]]] = {
    Algorithm.ECC: _read_ecc,
    Algorithm.RSA: _read_rsa,
}


def parse_attest(data: bytes) -> TPMAttest:
    """Parse a TPMS_ATTEST (not the TPM2B around it).

    Raises:
        PeerProtocolError: It is none; above all, if it does not begin with the value that only a TPM may sign.
    """
    reader = Reader(data, limit=MAX_STRUCTURE_BYTES)
    if reader.u32() != GENERATED_VALUE:
        raise malformed("a signed structure that no TPM generated")
    kind = reader.u16()
    reader.sized(limit=68)  # qualifiedSigner: who signed is shown by the signature
    extra_data = reader.sized(limit=64)
    clock_ms, reset_count, restart_count = reader.u64(), reader.u32(), reader.u32()
    reader.u8()  # safe: whether the clock may have lost time, which nobody relies on
    reader.u64()  # firmwareVersion, vendor-specific and obfuscated
    if kind not in _READ_FOR_TYPE:
        raise malformed("an attestation of a type that nobody asked for")
    attested = _READ_FOR_TYPE[kind](reader)
    reader.end()
    return TPMAttest(extra_data, clock_ms, reset_count, restart_count, attested)


def _read_certified(reader: Reader) -> Certified:
    name = reader.sized(limit=68)
    reader.sized(limit=68)  # qualifiedName: the path of parents, which fixedParent makes moot
    return Certified(name)


def _read_quoted(reader: Reader) -> Quoted:
    count = reader.u32()
    if count > 8:
        raise malformed("more PCR banks than a TPM has")
    return Quoted(tuple(_read_selection(reader) for _ in range(count)), reader.sized(limit=64))


def _read_selection(reader: Reader) -> PCRSelection:
    bank, bitmap = reader.u16(), reader.take(reader.u8_at_most(4))
    return PCRSelection(bank, tuple(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> (i % 8) & 1))


def _read_nv(reader: Reader) -> NVCertified:
    return NVCertified(reader.sized(limit=68), reader.u16(), reader.sized(limit=2048))


_READ_FOR_TYPE: dict[int, Callable[[Reader], Certified | Quoted | NVCertified]] = {
    AttestType.CERTIFY: _read_certified,
    AttestType.QUOTE: _read_quoted,
    AttestType.NV: _read_nv,
}


def parse_signature(data: bytes) -> TPMSignature:
    """Parse a TPMT_SIGNATURE of an elliptic-curve key.

    Raises:
        PeerProtocolError: It is none.
    """
    reader = Reader(data, limit=MAX_STRUCTURE_BYTES)
    scheme, hash_algorithm = reader.u16(), reader.u16()
    if hash_algorithm not in HASH_FOR_ALGORITHM:
        raise malformed("a signature with a hash that we do not accept")
    if scheme != Algorithm.ECDSA:
        raise malformed("a signature of a scheme that we do not accept")
    r, s = reader.sized(limit=66), reader.sized(limit=66)
    reader.end()
    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    return TPMSignature(hash_algorithm, der)


def verify_signature(public: TPMPublic, signature: TPMSignature, message: bytes) -> None:
    """Verify that the key signed `message`.

    Raises:
        PeerProtocolError: It did not.
    """
    if not isinstance(public.key, ec.EllipticCurvePublicKey):
        raise malformed("a signature of another scheme than its key's")
    try:
        public.key.verify(signature.signature, message, ec.ECDSA(HASH_FOR_ALGORITHM[signature.hash_algorithm]))
    except InvalidSignature:
        raise PeerProtocolError(
            "attestation.bad_signature",
            "A TPM's attestation is not signed by the key that it names.",
            next_step="The evidence counts for nothing; ask the node for it anew.",
        ) from None
