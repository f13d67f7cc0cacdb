"""What a virtual PIV card says about the keys it made.

Extensions and their encodings follow developers.yubico.com/PIV/Introduction/PIV_attestation.html.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.simulators.makers import Maker, card_maker, certify, common_name

OID_FIRMWARE = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.3")
OID_SERIAL = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.7")
OID_POLICIES = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.8")
OID_FORM_FACTOR = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.9")


def issue_attestation_key(serial: int, maker: Maker | None = None) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A card's F9 key and its certificate, DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = common_name(_attestation_name(serial))
    certificate = (maker or card_maker()).issue(name, key.public_key(), ca=True)
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
    # DER INTEGER: a leading zero keeps it positive.
    serial_integer = serial.to_bytes((serial.bit_length() + 8) // 8, "big")
    facts = {
        OID_FIRMWARE: bytes(firmware),
        OID_SERIAL: bytes([0x02, len(serial_integer)]) + serial_integer,
        OID_POLICIES: bytes(policies),
        OID_FORM_FACTOR: b"\x01",
    }
    subject = common_name(f"Virtual PIV Attestation {slot:02x}")
    issuer = common_name(_attestation_name(serial))
    return certify(subject, issuer, key, attestation_key, ca=None, facts=facts).public_bytes(Encoding.DER)


def _attestation_name(serial: int) -> str:
    return f"Virtual PIV Attestation {serial}"
