from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from typing_extensions import override

from agent.core.errors import HardwareError, OperatorError
from agent.identity.fido2_record import CredentialRecord, load_record, parse_record, store_record
from agent.identity.key import HardwareKey, Nobody, PresenceState, find_devices, init_key, open_key
from agent.statements.envelope import Statement
from agent.statements.roots import verify_proof
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.hid_key import HIDKey, plugged_in
from tests.simulators.pcscd import card_inserted
from tests.simulators.person import Technician


class Note(Statement):
    kind = "fido2-note"
    text: str


NOTE = Note(text="vouched for")


class NobodyTouches(Technician):
    @override
    def ask_touch(self, device: str) -> None:
        Nobody().ask_touch(device)


@pytest.fixture
def authenticator() -> Authenticator:
    return Authenticator()


@pytest.fixture
def port(authenticator: Authenticator) -> Iterator[HIDKey]:
    key = HIDKey(authenticator)
    with plugged_in(key):
        yield key


@pytest.fixture
def person() -> Technician:
    return Technician()


@pytest.fixture
def uri(tmp_path: Path, port: HIDKey) -> str:
    return f"fido2:{tmp_path}/key.json"


@pytest.fixture
def key(uri: str, person: Technician) -> HardwareKey:
    return init_key(uri, person=person)


def test_a_touch_and_a_pin_prove(key: HardwareKey, person: Technician) -> None:
    person.asked.clear()
    touches = person.touches
    count = verify_proof(key.prove(NOTE), key.root())
    assert count > 0
    assert (person.asked, person.touches) == ([8], touches + 1)


def test_key_without_a_pin_gets_one_when_the_node_key_is_made(authenticator: Authenticator, uri: str) -> None:
    assert not authenticator.pin.is_set
    init_key(uri, person=Technician())
    assert authenticator.pin.is_set


def test_key_with_a_pin_keeps_it(authenticator: Authenticator, uri: str) -> None:
    authenticator.set_pin("correct horse")
    person = Technician(pin="correct horse")
    assert init_key(uri, person=person).prove(NOTE)
    assert person.asked == [8, 8]


def test_first_pin_that_the_key_does_not_take(authenticator: Authenticator, uri: str) -> None:
    with pytest.raises(OperatorError, match="does not take the new PIN"):
        init_key(uri, person=Technician(new_pin="12"))
    assert not authenticator.credentials


def test_nobody_there_nobody_asked(key: HardwareKey, uri: str, authenticator: Authenticator) -> None:
    count = authenticator.count
    alone = open_key(uri)
    with pytest.raises(OperatorError, match="nobody is at the box"):
        alone.prove(NOTE)
    with pytest.raises(OperatorError, match="wants a touch, and nobody"):
        open_key(uri, person=NobodyTouches()).prove(NOTE)
    assert authenticator.pin.attempts == 8
    assert authenticator.count - count <= 3  # the questions whether the credential is there, and one cancelled


def test_wrong_pin_shows_the_attempts_left(key: HardwareKey, person: Technician, authenticator: Authenticator) -> None:
    person.pin = "wrong"
    for left in (7, 6):
        with pytest.raises(OperatorError, match=f"attempts left: {left}") as failure:
            key.prove(NOTE)
        assert failure.value.details == {"attempts_remaining": left}
        assert key.presence().attempts_remaining == left


def test_three_wrong_pins_in_a_row_pause_the_key(
    key: HardwareKey, person: Technician, authenticator: Authenticator
) -> None:
    person.pin = "wrong"
    for _ in range(2):
        with pytest.raises(OperatorError):
            key.prove(NOTE)
    with pytest.raises(HardwareError, match="three wrong ones came in a row"):
        key.prove(NOTE)
    person.pin = "246813"
    asked = len(person.asked)
    with pytest.raises(HardwareError, match="three wrong ones came in a row"):
        key.prove(NOTE)
    assert len(person.asked) == asked
    authenticator.power_cycle()
    key.prove(NOTE)


def test_blocked_key_says_so(key: HardwareKey, authenticator: Authenticator) -> None:
    authenticator.pin.attempts = 0
    presence = key.presence()
    assert (presence.state, presence.attempts_remaining) == (PresenceState.BLOCKED, 0)
    with pytest.raises(HardwareError, match="is blocked"):
        key.prove(NOTE)
    with pytest.raises(OperatorError, match="Nothing unblocks the PIN"):
        key.unblock_pin()


