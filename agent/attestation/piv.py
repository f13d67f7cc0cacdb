"""Evidence of a PIV key: the card's maker, or its issuer, vouches for it, and the key itself signs now.

A Yubico card certifies with its F9 key that a slot's key was made on it; any other card shows the certificate of the
authority that issued it.

Source: developers.yubico.com/PIV/Introduction/PIV_attestation.html; FIPS 201-3, 4.2 for issued certificates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.attestation.evidence import Evidence
from agent.attestation.makers import UNREADABLE_CERTIFICATE, TrustStore, chains_to, check_certifies, parse_certificate
from agent.attestation.possession import verify_possession
from agent.attestation.reader import malformed
from agent.core.errors import PeerProtocolError
from agent.statements.roots import EvidenceClass, KeyKind, RootKey

OLDEST_FIRMWARE: Final = (4, 3, 5)
"""Earlier Yubico firmware made weak RSA keys (CVE-2017-15361), the attestation keys of a few cards among them."""
PIN_NEVER, PIN_ONCE, PIN_ALWAYS = 1, 2, 3
_SLOT_WITHOUT_PIN = 0x9E
_FIRMWARE = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.3")
_SERIAL = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.7")
_POLICIES = x509.ObjectIdentifier("1.3.6.1.4.1.41482.3.8")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a Yubico card says about itself and the key.

    Args:
        serial: The card's, or None where its maker leaves it out.
        firmware: Of the card.
        slot: Where the key is.
        pin_policy: When it wants the PIN.
        touch_needed: Whether it wants a touch.
    """

    serial: int | None
    firmware: tuple[int, int, int]
    slot: int
    pin_policy: int
    touch_needed: bool


@dataclass(frozen=True, slots=True)
class PIVAppraisal:
    """A key that lives on a card.

    Args:
        root: The key, with the class of its evidence, for the node's record.
        facts: What the card itself says; None where only its issuer vouches.
    """

    root: RootKey
    facts: CardFacts | None


def appraise_piv(
    evidence: Evidence, qualifying_data: bytes, stores: tuple[TrustStore, ...], *, now_s: int
) -> PIVAppraisal:
    """Appraise a PIV key's evidence.

    Args:
        evidence: As parsed.
        qualifying_data: (32,), what the asker bound it to.
        stores: Makers and issuers of cards, best class first.
        now_s: Seconds since 1970.

    Raises:
        PeerProtocolError: Any step fails.
    """
    # 1. The right kind, with one of the two kinds of certificate.
    if evidence.kind is not KeyKind.PIV:
        raise malformed("another kind of key than a card's")
    is_attested = "attestation" in evidence.parts
    certificate = parse_certificate(evidence.part("attestation" if is_attested else "certificate"))
    sent = (parse_certificate(evidence.part("attestation_issuer")),) if is_attested else ()
    # 2. A known maker or issuer must stand behind it.
    evidence_class = _class_of(certificate, sent, stores, now_s)
    # 3. It must be about the key in question.
    check_certifies(certificate, evidence.public_key)
    # 4. The card must be one whose word counts, and must ask for the PIN where the slot promises that.
    facts = _check_facts(_parse_facts(certificate)) if is_attested else None
    # 5. The key must be in its holder's hands now.
    root = RootKey(KeyKind.PIV, evidence.public_key, evidence_class)
    verify_possession(evidence, root, qualifying_data)
    return PIVAppraisal(root, facts)


def _class_of(
    certificate: x509.Certificate, sent: tuple[x509.Certificate, ...], stores: tuple[TrustStore, ...], now_s: int
) -> EvidenceClass:
    for store in stores:
        if chains_to(store, certificate, sent, now_s=now_s):
            return store.evidence
    raise PeerProtocolError(
        "attestation.unknown_card_maker",
        "No known maker or issuer of cards vouches for this key.",
        next_step="If the card is genuine, the consortium may add its maker's root; otherwise use another card.",
    )


def _check_facts(facts: CardFacts) -> CardFacts:
    if facts.firmware < OLDEST_FIRMWARE:
        raise _not_accepted("its firmware is known to be weak (CVE-2017-15361)")
    if facts.slot != _SLOT_WITHOUT_PIN and facts.pin_policy not in (PIN_ONCE, PIN_ALWAYS):
        raise _not_accepted("its key signs without a PIN, against the promise of its slot")
    return facts


def _parse_facts(certificate: x509.Certificate) -> CardFacts:
    firmware = _extension(certificate, _FIRMWARE)
    policies = _extension(certificate, _POLICIES)
    serial = _extension(certificate, _SERIAL)
    if firmware is None or len(firmware) != 3 or policies is None or len(policies) != 2:
        raise malformed("a card's attestation without firmware or policies")
    # The subject ends in the slot: "YubiKey PIV Attestation 9a".
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        slot = int(str(names[0].value)[-2:], 16)
    except (IndexError, ValueError) as error:
        raise malformed("a card's attestation without a slot") from error
    return CardFacts(
        serial=None if serial is None else _parse_integer(serial),
        firmware=(firmware[0], firmware[1], firmware[2]),
        slot=slot,
        pin_policy=policies[0],
        touch_needed=policies[1] != 1,
    )


def _parse_integer(der: bytes) -> int:
    if len(der) < 3 or der[0] != 0x02 or der[1] != len(der) - 2:  # X.690 8.3: INTEGER, short form
        raise malformed("a card's serial number that is no number")
    return int.from_bytes(der[2:], "big", signed=True)


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE_CERTIFICATE as error:
        raise malformed("a certificate with extensions that cannot be read") from error
    return value.value if isinstance(value, x509.UnrecognizedExtension) else None


def _not_accepted(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "attestation.card_not_accepted",
        f"The card is not accepted: {what}.",
        next_step="Use another card, or make the key anew with `seh-agent key init`.",
    )
