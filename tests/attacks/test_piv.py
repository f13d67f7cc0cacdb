"""Attacks on keys that live on a PIV card: by other programs, by other cards, by whoever guesses, by who reads logs."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import traceback
from collections.abc import Iterator

import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding
from smartcard import scard
from typing_extensions import override

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.logging import configure_logging
from agent.identity.apdu import tlv
from agent.identity.key import HardwareKey, PresenceState, init_key, open_key
from agent.identity.pcsc import PCSCConnection
from agent.identity.piv_cards import slot_key
from agent.identity.piv_session import CERTIFICATE_OBJECT, PIVSession
from agent.identity.piv_session import Slot as KeySlot
from agent.statements.envelope import Statement
from tests.simulators.card import VirtualCard
from tests.simulators.makers import card_maker, common_name
from tests.simulators.pcscd import Slot, card_inserted
from tests.simulators.person import Technician, WatchedTechnician
from tests.simulators.piv_card import PIVApplet

INS_VERIFY, INS_SIGN = 0x20, 0x87
SELECT_PIV = bytes.fromhex("00A4040005A000000308")
SIGN_9A = bytes.fromhex("0087119A267C2482008120") + bytes(32) + b"\x00"
VERIFY_246813 = bytes.fromhex("0020008008") + b"246813\xff\xff"


class Note(Statement):
    kind = "piv-attack-note"
    text: str


NOTE = Note(text="never")


class Reader:
    """Another program, with a card connection of its own."""

    def __init__(self, slot: Slot) -> None:
        _, self._context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
        result, self._card, _ = scard.SCardConnect(
            self._context, slot.reader, scard.SCARD_SHARE_SHARED, scard.SCARD_PROTOCOL_T1
        )
        assert result == scard.SCARD_S_SUCCESS

    def send(self, command: bytes) -> bytes:
        _, response = scard.SCardTransmit(self._card, scard.SCARD_PCI_T1, list(command))
        return bytes(response)

    def leave(self) -> None:
        """Go away without resetting the card, as pyscard does."""
        scard.SCardDisconnect(self._card, scard.SCARD_LEAVE_CARD)
        scard.SCardReleaseContext(self._context)


@pytest.fixture
def applet() -> PIVApplet:
    return PIVApplet(4711)


@pytest.fixture
def card(applet: PIVApplet) -> VirtualCard:
    return VirtualCard(applet)


@pytest.fixture
def slot(card: VirtualCard) -> Iterator[Slot]:
    with card_inserted(card) as slot:
        yield slot


@pytest.fixture
def person() -> Technician:
    return Technician()


@pytest.fixture
def key(slot: Slot, person: Technician) -> HardwareKey:
    """In slot 9A: every signature wants the PIN."""
    return init_key(f"piv:{slot.reader}?slot=9a", person=person)


def other_card(slot_name: int = 0x9A) -> VirtualCard:
    applet = PIVApplet(815)
    applet.add_key(slot_name)
    return VirtualCard(applet)


# The PIN's state


def test_pin_verified_for_us_counts_for_nobody_after_us(key: HardwareKey, slot: Slot) -> None:
    key.prove(NOTE)
    thief = Reader(slot)
    thief.send(SELECT_PIV)
    assert thief.send(SIGN_9A)[-2:] == b"\x69\x82"
    thief.leave()


def test_pin_verified_for_us_counts_for_nobody_though_the_card_survives_resets(
    key: HardwareKey, slot: Slot, applet: PIVApplet
) -> None:
    applet.pin_state_survives_reset = True
    key.prove(NOTE)
    assert not applet.session.pin_verified


def test_pin_is_taken_back_when_the_signature_fails(key: HardwareKey, applet: PIVApplet) -> None:
    applet.pin_state_survives_reset = True
    applet.keys[0x9A].touch_policy = 2
    applet.touched = lambda: False
    with pytest.raises(HardwareError):
        key.prove(NOTE)
    assert not applet.session.pin_verified


def test_pin_left_verified_by_another_program_replaces_no_person(key: HardwareKey, slot: Slot) -> None:
    careless = Reader(slot)
    careless.send(SELECT_PIV)
    assert careless.send(VERIFY_246813) == b"\x90\x00"
    careless.leave()
    with pytest.raises(OperatorError, match="nobody is at the box"):
        open_key(key.uri).prove(NOTE)


def test_nobody_else_talks_to_the_card_while_the_pin_counts(slot: Slot, key: HardwareKey, person: Technician) -> None:
    results: list[int] = []

    class Watched(Technician):
        @override
        def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
            _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
            result, _, _ = scard.SCardConnect(context, slot.reader, scard.SCARD_SHARE_SHARED, scard.SCARD_PROTOCOL_T1)
            scard.SCardReleaseContext(context)
            results.append(result)
            return self.pin

    open_key(key.uri, person=Watched()).prove(NOTE)
    assert results == [scard.SCARD_E_SHARING_VIOLATION]


# Another card


def test_card_swapped_for_another_between_two_signatures(key: HardwareKey, slot: Slot, person: Technician) -> None:
    key.prove(NOTE)
    asked, other = len(person.asked), other_card()
    slot.remove()
    slot.insert(other)
    assert key.presence().state is PresenceState.FOREIGN
    with pytest.raises(HardwareError, match="not the one that holds this node's key"):
        key.prove(NOTE)
    assert len(person.asked) == asked
    assert INS_VERIFY not in other.log
    assert INS_SIGN not in other.log


def test_card_swapped_while_the_pin_is_typed(slot: Slot, key: HardwareKey) -> None:
    other = other_card()

    class Distracted(Technician):
        @override
        def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
            slot.remove()
            slot.insert(other)
            return self.pin

    with pytest.raises(HardwareError) as failure:
        open_key(key.uri, person=Distracted()).prove(NOTE)
    assert failure.value.code == "identity.no_card"
    assert INS_VERIFY not in other.log


def test_certificate_copied_onto_another_card(slot: Slot) -> None:
    """The certificate is no secret; a card that shows it but has another key is found out by its first signature."""
    ours = PIVApplet(4711)
    slot.exchange(VirtualCard(ours))
    uri = f"piv:{slot.reader}?slot=9e"
    key = init_key(uri, person=Technician())
    forged = PIVApplet(4711, make="plain")
    forged.add_key(0x9E)
    forged.objects = dict(ours.objects)
    slot.exchange(VirtualCard(forged))
    with pytest.raises(HardwareError, match="not the one that holds this node's key"):
        key.sign(b"message")


def test_wrong_card_in_another_reader_is_left_alone(key: HardwareKey, slot: Slot, card: VirtualCard) -> None:
    """A colleague's card beside ours is neither reset nor asked for a PIN."""
    bystander = other_card()
    slot.exchange(bystander)
    colleague = PCSCConnection.open(slot.reader)
    colleague.transmit(SELECT_PIV)
    colleague.leave_as_is()
    colleague.close()
    applet = bystander.applets[0]
    assert isinstance(applet, PIVApplet)
    applet.session.pin_verified = True
    with card_inserted(card):
        key_elsewhere = open_key("piv:4711?slot=9a", person=Technician())
        key_elsewhere.prove(NOTE)
    assert applet.session.pin_verified
    assert INS_VERIFY not in bystander.log


