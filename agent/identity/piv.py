"""Keys on a PIV smartcard: made on the card, used over PC/SC.

`piv:<serial or reader>?slot=9e`: the card's serial number (digits), or part of a reader's name, or nothing where there
is only one card. The slot says who must be there: 9E signs by itself, 9A and 9C want the PIN for every signature.
Further options: `curve=p384`, `touch=always` and `management-key=<file>` count when the key is made.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from typing_extensions import override

from agent.attestation.evidence import Evidence
from agent.attestation.piv import POSSESSION_TYPE
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
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import KeyKind, hash_for, public_key_bytes

log = structlog.get_logger()

_FACTORY_PIN, _FACTORY_PUK = "123456", "12345678"
_SLOTS: Final = {"9a": Slot.AUTHENTICATION, "9c": Slot.SIGNATURE, "9e": Slot.CARD_AUTHENTICATION}
_CURVES: Final = {"p256": Algorithm.P256, "p384": Algorithm.P384}
_TOUCHES: Final = {"never": False, "always": True}
_PRESENCE_TIMEOUT_S = 0.3
_AES_MANAGEMENT_SINCE = (5, 4, 2)  # Yubico's first firmware with AES management keys
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


@dataclass(frozen=True, slots=True)
class Card:
    """A card that is held exclusively, its PIV application selected."""

    connection: pcsc.PCSCConnection
    session: PIVSession

    @property
    def device(self) -> str:
        """What it is, in plain words."""
        serial = "" if self.session.serial is None else f" {self.session.serial}"
        return f"PIV card{serial} in {self.connection.reader}"


def find_devices() -> tuple[FoundDevice, ...]:
    """The PIV cards on this box, one entry a slot that holds a key, and slot 9E of a card without any."""
    found: list[FoundDevice] = []
    try:
        for card in _cards(""):
            found += _devices_on(card)
            card.connection.leave_as_is()
    except SecureHealthError as error:
        log.debug("cards_not_listed", error=error)
    return tuple(found)


def open_key(uri: str, person: Person) -> PIVKey:
    """Open the key on the card that `uri` names.

    Raises:
        HardwareError: No such card, or its slot is empty (`identity.no_key`).
        OperatorError: Several cards could be meant (`identity.several_cards`).
    """
    place = parse_uri(uri)
    with _hold_only(place, lambda card: slot_key(card.session, place.slot) is not None) as card:
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
    with _hold_only(place, lambda _: True) as card:
        if slot_key(card.session, place.slot) is None:
            _make_key(card, place, person)
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
            attempts = _check_attempts(card, self._person)
            current = self._person.ask_pin(card.device, attempts_remaining=attempts)
            card.session.change_pin(current, self._person.ask_new_pin(card.device))
            log.info("pin_changed", device=card.device)

    def unblock_pin(self) -> None:
        """Ask for the card's PUK and a new PIN, and set it; all attempts come back.

        Raises:
            OperatorError: The PUK is wrong.
            HardwareError: The PUK is blocked too.
        """
        with self._lock, self._hold() as card:
            puk = self._person.ask_pin(f"the PUK of {card.device}", attempts_remaining=None)
            card.session.unblock_pin(puk, self._person.ask_new_pin(card.device))
            log.info("pin_unblocked", device=card.device)

    def _signature_over(self, message: bytes) -> bytes:
        with self._lock, self._hold() as card:
            if self._pin_needed:
                _show_pin(card, self._person)
            if self._touch_needed:
                self._person.ask_touch(card.device)
            try:
                signature = _sign(card.session, self._place.slot, self._public_key, message)
            finally:
                if self._pin_needed:
                    card.session.forget_pin()
        return signature

    @contextmanager
    def _hold(self, *, busy_timeout_s: float = pcsc.BUSY_TIMEOUT_S) -> Iterator[Card]:
        """Hold the card with this very key, whichever reader it is in."""
        seen: list[SecureHealthError] = []
        for card in _cards(self._place.target, seen, busy_timeout_s=busy_timeout_s):
            found = slot_key(card.session, self._place.slot)
            if found == self._public_key:
                yield card
                return
            card.connection.leave_as_is()
            seen.append(_no_key(card, self._place.slot) if found is None else foreign_key("smartcard"))
        raise max(seen, key=_telling, default=_no_card(self._place.target))


def slot_key(session: PIVSession, slot: Slot) -> ec.EllipticCurvePublicKey | None:
    """The public key in `slot`, by the card's own word or else by the certificate beside it; None where empty."""
    metadata = session.slot_metadata(slot)
    if metadata is not None:
        return metadata.public_key
    certificate = session.get_certificate(slot)
    key = None if certificate is None else certificate.public_key()
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None


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


def _choice[T](option: str, value: str, choices: dict[str, T]) -> T: ...


def _cards(
    target: str, seen: list[SecureHealthError] | None = None, *, busy_timeout_s: float = pcsc.BUSY_TIMEOUT_S
) -> Iterator[Card]:
    """Every PIV card that `target` could mean, one held at a time; what keeps one from being held goes to `seen`."""
    by_serial = target.isascii() and target.isdigit()
    for reader in pcsc.list_readers_with_card("" if by_serial else target):
        try:
            connection = pcsc.PCSCConnection.open(reader, busy_timeout_s=busy_timeout_s)
        except HardwareError as error:
            _note(seen, error)
            continue
        with connection:
            try:
                card = Card(connection, PIVSession(connection))
            except HardwareError as error:
                connection.leave_as_is()
                _note(seen, error)
                continue
            if by_serial and card.session.serial != int(target):
                connection.leave_as_is()
                continue
            yield card
