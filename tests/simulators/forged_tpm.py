"""A TPM in an attacker's hand: the same structures and signatures, with every field free to lie.

It needs no TPM library, so attacks on the verifier run in microseconds; `swtpm.py` shows that the honest form is real.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from agent.attestation.binding import Exchange
from agent.attestation.credential import Credential
from agent.attestation.evidence import Evidence
from agent.attestation.makers import TrustStore
from agent.attestation.structures import GENERATED_VALUE, AttestType, Attribute
from agent.statements.roots import EvidenceClass, KeyKind

BOUND = Attribute.FIXED_TPM | Attribute.FIXED_PARENT | Attribute.SENSITIVE_DATA_ORIGIN
EK_USAGE, PLATFORM_USAGE = x509.ObjectIdentifier("2.23.133.8.1"), x509.ObjectIdentifier("2.23.133.8.2")
_DAY = datetime.timedelta(days=1)
_SHA256, _SHA384, _NULL = 0x000B, 0x000C, 0x0010


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


@dataclass
class Maker:
    """A certificate authority for EKs."""

    name: str = "Maker of Tests"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    is_authority: bool = True
    path_length: int | None = None

    def __post_init__(self) -> None:
        self.certificate = self.certify(self.name, self.key.public_key(), authority=self.is_authority)

    def store(self, evidence: EvidenceClass = EvidenceClass.HARDWARE) -> TrustStore:
        return TrustStore(evidence, (self.certificate,))

    def subordinate(self, name: str, *, path_length: int | None = None, authority: bool = True) -> Maker:
        below = Maker(name)
        below.path_length = path_length
        below.certificate = self.certify(name, below.key.public_key(), authority=authority, path_length=path_length)
        return below

    def certify(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        *,
        authority: bool = False,
        usages: Iterable[x509.ObjectIdentifier] = (),
        names: Iterable[x509.GeneralName] = (),
        begins_in: datetime.timedelta = -_DAY,
        ends_in: datetime.timedelta = 3650 * _DAY,
        path_length: int | None = None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        limit = (path_length if path_length is not None else self.path_length) if authority else None
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins_in)
            .not_valid_after(now + ends_in)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=limit), critical=True)
        )
        if usages := list(usages):
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names := list(names):
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self.key, hashes.SHA256())


def ecc_public(
    key: ec.EllipticCurvePublicKey, attributes: Attribute, *, name_algorithm: int = _SHA256, storage_bits: int = 0
) -> bytes:
    """A TPMT_PUBLIC with any attributes."""
    numbers, size = key.public_numbers(), (key.key_size + 7) // 8
    symmetric = struct.pack(">HHH", 0x0006, storage_bits, 0x0043) if storage_bits else struct.pack(">H", _NULL)
    scheme = struct.pack(">H", _NULL) if storage_bits else struct.pack(">HH", 0x0018, _SHA256)
    curve = {256: 0x0003, 384: 0x0004}[key.key_size]
    return (
        struct.pack(">HHI", 0x0023, name_algorithm, attributes)
        + sized(b"")
        + symmetric
        + scheme
        + struct.pack(">HH", curve, _NULL)
        + sized(numbers.x.to_bytes(size, "big"))
        + sized(numbers.y.to_bytes(size, "big"))
    )


def rsa_public(key: rsa.RSAPublicKey, attributes: Attribute) -> bytes:
    """A TPMT_PUBLIC of an RSA storage key."""
    return (
        struct.pack(">HHI", 0x0001, _SHA256, attributes)
        + sized(b"")
        + struct.pack(">HHH", 0x0006, 128, 0x0043)
        + struct.pack(">HHI", _NULL, key.key_size, 0)
        + sized(key.public_numbers().n.to_bytes(key.key_size // 8, "big"))
    )


def name_of(public: bytes) -> bytes:
    (algorithm,) = struct.unpack(">H", public[2:4])
    digest = hashlib.sha384 if algorithm == _SHA384 else hashlib.sha256
    return struct.pack(">H", algorithm) + digest(public).digest()


def attest(kind: int, extra_data: bytes, attested: bytes, *, magic: int = GENERATED_VALUE) -> bytes:
    """A TPMS_ATTEST."""
    return (
        struct.pack(">IH", magic, kind)
        + sized(b"\x00\x0b" + bytes(32))
        + sized(extra_data)
        + struct.pack(">QIIBQ", 1000, 7, 1, 1, 42)
        + attested
    )


def quote_info(registers: Mapping[int, bytes], *, bank: int = _SHA256, digest: bytes | None = None) -> bytes:
    """The attested part of a quote."""
    bitmap = bytearray(3)
    for register in registers:
        bitmap[register // 8] |= 1 << register % 8
    values = b"".join(registers[register] for register in sorted(registers))
    return struct.pack(">IHB", 1, bank, 3) + bytes(bitmap) + sized(digest or hashlib.sha256(values).digest())


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """A TPMT_SIGNATURE."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", 0x0018, _SHA256) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


