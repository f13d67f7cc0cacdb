"""Finding the PIV card that is meant, among all readers, without disturbing the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import HardwareError, OperatorError
from agent.identity import pcsc
from agent.identity.key import foreign_key
from agent.identity.piv_session import PIVSession, Slot

_TELLING: Final = {"identity.card_busy": 3, "identity.foreign_key": 2, "identity.no_key": 1}
"""Which of several cards' failures a person should read first."""


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


Objection = Callable[[Card], HardwareError | None]
"""Why a card is not the one that is meant; None if it is."""


@contextmanager
def hold_card(target: str, objection: Objection, *, busy_timeout_s: float = pcsc.BUSY_TIMEOUT_S) -> Iterator[Card]:
    """Hold the first card that `target` could mean and to which there is no objection; others are left as they are.

    Args:
        target: A serial number (digits), part of a reader's name, or empty.
        objection: Says what is wrong with a card.
        busy_timeout_s: How long another program may hold a card.

    Raises:
        HardwareError: There is none; of several objections, the one that helps most.
    """
    seen: list[HardwareError] = []
    for reader in _readers_for(target):
        try:
            connection = pcsc.PCSCConnection.open(reader, busy_timeout_s=busy_timeout_s)
        except HardwareError as error:
            seen.append(error)
            continue
        with connection:
            card = _select(connection, target, objection)
            if isinstance(card, Card):
                yield card
                return
            connection.leave_as_is()
            seen.append(card)
    raise max(seen, key=lambda error: _TELLING.get(error.code, 0), default=_no_card(target))


@contextmanager
def hold_only_card(target: str, objection: Objection) -> Iterator[Card]:
    """As `hold_card`, but where several cards could be meant, hold none.

    Raises:
        HardwareError: There is none.
        OperatorError: There are several (`identity.several_cards`).
    """
    fitting: list[str] = []
    visit_cards(target, lambda card: None if objection(card) else fitting.append(card.connection.reader))
    if len(fitting) > 1:
        raise OperatorError(
            "identity.several_cards",
            f"Several cards could be meant, in the readers {' and '.join(fitting)}.",
            next_step="Name the card by its serial number or its reader, as in `piv:12345678?slot=9e`.",
        )
    with hold_card(target, objection) as card:
        yield card


def visit_cards(target: str, visit: Callable[[Card], None]) -> None:
    """Show every card that `target` could mean to `visit`; those that cannot be had are passed over.

    Raises:
        HardwareError: There is no PC/SC service, or no reader.
    """

    def look_at(card: Card) -> HardwareError:
        visit(card)
        return _no_card(target)

    for reader in _readers_for(target):
        try:
            with pcsc.PCSCConnection.open(reader, busy_timeout_s=0.0) as connection:
                connection.leave_as_is()
                _select(connection, target, look_at)
        except HardwareError:
            continue


def slot_key(session: PIVSession, slot: Slot) -> ec.EllipticCurvePublicKey | None:
    """The public key in `slot`, by the card's own word or else by the certificate beside it; None where empty."""
    metadata = session.slot_metadata(slot)
    if metadata is not None:
        return metadata.public_key
    certificate = session.get_certificate(slot)
    key = None if certificate is None else certificate.public_key()
    return key if isinstance(key, ec.EllipticCurvePublicKey) else None


def holds_key(slot: Slot, public_key: ec.EllipticCurvePublicKey | None = None) -> Objection:
    """Objects to a card whose `slot` is empty, or holds another key than `public_key`."""

    def objection(card: Card) -> HardwareError | None:
        found = slot_key(card.session, slot)
        if found is None:
            return _no_key(card, slot)
        return foreign_key("smartcard") if public_key is not None and found != public_key else None

    return objection


def _select(connection: pcsc.PCSCConnection, target: str, objection: Objection) -> Card | HardwareError:
    try:
        card = Card(connection, PIVSession(connection))
        if _is_serial(target) and card.session.serial != int(target):
            return _no_card(target)
        return objection(card) or card
    except HardwareError as error:
        return error


def _readers_for(target: str) -> tuple[str, ...]:
    return pcsc.list_readers_with_card("" if _is_serial(target) else target)


def _is_serial(target: str) -> bool:
    return target.isascii() and target.isdigit()


def _no_card(target: str) -> HardwareError:
    return HardwareError(
        "identity.no_piv_card",
        f"There is no PIV card {target}." if target else "There is no PIV card in any reader.",
        next_step="Put the card in; the work goes on by itself.",
    )


def _no_key(card: Card, slot: Slot) -> HardwareError:
    return HardwareError(
        "identity.no_key",
        f"Slot {slot:02X} of the {card.device} holds no key.",
        next_step="Make one with `seh-agent key init`. If the node was enrolled, its card was reset: enrol it again.",
    )
