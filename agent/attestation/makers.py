"""Who made a TPM: the chain from its EK certificate to a pinned maker, and what class of evidence that is.

Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5; RFC 5280, 4.2 and 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.attestation.reader import malformed
from agent.attestation.roca import is_roca
from agent.core.errors import PeerProtocolError
from agent.statements.roots import EvidenceClass

E = TypeVar("E", bound=x509.ExtensionType)

UNREADABLE_CERTIFICATE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises over a certificate that a stranger bent; only some of it is a ValueError."""
MAX_CERTIFICATE_BYTES = 8192
MAX_CHAIN = 6
_EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")  # tcg-at-tpmManufacturer


@dataclass(frozen=True, slots=True)
class TrustStore:
    """The makers of one class.

    Args:
        evidence: What a chain to one of them is worth.
        roots: Trusted as they are.
        intermediates: Known, but trusted only through a root.
    """

    evidence: EvidenceClass
    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()


def build_store(evidence: EvidenceClass, pems: list[bytes]) -> TrustStore:
    """Sort a maker's certificates into roots (signed by themselves) and intermediates.

    Args:
        evidence: The store's class.
        pems: Each may hold several certificates.

    Raises:
        ValueError: One cannot be read.
    """
    certificates = [certificate for pem in pems for certificate in x509.load_pem_x509_certificates(pem)]
    roots = tuple(certificate for certificate in certificates if certificate.issuer == certificate.subject)
    return TrustStore(evidence, roots, tuple(certificate for certificate in certificates if certificate not in roots))


def parse_certificate(der: bytes) -> x509.Certificate:
    """Parse one certificate out of a TPM's NV memory, which some makers pad at the end.

    Raises:
        PeerProtocolError: It is none.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise malformed("a certificate larger than any maker's")
    try:
        certificate = x509.load_der_x509_certificate(_unpadded(der))
        # Parsed on first use only, so that use is here, where a failure is expected.
        _ = (certificate.issuer, certificate.subject, certificate.public_key())
        _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except UNREADABLE_CERTIFICATE as error:
        raise malformed("a certificate that is none") from error
    return certificate


def _unpadded(der: bytes) -> bytes:
    # X.690 8.1.3.5: SEQUENCE (0x30) with a two-byte length (0x82); what follows its end is the NV index's padding.
    if len(der) > 4 and der[:2] == b"\x30\x82":
        return der[: 4 + int.from_bytes(der[2:4], "big")]
    return der


def verify_ek_certificate(
    certificate: x509.Certificate, sent: tuple[x509.Certificate, ...], stores: tuple[TrustStore, ...], *, now_s: int
) -> EvidenceClass:
    """Verify that a pinned maker issued an EK certificate.

    Args:
        certificate: Of the EK.
        sent: Intermediates that the box sent along; they are only a help.
        stores: Best class first; a `test` store is among them only where the consortium's metadata says so.
        now_s: Seconds since 1970.

    Returns:
        The class of the store whose root the chain ends in.

    Raises:
        PeerProtocolError: No chain, or the certificate is not one for an EK.
    """
    _check_ek_profile(certificate)
    _check_validity(certificate, now_s)
    for store in stores:
        if chains_to(store, certificate, sent, now_s=now_s):
            return store.evidence
    raise PeerProtocolError(
        "attestation.unknown_maker",
        f"No known maker of TPMs vouches for this box's TPM (its certificate names {_issuer_text(certificate)}).",
        next_step="If the maker is genuine, the consortium may add its root; a site may also vouch for this one TPM.",
    )


def chains_to(store: TrustStore, leaf: x509.Certificate, sent: tuple[x509.Certificate, ...], *, now_s: int) -> bool:
    """Whether a chain of valid certificates leads from `leaf` to one of the store's roots.

    Args:
        store: Whose roots count.
        leaf: What the chain begins with.
        sent: Intermediates that the leaf's holder sent along; they are only a help.
        now_s: Seconds since 1970.
    """
    current = leaf
    if not _is_valid(leaf, now_s):
        return False
    for depth in range(MAX_CHAIN):
        if any(_issued(current, root, depth, now_s) for root in store.roots):
            return True
        pool = (*store.intermediates, *sent)
        following = next((above for above in pool if _issued(current, above, depth, now_s)), None)
        if following is None or following == current:
            return False
        current = following
    return False


def _issued(below: x509.Certificate, above: x509.Certificate, depth: int, now_s: int) -> bool:
    """Whether the authority `above`, with `depth` authorities beneath it in the chain, issued `below`."""
    if below.issuer != above.subject or not _may_issue(above, depth) or not _is_valid(above, now_s):
        return False
    try:
        below.verify_directly_issued_by(above)
    except (*UNREADABLE_CERTIFICATE, TypeError, InvalidSignature):
        return False
    return True


def _may_issue(authority: x509.Certificate, depth: int) -> bool:
    constraints = _extension(authority, x509.BasicConstraints)
    usage = _extension(authority, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    return constraints.path_length is None or constraints.path_length >= depth


def _check_ek_profile(certificate: x509.Certificate) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise _not_for_an_ek("it is an authority's own")
    usages = _extension(certificate, x509.ExtendedKeyUsage)
    # A platform certificate speaks about the same key, but vouches for the mainboard.
    if usages is not None and _EK_CERTIFICATE_USAGE not in usages:
        raise _not_for_an_ek("it was issued for another use")
    # Makers of cards and security keys stand in the same stores, and certify keys that decrypt: with one of those as
    # its EK, a box could hold all other keys in a file.
    if usages is None and not _names_a_tpm(certificate):
        raise _not_for_an_ek("nothing in it says that it is about a TPM")
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and is_roca(key.public_numbers().n):
        raise _not_for_an_ek("its RSA key comes from a generator that is broken (ROCA, CVE-2017-15361)")


def _names_a_tpm(certificate: x509.Certificate) -> bool:
    # EK Credential Profile 2.5, 3.1.2: the subject alternative name tells the TPM's manufacturer, model and version.
    names = _extension(certificate, x509.SubjectAlternativeName)
    found = [] if names is None else names.get_values_for_type(x509.DirectoryName)
    return any(name.get_attributes_for_oid(_TPM_MANUFACTURER) for name in found)


def check_certifies(certificate: x509.Certificate, spki: bytes) -> None:
    """Check that the certificate is about the key with this SubjectPublicKeyInfo (DER).

    Raises:
        PeerProtocolError: It is about another key.
    """
    if certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
        raise _not_for_an_ek("it is about another key than the one that was sent")


def _is_valid(certificate: x509.Certificate, now_s: int) -> bool:
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return begins <= now_s <= ends


def _check_validity(certificate: x509.Certificate, now_s: int) -> None:
    if not _is_valid(certificate, now_s):
        raise _not_for_an_ek("it is out of date")


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE_CERTIFICATE as error:
        raise malformed("a certificate with extensions that cannot be read") from error


def _issuer_text(certificate: x509.Certificate) -> str:
    try:
        return certificate.issuer.rfc4514_string()[:120] or "nobody"
    except ValueError:
        return "a name that cannot be read"


def _not_for_an_ek(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "attestation.bad_ek_certificate",
        f"The TPM's certificate does not count: {what}.",
        next_step="The box cannot join with this TPM; show this to the consortium.",
    )
