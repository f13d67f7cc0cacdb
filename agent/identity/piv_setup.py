"""Making a key on a PIV card, and leaving behind none of the values that every card has when it is new."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.core.errors import OperatorError
from agent.identity.key import Person
from agent.identity.piv_cards import Card
from agent.identity.piv_session import (
    DEFAULT_MANAGEMENT_KEY,
    Algorithm,
    ManagementAlgorithm,
    PINPolicy,
    PIVSession,
    Slot,
    algorithm_for,
    blocked,
    management_key_refused,
)
from agent.identity.signing import SigningKey
from agent.statements.roots import hash_for

log = structlog.get_logger()

FACTORY_PIN, FACTORY_PUK = "123456", "12345678"
_AES_MANAGEMENT_KEY_SINCE: Final = (5, 4, 2)  # Yubico's firmware
# RFC 5280 4.1.2.5: a date that means "no end". The certificate only carries the key; nobody trusts it for its dates.
_NO_BEGINNING, _NO_END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def make_key(
    card: Card, slot: Slot, algorithm: Algorithm, person: Person, *, touch_needed: bool, management_key: Path | None
) -> None:
    """Make a key in `slot` and lay a self-signed certificate beside it, so that other tools find it too.

    Args:
        card: Held by the caller.
        slot: Must be empty.
        algorithm: On which curve.
        person: Who knows, or chooses, PIN and PUK.
        touch_needed: Whether the key will want a touch.
        management_key: File with the card's management key, in hexadecimal; None where the card is new or keeps it.
    """
    session = card.session
    pin_needed = slot is not Slot.CARD_AUTHENTICATION
    # The PIN lives as long as this call: the card wants it again before the first signature.
    pin = _pin_for(card, person) if pin_needed or management_key is None else None
    if pin is not None:
        session.verify_pin(pin)
    _open_management(session, management_key)
    pin_policy = PINPolicy.ALWAYS if pin_needed else PINPolicy.NEVER
    public_key = session.generate_key(slot, algorithm, pin_policy=pin_policy, touch_needed=touch_needed)
    if pin is not None and pin_needed:
        session.verify_pin(pin)
    if touch_needed:
        person.ask_touch(card.device)
    session.put_certificate(slot, _self_signed(SlotSigner(session, slot, public_key)))
    log.info("key_made", device=card.device, slot=f"{slot:02x}", touch_needed=touch_needed)


def check_attempts(card: Card, person: Person) -> int | None:
    """Make sure that a wrong PIN would not block the card; return the attempts left, None where the card is silent.

    Raises:
        HardwareError: The PIN is blocked already.
        OperatorError: One attempt is left and the person does not insist (`identity.last_pin_attempt`).
    """
    attempts = card.session.pin_attempts()
    if attempts == 0:
        raise blocked("PIN")
    if attempts == 1 and not person.risks_last_attempt:
        raise OperatorError(
            "identity.last_pin_attempt",
            f"The {card.device} has one PIN attempt left; a wrong PIN would block it.",
            next_step="Make sure of the PIN, then repeat the command with `--force`; or set a new PIN by the PUK.",
            attempts_remaining=attempts,
        )
    return attempts


def ask_new_pin(person: Person, device: str, *, factory: str) -> str:
    """Ask for a new PIN or PUK.

    Raises:
        OperatorError: It is the factory's (`identity.factory_pin`).
    """
    new = person.ask_new_pin(device)
    if new == factory:
        raise OperatorError(
            "identity.factory_pin",
            "This is the value that every new card has, so it protects nothing; the card was not changed.",
            next_step="Choose another one, of six to eight characters.",
        )
    return new


class SlotSigner:
    """Signs with the key in one slot; whatever the slot's policy wants is done by the caller before."""

    def __init__(self, session: PIVSession, slot: Slot, public_key: ec.EllipticCurvePublicKey) -> None:
        self._session = session
        self._slot = slot
        self._public_key = public_key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """ECDSA over the curve's own hash of `message`, DER."""
        digest = hashes.Hash(hash_for(self._public_key))
        digest.update(message)
        return self._session.sign(self._slot, algorithm_for(self._public_key), digest.finalize())


def _pin_for(card: Card, person: Person) -> str:
    if not card.session.pin_is_default():
        attempts = check_attempts(card, person)
        return person.ask_pin(card.device, attempts_remaining=attempts)
    new = ask_new_pin(person, card.device, factory=FACTORY_PIN)
    if card.session.puk_is_default():
        puk = ask_new_pin(person, f"the PUK of {card.device}", factory=FACTORY_PUK)
        card.session.change_puk(FACTORY_PUK, puk)
    card.session.change_pin(FACTORY_PIN, new)
    return new


def _open_management(session: PIVSession, path: Path | None) -> None:
    if path is not None:
        _authenticate(session, _load_management_key(path))
        return
    if session.has_stored_management_key():
        try:
            _authenticate(session, session.load_management_key())
        except OperatorError:
            # Power was cut between storing the new key and setting it: the factory's still holds.
            log.warning("stored_management_key_refused")
        else:
            return
    if not session.has_extensions:  # the maker's own key, which only its issuer knows
        raise management_key_refused()
    _authenticate(session, DEFAULT_MANAGEMENT_KEY)
    _replace_management_key(session)


def _replace_management_key(session: PIVSession) -> None:
    modern = session.version is not None and session.version >= _AES_MANAGEMENT_KEY_SINCE
    algorithm = ManagementAlgorithm.AES256 if modern else ManagementAlgorithm.TDES
    key = secrets.token_bytes(algorithm.key_bytes)
    session.store_management_key(key)
    session.set_management_key(key, algorithm)


def _authenticate(session: PIVSession, key: bytes) -> None:
    algorithm = session.management_algorithm(key)
    if len(key) != algorithm.key_bytes:
        raise management_key_refused()
    session.authenticate(key, algorithm)


def _load_management_key(path: Path) -> bytes:
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise OperatorError(
            "identity.management_key_file",
            f"The file {path} cannot be read as a management key.",
            next_step="It must hold 32, 48 or 64 hexadecimal digits.",
        ) from error


def _self_signed(signer: SlotSigner) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secur-e-health node")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(signer.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(_NO_BEGINNING).not_valid_after(_NO_END)
    # The hash that goes with the curve, as `hash_for` has it; x509 wants its exact type.
    digest = hashes.SHA384() if signer.public_key().key_size == 384 else hashes.SHA256()
    return builder.sign(SigningKey(signer), digest)
