from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from queue import Queue

import pytest
from smartcard import scard

from agent.core.errors import HardwareError
from agent.identity import pcsc
from agent.identity.pcsc import CardEvent, CardEventKind, PCSCConnection, watch_cards
from tests.simulators.card import VirtualCard
from tests.simulators.pcscd import Slot, card_inserted, shared_readers

SELECT_NOTHING = bytes.fromhex("00A4040000")


@pytest.fixture
def slot() -> Iterator[Slot]:
    with card_inserted(VirtualCard()) as slot:
        yield slot


@pytest.fixture
def events(slot: Slot) -> Iterator[Queue[CardEvent]]:
    stopped, queue = threading.Event(), Queue[CardEvent]()

    def watch() -> None:
        for event in watch_cards(stopped):
            if event.reader in ("", slot.reader):
                queue.put(event)

    thread = threading.Thread(target=watch)
    thread.start()
    assert queue.get(timeout=2) == CardEvent(CardEventKind.INSERTED, slot.reader)
    yield queue
    stopped.set()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_card_pulled_out_and_put_back_is_seen(slot: Slot, events: Queue[CardEvent]) -> None:
    slot.remove()
    assert events.get(timeout=1) == CardEvent(CardEventKind.REMOVED, slot.reader)
    slot.insert(VirtualCard())
    assert events.get(timeout=1) == CardEvent(CardEventKind.INSERTED, slot.reader)


def test_service_restarted_is_seen_and_survived(slot: Slot, events: Queue[CardEvent]) -> None:
    shared_readers().stop_service()
    try:
        seen = {events.get(timeout=1).kind, events.get(timeout=1).kind}
        assert seen == {CardEventKind.REMOVED, CardEventKind.SERVICE_LOST}
    finally:
        shared_readers().start_service()
    start = time.monotonic()
    assert events.get(timeout=2).kind is CardEventKind.SERVICE_BACK
    assert events.get(timeout=2) == CardEvent(CardEventKind.INSERTED, slot.reader)
    assert time.monotonic() - start < 2.0


def test_card_is_held_alone(slot: Slot) -> None:
    with PCSCConnection.open(slot.reader), pytest.raises(HardwareError) as failure:
        PCSCConnection.open(slot.reader, busy_timeout_s=0.05)
    assert failure.value.code == "identity.card_busy"
    PCSCConnection.open(slot.reader, busy_timeout_s=0.0).close()


def test_waits_for_another_program_to_let_go(slot: Slot) -> None:
    first = PCSCConnection.open(slot.reader)
    threading.Timer(0.1, first.close).start()
    with PCSCConnection.open(slot.reader, busy_timeout_s=2.0) as second:
        assert second.transmit(SELECT_NOTHING)[-2:] == b"\x6a\x82"


def test_card_gone_in_the_middle(slot: Slot) -> None:
    with PCSCConnection.open(slot.reader) as connection:
        slot.remove()
        with pytest.raises(HardwareError) as failure:
            connection.transmit(SELECT_NOTHING)
    assert failure.value.code == "identity.no_card"


def test_no_such_reader() -> None:
    shared_readers()
    with pytest.raises(HardwareError, match="no smartcard reader 'Nonsense'"):
        pcsc.list_readers_with_card("Nonsense")


class Resettable(VirtualCard):
    resets = 0

    def reset(self) -> None:
        super().reset()
        self.resets += 1


@pytest.mark.parametrize("leave", [False, True])
def test_card_is_given_back_reset_unless_it_is_anothers(*, leave: bool) -> None:
    card = Resettable()
    with card_inserted(card) as slot:
        with PCSCConnection.open(slot.reader) as connection:
            before = card.resets  # a card that nobody used for a while is powered up first
            if leave:
                connection.leave_as_is()
        assert (card.resets > before) is not leave


def test_every_failure_of_pcsc_becomes_a_sentence() -> None:
    results = [value for name, value in vars(scard).items() if name.startswith(("SCARD_E_", "SCARD_W_", "SCARD_F_"))]
    for result in results:
        error = pcsc._pcsc_error(result, "Reader")
        assert error.sentence.endswith(".")
        assert error.next_step.endswith((".", "`."))
