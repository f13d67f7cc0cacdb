"""The maker of the virtual PIV cards: its root, and what its cards say about the keys they made.

Extensions and their encodings follow developers.yubico.com/PIV/Introduction/PIV_attestation.html; the names are ours,
so that no test certificate can be taken for a real maker's.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

OID_FIRMWARE = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.3")
OID_SERIAL = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.7")
OID_POLICIES = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.8")
OID_FORM_FACTOR = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.9")
_MADE = datetime(2024, 1, 1, tzinfo=UTC)
_LASTS = timedelta(days=365 * 20)


class CardMaker:
    """A root that signs the attestation certificate of every card it makes."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.root = _certificate(self._name, self._name, self._key.public_key(), self._key, ca=True)

    def issue(self, common_name: str, key: ec.EllipticCurvePublicKey, *, ca: bool = True) -> x509.Certificate:
        """Sign a certificate for `key`."""
        return _certificate(_name(common_name), self._name, key, self._key, ca=ca)


@functools.cache
def test_maker() -> CardMaker:
    """The one maker whose root the tests pin."""
    return CardMaker("Virtual PIV Root (test)")


def issue_attestation_key(serial: int, maker: CardMaker | None = None) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A card's F9 key and its certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (maker or test_maker()).issue(_attestation_name(serial), key.public_key())
    return key, certificate.public_bytes(Encoding.DER)


def attest(
    attestation_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    *,
    slot: int,
    serial: int,
    firmware: tuple[int, int, int],
    policies: tuple[int, int],
) -> bytes:
    """The certificate, DER, with which a card says that it made `key` in `slot`."""
    issuer = _name(_attestation_name(serial))
    # DER INTEGER: a leading zero keeps it positive.
    serial_integer = serial.to_bytes((serial.bit_length() + 8) // 8, "big")
    facts = {
        OID_FIRMWARE: bytes(firmware),
        OID_SERIAL: bytes([0x02, len(serial_integer)]) + serial_integer,
        OID_POLICIES: bytes(policies),
        OID_FORM_FACTOR: b"\x01",
    }
    subject = _name(f"Virtual PIV Attestation {slot:02x}")
    return _certificate(subject, issuer, key, attestation_key, ca=False, facts=facts).public_bytes(Encoding.DER)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
    facts: dict[x509.ObjectIdentifier, bytes] | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_MADE)
        .not_valid_after(_MADE + _LASTS)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for oid, value in (facts or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _attestation_name(serial: int) -> str:
    return f"Virtual PIV Attestation {serial}"


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
