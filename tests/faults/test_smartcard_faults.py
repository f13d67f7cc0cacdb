"""Cards and readers come and go; a key comes back by itself within two seconds of its return."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from typing_extensions import override

from agent.core.clock import SystemClock
from agent.core.errors import HardwareError
from agent.identity.key import HardwareKey, PresenceState, init_key, open_key
from agent.identity.session import SessionKeeper, SessionState, Subject
from agent.service.main import TICK_S
from agent.statements.envelope import Statement
from agent.statements.roots import verify_proof
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.pcscd import Slot, card_inserted, shared_readers
from tests.simulators.person import Technician
from tests.simulators.piv_card import PIVApplet

BACK_WITHIN_S = 2.0


class Note(Statement):
    kind = "fault-note"
    text: str


NOTE = Note(text="still here")


@pytest.fixture
def card() -> VirtualCard:
    return VirtualCard(PIVApplet(4711), CTAPApplet(Authenticator()))


@pytest.fixture
def slot(card: VirtualCard) -> Iterator[Slot]:
    with card_inserted(card) as slot:
        yield slot


@pytest.fixture(params=["piv", "fido2"])
def key(request: pytest.FixtureRequest, slot: Slot, tmp_path: Path) -> HardwareKey:
    uris = {
        "piv": f"piv:{slot.reader}?slot=9a",
        "fido2": f"fido2:{tmp_path}/key.json?reader={quote(slot.reader)}",
    }
    return init_key(uris[request.param], person=Technician())


@contextmanager
def service_stopped() -> Iterator[None]:
    shared_readers().stop_service()
    try:
        yield
    finally:
        shared_readers().start_service()


def check_back(key: HardwareKey) -> None:
    """Have the key prove something as soon as it says that it is there."""
    deadline = time.monotonic() + BACK_WITHIN_S
    while key.presence().state is not PresenceState.READY:
        assert time.monotonic() < deadline, key.presence()
        time.sleep(0.01)
    verify_proof(key.prove(NOTE), key.root())
    assert time.monotonic() < deadline


def test_service_restarted_while_nothing_happens(key: HardwareKey) -> None:
    with service_stopped():
        presence = key.presence()
        assert presence.state is PresenceState.ABSENT
        assert presence.next_step
        with pytest.raises(HardwareError):
            key.prove(NOTE)
    check_back(key)


def interrupted(key: HardwareKey, fault: Callable[[], None]) -> HardwareKey:
    """The same key, to whose holder `fault` happens while the PIN is typed."""

    class Unlucky(Technician):
        @override
        def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
            fault()
            return self.pin

    return open_key(key.uri, person=Unlucky())


def test_service_dies_in_the_middle(key: HardwareKey) -> None:
    victim = interrupted(key, shared_readers().stop_service)
    try:
        with pytest.raises(HardwareError):
            victim.prove(NOTE)
    finally:
        shared_readers().start_service()
    check_back(key)


def test_card_pulled_out_in_the_middle(key: HardwareKey, slot: Slot, card: VirtualCard) -> None:
    with pytest.raises(HardwareError):
        interrupted(key, slot.remove).prove(NOTE)
    assert key.presence().state is PresenceState.ABSENT
    slot.insert(card)
    check_back(key)


def test_card_taken_out_and_put_back_in_the_middle(key: HardwareKey, slot: Slot, card: VirtualCard) -> None:
    """The PIN was asked for one insertion; it does not count for the next one."""

    def wiggle() -> None:
        slot.remove()
        slot.insert(card)

    with pytest.raises(HardwareError):
        interrupted(key, wiggle).prove(NOTE)
    check_back(key)


def test_long_absence_leaves_no_trace(key: HardwareKey, slot: Slot, card: VirtualCard) -> None:
    slot.remove()
    for _ in range(20):
        with pytest.raises(HardwareError):
            key.prove(NOTE)
    slot.insert(card)
    check_back(key)


def test_session_comes_back_within_two_seconds_of_the_card(slot: Slot, card: VirtualCard) -> None:
    key = init_key(f"piv:{slot.reader}?slot=9e", person=Technician())
    subject = Subject("c0" * 32, "north", "box-1")
    keeper = SessionKeeper(key, subject, clock=SystemClock(), timestamp_version=lambda: 1)
    slot.remove()
    assert keeper.tick().state is SessionState.LAPSED
    slot.insert(card)
    start = time.monotonic()
    while keeper.tick().state is not SessionState.VALID:
        time.sleep(TICK_S)  # as the service does
        assert time.monotonic() - start < BACK_WITHIN_S
    assert keeper.current().prove(NOTE).signature


SIGNER = """
import sys
from agent.identity.key import open_key
key = open_key(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    key.sign(b"message")
"""


def test_two_processes_share_one_card(slot: Slot) -> None:
    key = init_key(f"piv:{slot.reader}?slot=9e", person=Technician())
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SIGNER, key.uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        other.stdin.write(b"go\n")
        other.stdin.flush()
        for _ in range(20):
            verify_proof(key.prove(NOTE), key.root())
        assert other.wait(timeout=30) == 0