class ForgedTPM:
    """EK, AK and node key, honest until told otherwise.

    Args:
        maker: Who vouches for the EK.
        ak_attributes, node_attributes: What their public areas claim.
    """

    def __init__(
        self,
        maker: Maker,
        *,
        ek_attributes: Attribute = BOUND | Attribute.RESTRICTED | Attribute.DECRYPT | Attribute.USER_WITH_AUTH,
        ak_attributes: Attribute = BOUND | Attribute.RESTRICTED | Attribute.SIGN,
        node_attributes: Attribute = BOUND | Attribute.SIGN,
    ) -> None:
        self.ek = ec.generate_private_key(ec.SECP384R1())
        self.ak, self.node = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.ek_certificate = maker.certify("ek", self.ek.public_key(), usages=[EK_USAGE])
        self.ek_public = ecc_public(self.ek.public_key(), ek_attributes, name_algorithm=_SHA384, storage_bits=256)
        self.ak_public = ecc_public(self.ak.public_key(), ak_attributes)
        self.node_public = ecc_public(self.node.public_key(), node_attributes)
        self.registers = {register: hashlib.sha256(bytes([register])).digest() for register in range(16)}
        self.event_log = b""

    @property
    def spki(self) -> bytes:
        return self.node.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def qualifying_data(self, exchange: Exchange) -> bytes:
        return exchange.qualifying_data(name_of(self.ek_public), name_of(self.node_public))

    def evidence(self, exchange: Exchange, **changes: bytes) -> Evidence:
        """Honest evidence; `changes` replace parts, and an `info` that is replaced is signed anew."""
        extra = self.qualifying_data(exchange)
        certified = sized(name_of(self.node_public)) + sized(b"\x00\x0b" + bytes(32))
        parts = {
            "ek_certificate": self.ek_certificate.public_bytes(Encoding.DER),
            "ek_public": self.ek_public,
            "ak_public": self.ak_public,
            "node_public": self.node_public,
            "certify_info": attest(AttestType.CERTIFY, extra, certified),
            "quote_info": attest(AttestType.QUOTE, extra, quote_info(self.registers)),
            "registers": b"".join(self.registers.values()),
            "event_log": self.event_log,
        }
        parts.update({name: value for name, value in changes.items() if not name.endswith("_signature")})
        for what in ("certify", "quote"):
            parts[f"{what}_signature"] = sign(self.ak, parts[f"{what}_info"])
        parts.update(changes)
        return Evidence(KeyKind.TPM, self.spki, parts)

    def open_credential(self, credential: Credential, *, name: bytes | None = None) -> bytes | None:
        """What TPM2_ActivateCredential does for the key called `name` (the AK's when None); None when it refuses."""
        name = name or name_of(self.ak_public)
        blob, seed_point = credential.blob[2:], credential.encrypted_seed[2:]
        x, y = seed_point[2:50], seed_point[52:100]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP384R1())
        ours = self.ek.public_key().public_numbers().x.to_bytes(48, "big")
        shared = self.ek.exchange(ec.ECDH(), point.public_key())
        seed = ConcatKDFHash(hashes.SHA384(), 48, b"IDENTITY\x00" + x + ours).derive(shared)
        integrity, identity = blob[2:50], blob[50:]
        if not hmac.compare_digest(
            hmac.digest(_kdfa(seed, b"INTEGRITY", b"", 48), identity + name, "sha384"), integrity
        ):
            return None
        decryptor = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", name, 32)), CFB(bytes(16))).decryptor()
        return (decryptor.update(identity) + decryptor.finalize())[2:]


def _kdfa(seed: bytes, label: bytes, context: bytes, size: int) -> bytes:
    return KBKDFHMAC(
        hashes.SHA384(), Mode.CounterMode, size, 4, 4, CounterLocation.BeforeFixed, label, context, None
    ).derive(seed)


def now_s() -> int:
    return int(time.time())


@dataclass
class BootLog:
    """A crypto-agile event log, and the registers that follow from it."""

    banks: Mapping[int, int] = field(default_factory=lambda: {0x0004: 20, _SHA256: 32, _SHA384: 48})
    events: bytes = b""
    registers: dict[int, bytes] = field(default_factory=dict)

    def measure(self, register: int, kind: int, data: bytes) -> BootLog:
        """Measure `data` into a register, as firmware does."""
        digests = {bank: _digest(bank, data) for bank in self.banks}
        before = self.registers.get(register, bytes(32))
        self.registers[register] = hashlib.sha256(before + digests[_SHA256]).digest()
        return self.append(register, kind, digests, data)

    def append(self, register: int, kind: int, digests: Mapping[int, bytes], data: bytes) -> BootLog:
        """Write an event without measuring anything."""
        listed = b"".join(struct.pack("<H", bank) + digest for bank, digest in digests.items())
        head = struct.pack("<III", register, kind, len(digests))
        self.events += head + listed + struct.pack("<I", len(data)) + data
        return self

    def encoded(self) -> bytes:
        """The whole log."""
        banks = b"".join(struct.pack("<HH", bank, size) for bank, size in self.banks.items())
        header = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(self.banks)) + banks + b"\x00"
        return struct.pack("<II", 0, 3) + bytes(20) + struct.pack("<I", len(header)) + header + self.events


def _digest(bank: int, data: bytes) -> bytes:
    return hashlib.new({0x0004: "sha1", _SHA256: "sha256", _SHA384: "sha384"}[bank], data).digest()
