"""Keys on a PIV smartcard: made on the card, used over PC/SC.

`piv:<serial or reader>?slot=9e`: the card's serial number (digits), or part of a reader's name, or nothing where there
is only one card. The slot says who must be there: 9E signs by itself, 9A and 9C want the PIN for every signature.
Further options: `curve=p384`, `touch=always` and `management-key=<file>` count when the key is made.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote

import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.attestation.possession import POSSESSION_TYPE
from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.identity import pcsc
from agent.identity.apdu import SW, APDUError
from agent.identity.key import (
    Capabilities,
    FoundDevice,
    HardwareKey,
    Person,
    Presence,
    PresenceState,
    foreign_key,
    no_evidence,
    parse_key_uri,
)
from agent.identity.piv_cards import Card, hold_card, hold_only_card, holds_key, slot_key, visit_cards
from agent.identity.piv_session import Algorithm, PIVSession, Slot, blocked
from agent.identity.piv_setup import FACTORY_PIN, SlotSigner, ask_new_pin, check_attempts, make_key
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import KeyKind, hash_for, public_key_bytes

log = structlog.get_logger()

_Value = TypeVar("_Value")

_SLOTS: Final = {"9a": Slot.AUTHENTICATION, "9c": Slot.SIGNATURE, "9e": Slot.CARD_AUTHENTICATION}
_CURVES: Final = {"p256": Algorithm.P256, "p384": Algorithm.P384}
_TOUCHES: Final = {"never": False, "always": True}
_PRESENCE_TIMEOUT_S = 0.3
_STATE_FOR_CODE: Final = {
    "identity.card_busy": PresenceState.BUSY,
    "identity.no_key": PresenceState.EMPTY,
    "identity.foreign_key": PresenceState.FOREIGN,
    "identity.pin_blocked": PresenceState.BLOCKED,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key is, or is to be made.

    Args:
        target: Serial number, part of a reader's name, or empty.
        slot: Which slot of the card.
        algorithm: Curve of a key to be made.
        touch_needed: Whether a key to be made will want a touch.
        management_key: File with the card's management key, in hexadecimal; None where the card is new or keeps it.
    """

    target: str
    slot: Slot
    algorithm: Algorithm = Algorithm.P256
    touch_needed: bool = False
    management_key: Path | None = None


def find_devices() -> tuple[FoundDevice, ...]:
    """The PIV cards on this box: one entry a slot that holds a key; for a card without any, one for slot 9E."""
    found: list[FoundDevice] = []
    try:
        visit_cards("", lambda card: found.extend(_devices_on(card)))
    except HardwareError as error:
        log.debug("cards_not_listed", error=error)
    return tuple(found)


def open_key(uri: str, person: Person) -> PIVKey:
    """Open the key on the card that `uri` names.

    Raises:
        HardwareError: No such card, or its slot is empty (`identity.no_key`).
        OperatorError: Several cards could be meant (`identity.several_cards`).
    """
    place = parse_uri(uri)
    with hold_only_card(place.target, holds_key(place.slot)) as card:
        return _opened(uri, place, person, card)


def init_key(uri: str, person: Person) -> PIVKey:
    """Make the key on the card that `uri` names, or open the one that is there.

    A card from the factory gets a PIN and a PUK of the person's choice and a random management key, which it keeps for
    the holder of the PIN; so none of the values that everybody knows remains.

    Raises:
        HardwareError: No such card.
        OperatorError: Nobody is there, a PIN is wrong, or the management key is not known.
    """
    place = parse_uri(uri)
    with hold_only_card(place.target, lambda _: None) as card:
        if slot_key(card.session, place.slot) is None:
            make_key(
                card,
                place.slot,
                place.algorithm,
                person,
                touch_needed=place.touch_needed,
                management_key=place.management_key,
            )
        return _opened(uri, place, person, card)