def test_pin_changes(key: HardwareKey, person: Technician) -> None:
    person.new_pin = "another pin"
    key.change_pin()
    with pytest.raises(OperatorError, match="wrong"):
        key.prove(NOTE)
    person.pin = "another pin"
    key.prove(NOTE)
    person.new_pin = "123"
    with pytest.raises(OperatorError, match="does not take the new PIN"):
        key.change_pin()


def test_touch_that_never_comes(key: HardwareKey, authenticator: Authenticator) -> None:
    authenticator.touched = lambda: False
    with pytest.raises(HardwareError, match="Nobody touched"):
        key.prove(NOTE)


def test_looking_whether_it_is_there_touches_nothing(key: HardwareKey, authenticator: Authenticator) -> None:
    authenticator.touched = lambda: pytest.fail("a touch was asked for")
    assert key.presence().state is PresenceState.READY


@pytest.mark.parametrize("packets", [0, 1, 2, 3, 5, 8, 13])
def test_pulled_out_in_the_middle(key: HardwareKey, port: HIDKey, packets: int) -> None:
    port.unplug_after = packets
    with pytest.raises(HardwareError) as failure:
        key.prove(NOTE)
    assert failure.value.code == "identity.authenticator_mute"
    port.unplug_after = None
    key.prove(NOTE)


def test_the_right_one_of_several_keys_is_found(key: HardwareKey, port: HIDKey, person: Technician) -> None:
    with plugged_in(HIDKey(Authenticator()), port, HIDKey(Authenticator())):
        key.prove(NOTE)
        with pytest.raises(OperatorError, match="Several security keys"):
            init_key("fido2:/nonexistent/key.json", person=person)


def test_key_that_only_wants_a_touch_is_refused(uri: str, authenticator: Authenticator) -> None:
    original: Callable[[], dict[int, object]] = authenticator._info
    authenticator._commands[0x04] = lambda _: original() | {4: {"rk": True, "up": True}}
    with pytest.raises(HardwareError, match="can verify nobody"):
        init_key(uri, person=Technician())


def test_key_in_a_card_reader_waits_for_its_touch(tmp_path: Path, person: Technician) -> None:
    applet = CTAPApplet(Authenticator(), polls_before_touch=2)
    with card_inserted(VirtualCard(applet)) as slot:
        key = init_key(f"fido2:{tmp_path}/key.json?reader={quote(slot.reader)}", person=person)
        verify_proof(key.prove(NOTE), key.root())
        assert person.touches == 2
        with pytest.raises(OperatorError, match="wants a touch, and nobody"):
            open_key(key.uri, person=NobodyTouches()).prove(NOTE)
        key.prove(NOTE)


def test_devices_are_listed(port: HIDKey) -> None:
    with card_inserted(VirtualCard(CTAPApplet(Authenticator()))) as slot:
        listed = {device.device: device.uri for device in find_devices() if device.uri.startswith("fido2:")}
    assert set(listed) == {"security key on USB", f"security key in {slot.reader}"}
    assert listed[f"security key in {slot.reader}"].endswith(f"?reader={quote(slot.reader)}")


RECORD = CredentialRecord(
    rp_id="node.secur-e-health",
    credential_id="00ff",
    public_key="00",
    attestation_object="a0",
    registration_challenge="00" * 32,
    count=0,
)


def test_record_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "made" / "key.json"
    store_record(path, RECORD)
    assert load_record(path) == RECORD
    assert [file.name for file in path.parent.iterdir()] == ["key.json"]


def test_record_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    store_record(path, RECORD)
    with pytest.raises(OperatorError, match="cannot be written"):
        store_record(path, RECORD.model_copy(update={"count": 7}))
    assert load_record(path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == ["key.json"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b"\xff", bytes(1 << 17), RECORD.model_dump_json().replace("00ff", "0xff").encode()],
)
def test_record_that_is_none(data: bytes) -> None:
    with pytest.raises(OperatorError, match="cannot be used"):
        parse_record(data)


def test_record_with_a_key_that_is_none() -> None:
    with pytest.raises(OperatorError, match="public key cannot be read"):
        RECORD.load_key()
