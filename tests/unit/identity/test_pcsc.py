from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from smartcard import scard

from agent.core.errors import HardwareError
from agent.identity import pcsc
from agent.identity.pcsc import PCSCConnection
from tests.simulators.card import VirtualCard
from tests.simulators.pcscd import Slot, card_inserted, shared_readers

SELECT_NOTHING = bytes.fromhex("00A4040000")


@pytest.fixture
def slot() -> Iterator[Slot]:
    with card_inserted(VirtualCard()) as slot:
        yield slot


def test_card_pulled_out_and_put_back_is_seen(slot: Slot) -> None:
    assert pcsc.list_readers_with_card(slot.reader) == (slot.reader,)
    slot.remove()
    assert pcsc.list_readers_with_card(slot.reader) == ()
    slot.insert(VirtualCard())
    assert pcsc.list_readers_with_card(slot.reader) == (slot.reader,)


def test_service_restarted_is_survived(slot: Slot) -> None:
    shared_readers().stop_service()
    try:
        with pytest.raises(HardwareError, match="does not answer"):
            pcsc.list_readers_with_card(slot.reader)
    finally:
        shared_readers().start_service()
    deadline = time.monotonic() + 2.0
    while pcsc.list_readers_with_card(slot.reader) != (slot.reader,):  # pcscd looks at its readers only now and then
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