class PIVKey(HardwareKey):
    """A key in one slot of one card.

    Args:
        uri: What named it.
        place: The same, parsed.
        person: Who is asked for PIN and touch.
        public_key: What the slot held when it was opened; another card is refused before it sees a PIN.
        touch_needed: Whether the card wants a touch for every signature.
    """

    kind = KeyKind.PIV

    def __init__(
        self, uri: str, place: Place, person: Person, public_key: ec.EllipticCurvePublicKey, *, touch_needed: bool
    ) -> None:
        self.uri = uri
        self._place = place
        self._person = person
        self._public_key = public_key
        self._pin_needed = place.slot is not Slot.CARD_AUTHENTICATION
        self._touch_needed = touch_needed
        self._lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """It signs; only 9E does so unattended."""
        return Capabilities(signs=True, attests=True, unattended=not (self._pin_needed or self._touch_needed))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self._public_key

    def presence(self) -> Presence:
        """Whether the card would answer now, and how many PIN attempts are left."""
        name = f"PIV card {self._place.target}".rstrip()
        try:
            with self._hold(busy_timeout_s=_PRESENCE_TIMEOUT_S) as card:
                attempts = card.session.pin_attempts() if self._pin_needed else None
                if attempts == 0:
                    raise blocked("PIN")
                return Presence(PresenceState.READY, card.device, attempts_remaining=attempts)
        except SecureHealthError as error:
            attempts = 0 if error.code == "identity.pin_blocked" else None
            state = _STATE_FOR_CODE.get(error.code, PresenceState.ABSENT)
            return Presence(state, name, error.next_step, attempts_remaining=attempts)

    @override
    def attest(self, qualifying_data: bytes) -> Evidence:
        """The card's own certificate for the key (F9), or its issuer's, and a signature over `qualifying_data`."""
        with self._hold() as card:
            parts = _certificates(card.session, self._place.slot)
        if not parts:
            raise no_evidence(self.kind)
        # Certificates are not bound to a moment, so the key itself signs what the verifier asked for.
        parts["possession"] = self._signature_over(pre_authentication_encoding(POSSESSION_TYPE, qualifying_data))
        return Evidence(self.kind, public_key_bytes(self._public_key), parts)

    @override
    def change_pin(self) -> None:
        """Ask for the card's PIN and a new one, and change it."""
        with self._lock, self._hold() as card:
            attempts = check_attempts(card, self._person)
            current = self._person.ask_pin(card.device, attempts_remaining=attempts)
            card.session.change_pin(current, ask_new_pin(self._person, card.device, factory=FACTORY_PIN))
            log.info("pin_changed", device=card.device)

    @override
    def unblock_pin(self) -> None:
        """Ask for the card's PUK and a new PIN, and set it; all attempts come back.

        Raises:
            OperatorError: The PUK is wrong.
            HardwareError: The PUK is blocked too.
        """
        with self._lock, self._hold() as card:
            puk = self._person.ask_pin(f"the PUK of {card.device}", attempts_remaining=None)
            card.session.unblock_pin(puk, ask_new_pin(self._person, card.device, factory=FACTORY_PIN))
            log.info("pin_unblocked", device=card.device)

    def _signature_over(self, message: bytes) -> bytes:
        with self._lock, self._hold() as card:
            if self._pin_needed:
                _show_pin(card, self._person)
            if self._touch_needed:
                self._person.ask_touch(card.device)
            try:
                signature = self._sign(card.session, message)
            finally:
                if self._pin_needed:
                    card.session.forget_pin()
        return signature

    def _sign(self, session: PIVSession, message: bytes) -> bytes:
        try:
            signature = SlotSigner(session, self._place.slot, self._public_key).sign(message)
        except APDUError as error:
            if self._touch_needed and error.sw == SW.SECURITY_STATUS_NOT_SATISFIED:
                raise not_touched() from error
            raise
        # A certificate can be copied onto another card: only the signature shows that the key is there.
        try:
            self._public_key.verify(signature, message, ec.ECDSA(hash_for(self._public_key)))
        except InvalidSignature:
            raise foreign_key("smartcard") from None
        return signature

    def _hold(self, *, busy_timeout_s: float = pcsc.BUSY_TIMEOUT_S) -> AbstractContextManager[Card]:
        """Hold the card with this very key, whichever reader it is in."""
        objection = holds_key(self._place.slot, self._public_key)
        return hold_card(self._place.target, objection, busy_timeout_s=busy_timeout_s)


def parse_uri(uri: str) -> Place:
    """Parse a `piv:` URI.

    Raises:
        OperatorError: An option or its value is unknown.
    """
    parsed = parse_key_uri(uri, options=frozenset({"slot", "curve", "touch", "management-key"}))
    key_file = parsed.options.get("management-key")
    return Place(
        unquote(parsed.target),
        _choice("slot", parsed.options.get("slot", "9e").lower(), _SLOTS),
        _choice("curve", parsed.options.get("curve", "p256"), _CURVES),
        _choice("touch", parsed.options.get("touch", "never"), _TOUCHES),
        None if key_file is None else Path(key_file),
    )


def not_touched() -> HardwareError:
    """The failure of a device that waited for a touch in vain."""
    return HardwareError(
        "identity.not_touched",
        "Nobody touched the key in time, so it signed nothing.",
        next_step="Try again, and touch the key when it blinks.",
    )


def _opened(uri: str, place: Place, person: Person, card: Card) -> PIVKey:
    public_key = slot_key(card.session, place.slot)
    if public_key is None:
        raise foreign_key("smartcard")  # it was there a moment ago
    metadata = card.session.slot_metadata(place.slot)
    touch_needed = metadata is not None and metadata.touch_needed
    return PIVKey(uri, place, person, public_key, touch_needed=touch_needed)


def _show_pin(card: Card, person: Person) -> None:
    attempts = check_attempts(card, person)
    pin = person.ask_pin(card.device, attempts_remaining=attempts)
    try:
        card.session.verify_pin(pin)
    except OperatorError as error:
        log.warning("pin_rejected", device=card.device, **error.details)
        raise


def _certificates(session: PIVSession, slot: Slot) -> dict[str, bytes]:
    attested = session.attest(slot)
    if attested is not None:
        return {"attestation": attested[0], "attestation_issuer": attested[1]}
    certificate = session.get_certificate(slot)
    if certificate is None or certificate.issuer == certificate.subject:  # made by the card's holder: says nothing
        return {}
    return {"certificate": certificate.public_bytes(Encoding.DER)}


def _devices_on(card: Card) -> list[FoundDevice]:
    target = quote(card.connection.reader) if card.session.serial is None else str(card.session.serial)
    found = [name for name, slot in _SLOTS.items() if slot_key(card.session, slot) is not None]
    return [FoundDevice(f"piv:{target}?slot={name}", card.device, name in found) for name in found or ["9e"]]


def _choice(option: str, value: str, choices: Mapping[str, _Value]) -> _Value:
    if value not in choices:
        raise OperatorError(
            "identity.bad_option",
            f"{value[:20]!r} is no {option} that a PIV key can have.",
            next_step=f"Choose one of: {', '.join(choices)}.",
        )
    return choices[value]
