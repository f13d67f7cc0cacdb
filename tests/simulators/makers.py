"""Makers of virtual hardware: roots of the tests' own, under names that no real maker has."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MADE = datetime(2024, 1, 1, tzinfo=UTC)
LASTS = timedelta(days=365 * 20)


class Maker:
    """A root that signs for what it makes.

    Args:
        name: Its common name.
        not_after: When its root ends.
    """

    def __init__(self, name: str, *, not_after: datetime = MADE + LASTS) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = common_name(name)
        self.root = certify(self._name, self._name, self._key.public_key(), self._key, ca=True, not_after=not_after)

    def issue(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        ca: bool,
        facts: Mapping[x509.ObjectIdentifier, bytes] | None = None,
    ) -> x509.Certificate:
        """Sign a certificate for `key`; `facts` become extensions."""
        return certify(subject, self._name, key, self._key, ca=ca, facts=facts)


@functools.cache
def card_maker() -> Maker:
    """Whose root the tests pin for PIV cards."""
    return Maker("Virtual PIV Root (test)")


@functools.cache
def authenticator_maker() -> Maker:
    """Whose root the tests pin for FIDO2 authenticators."""
    return Maker("Virtual FIDO2 Root (test)")


def certify(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool | None,
    facts: Mapping[x509.ObjectIdentifier, bytes] | None = None,
    not_after: datetime = MADE + LASTS,
) -> x509.Certificate:
    """Sign a certificate; `ca` None leaves basic constraints out, as Yubico's cards do."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(MADE).not_valid_after(not_after)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    for oid, value in (facts or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return builder.sign(signer, hashes.SHA256())


def common_name(name: str) -> x509.Name:
    """A name of one part."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