# Guessing


def test_last_attempt_is_not_spent_by_accident(key: HardwareKey, applet: PIVApplet, card: VirtualCard) -> None:
    person = Technician(pin="999999")
    guesser = open_key(key.uri, person=person)
    applet.pin.left = 1
    card.log.clear()
    with pytest.raises(OperatorError, match="one PIN attempt left") as failure:
        guesser.prove(NOTE)
    assert "--force" in failure.value.next_step
    assert not person.asked
    assert applet.pin.left == 1
    with pytest.raises(OperatorError, match="one PIN attempt left"):
        guesser.change_pin()
    person.insists = True
    with pytest.raises(HardwareError, match="blocked"):
        guesser.prove(NOTE)
    assert applet.pin.left == 0


def test_looking_at_a_card_spends_no_attempt(key: HardwareKey, applet: PIVApplet) -> None:
    applet.pin.left = 2
    for _ in range(5):
        assert key.presence().attempts_remaining == 2
    assert applet.pin.left == 2


def test_blocked_card_asks_for_nothing(key: HardwareKey, applet: PIVApplet, person: Technician) -> None:
    applet.pin.left = 0
    asked = len(person.asked)
    with pytest.raises(HardwareError, match="blocked"):
        key.prove(NOTE)
    assert len(person.asked) == asked


# Reading what is left lying about


def test_pin_is_in_no_log_no_error_and_no_repr(slot: Slot, applet: PIVApplet) -> None:
    journal = io.StringIO()
    configure_logging(stream=journal, level=logging.DEBUG)
    try:
        person = Technician(pin="31415926", new_pin="31415926")
        key = init_key(f"piv:{slot.reader}?slot=9a", person=person)
        key.prove(NOTE)
        person.pin = "27182818"
        shown: list[str] = []
        for _ in range(2):
            with pytest.raises(OperatorError) as failure:
                key.prove(NOTE)
            shown += ["".join(traceback.format_exception(failure.value)), repr(failure.value.details)]
    finally:
        structlog.reset_defaults()
    everything = journal.getvalue() + "".join(shown) + repr(key) + repr(key.presence())
    assert "pin_rejected" in everything
    for pin in (b"31415926", b"27182818"):
        assert pin.decode() not in everything
        assert pin.hex() not in everything.lower()


def test_pin_does_not_outlive_the_call(key: HardwareKey) -> None:
    person = WatchedTechnician()
    watched = open_key(key.uri, person=person)
    watched.prove(NOTE)
    watched.change_pin()
    assert (len(person.typed), person.held) == (2, 0)


# A hostile card


@pytest.mark.parametrize(
    "answer",
    [b"\x90\x00", b"\x7c\x04\x82\x02\x30\x00\x90\x00", bytes(300) + b"\x90\x00", b"\x7c\xff\x90\x00", b"\x61\xff"],
    ids=["nothing", "no-signature", "zeros", "cut-short", "endless"],
)
def test_card_that_answers_nonsense_signs_nothing(slot: Slot, applet: PIVApplet, answer: bytes) -> None:
    class Broken(VirtualCard):
        def transmit(self, command: bytes) -> bytes:
            if broken and command[1] in (INS_SIGN, 0xC0):
                return answer
            return super().transmit(command)

    broken = False
    slot.exchange(Broken(applet))
    key = init_key(f"piv:{slot.reader}?slot=9e", person=Technician())
    broken = True
    with pytest.raises(SecureHealthError):
        key.prove(NOTE)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_card_with_a_bent_certificate_breaks_nothing() -> None:
    """What a certificate says is parsed when it is first looked at, which may be long after it was read."""
    applet = PIVApplet(0, make="plain")
    key = applet.add_key(0x9E).private.public_key()
    honest = card_maker().issue(common_name("card 12"), key, ca=False).public_bytes(Encoding.DER)
    session = PIVSession(VirtualCard(applet))
    for at, change in itertools.product(range(len(honest)), (0x01, 0x20, 0xFF)):
        bent = bytearray(honest)
        bent[at] ^= change
        applet.objects[CERTIFICATE_OBJECT[KeySlot.CARD_AUTHENTICATION]] = tlv(0x70, bytes(bent))
        with contextlib.suppress(SecureHealthError):
            certificate = session.get_certificate(KeySlot.CARD_AUTHENTICATION)
            assert certificate is not None
            assert certificate.issuer
            assert certificate.subject
            assert certificate.public_key()
            slot_key(session, KeySlot.CARD_AUTHENTICATION)
