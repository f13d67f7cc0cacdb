from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from agent.core.errors import HardwareError, OperatorError
from agent.identity.key import Nobody, PresenceState, find_devices, init_key, open_key
from tests.simulators.card import VirtualCard
from tests.simulators.makers import card_maker, common_name
from tests.simulators.pcscd import Slot, card_inserted
from tests.simulators.person import Technician
from tests.simulators.piv_card import (
    DEFAULT_MANAGEMENT_KEY,
    DEFAULT_PIN,
    TOUCH_ALWAYS,
    PIVApplet,
)

SERIAL = 4711


@pytest.fixture
def applet() -> PIVApplet:
    return PIVApplet(SERIAL)


@pytest.fixture
def slot(applet: PIVApplet) -> Iterator[Slot]:
    with card_inserted(VirtualCard(applet)) as slot:
        yield slot


@pytest.fixture
def person() -> Technician:
    return Technician()


@pytest.fixture(autouse=True)
def _card_is_in(slot: Slot) -> None:
    return


def test_nothing_that_every_new_card_has_survives(applet: PIVApplet, person: Technician) -> None:
    init_key(f"piv:{SERIAL}?slot=9e", person=person)
    assert not applet.pin.is_default
    assert not applet.puk.is_default
    assert not applet.management_is_default
    assert (applet.management_algorithm, len(applet.management_key)) == (0x0C, 32)


def test_old_firmware_gets_a_triple_des_management_key(slot: Slot, person: Technician) -> None:
    applet = PIVApplet(SERIAL, firmware=(5, 2, 7))
    slot.exchange(VirtualCard(applet))
    init_key(f"piv:{SERIAL}?slot=9e", person=person)
    assert (applet.management_algorithm, len(applet.management_key)) == (0x03, 24)
    assert applet.management_key != DEFAULT_MANAGEMENT_KEY


@pytest.mark.parametrize(("chosen", "puk"), [(DEFAULT_PIN, "246813"), ("246813", "12345678")])
def test_factory_values_are_no_choice(applet: PIVApplet, chosen: str, puk: str) -> None:
    class Careless(Technician):
        def ask_new_pin(self, device: str) -> str:
            return puk if "PUK" in device else chosen

    with pytest.raises(OperatorError, match="every new card has"):
        init_key(f"piv:{SERIAL}?slot=9a", person=Careless())
    assert not applet.keys


def test_key_is_not_made_with_nobody_there(applet: PIVApplet) -> None:
    with pytest.raises(OperatorError, match="nobody is at the box"):
        init_key(f"piv:{SERIAL}?slot=9a")
    assert not applet.keys
    assert applet.pin.is_default


def test_second_key_on_a_card_uses_the_management_key_that_it_keeps(applet: PIVApplet, person: Technician) -> None:
    first = init_key(f"piv:{SERIAL}?slot=9e", person=person)
    kept = applet.management_key
    second = init_key(f"piv:{SERIAL}?slot=9c", person=person)
    assert applet.management_key == kept
    assert first.key_id != second.key_id
    assert person.asked == [3]


def test_power_cut_between_keeping_and_setting_the_management_key(applet: PIVApplet, person: Technician) -> None:
    applet.objects[0x5FC109] = bytes.fromhex("8822") + bytes.fromhex("8920") + secrets.token_bytes(32)
    applet.objects[0x5FFF00] = bytes.fromhex("8003810102")
    init_key(f"piv:{SERIAL}?slot=9e", person=person)
    assert not applet.management_is_default


def test_card_with_somebody_elses_management_key(applet: PIVApplet, person: Technician, tmp_path: Path) -> None:
    applet.management_key, applet.management_is_default = secrets.token_bytes(24), False
    with pytest.raises(OperatorError, match="does not accept the management key"):
        init_key(f"piv:{SERIAL}?slot=9e", person=person)
    path = tmp_path / "management-key"
    path.write_text(applet.management_key.hex() + "\n")
    assert init_key(f"piv:{SERIAL}?slot=9e&management-key={path}", person=person).capabilities.unattended
    path.write_text("not hexadecimal")
    with pytest.raises(OperatorError, match="cannot be read as a management key"):
        init_key(f"piv:{SERIAL}?slot=9a&management-key={path}", person=person)


@pytest.mark.parametrize("slot_name", ["9a", "9e"])
def test_plain_card_with_its_issuers_management_key(
    slot: Slot, person: Technician, tmp_path: Path, slot_name: str
) -> None:
    applet = PIVApplet(0, make="plain")
    applet.pin.value = b"246813\xff\xff"
    slot.exchange(VirtualCard(applet))
    uri = f"piv:{slot.reader}?slot={slot_name}"
    with pytest.raises(OperatorError, match="does not accept the management key"):
        init_key(uri, person=person)
    path = tmp_path / "management-key"
    path.write_text(DEFAULT_MANAGEMENT_KEY.hex())
    key = init_key(f"{uri}&management-key={path}", person=person)
    again = open_key(uri, person=person)
    assert again.key_id == key.key_id
    key.public_key().verify(again.sign(b"message"), b"message", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(HardwareError, match="cannot show evidence"):
        key.attest(bytes(32))


def test_p384(person: Technician) -> None:
    key = init_key(f"piv:{SERIAL}?slot=9e&curve=p384", person=person)
    assert key.public_key().curve.name == "secp384r1"
    key.public_key().verify(key.sign(b"message"), b"message", ec.ECDSA(hashes.SHA384()))


def test_touch_is_asked_for_and_its_absence_told(applet: PIVApplet) -> None:
    hands = {"touch": True}
    person = Technician()
    applet.touched = lambda: hands["touch"]
    key = init_key(f"piv:{SERIAL}?slot=9e&touch=always", person=person)
    assert applet.keys[0x9E].touch_policy == TOUCH_ALWAYS
    assert not key.capabilities.unattended
    asked = person.touches
    key.sign(b"message")
    assert person.touches == asked + 1
    hands["touch"] = False
    with pytest.raises(HardwareError, match="Nobody touched"):
        key.sign(b"message")


def test_unattended_key_asks_nobody(person: Technician) -> None:
    init_key(f"piv:{SERIAL}?slot=9e", person=person)
    key = open_key(f"piv:{SERIAL}?slot=9e", person=Nobody())
    assert key.capabilities.unattended
    key.sign(b"message")


def test_pin_is_asked_for_every_signature_with_the_attempts_left(applet: PIVApplet, person: Technician) -> None:
    key = init_key(f"piv:{SERIAL}?slot=9a", person=person)
    assert key.presence().attempts_remaining == 3
    person.asked.clear()
    key.sign(b"one")
    person.pin = "999999"
    with pytest.raises(OperatorError, match="attempts left: 2"):
        key.sign(b"two")
    assert key.presence().attempts_remaining == 2
    person.pin = "246813"
    key.sign(b"three")
    assert person.asked == [3, 3, 2]


def test_blocked_card_says_so_and_the_puk_helps(applet: PIVApplet, person: Technician) -> None:
    key = init_key(f"piv:{SERIAL}?slot=9a", person=person)
    applet.pin.left = 0
    presence = key.presence()
    assert (presence.state, presence.attempts_remaining) == (PresenceState.BLOCKED, 0)
    assert "--unblock" in presence.next_step
    person.pin, person.new_pin = "246813", "975310"  # the PUK, as chosen when the key was made
    key.unblock_pin()
    person.pin = "975310"
    key.sign(b"message")


def test_pin_changes(person: Technician) -> None:
    key = init_key(f"piv:{SERIAL}?slot=9a", person=person)
    person.new_pin = "975310"
    key.change_pin()
    person.pin = "975310"
    key.sign(b"message")


def test_several_cards_must_be_told_apart(person: Technician) -> None:
    with card_inserted(VirtualCard(PIVApplet(815))):
        with pytest.raises(OperatorError, match="Several cards could be meant"):
            init_key("piv:?slot=9e", person=person)
        key = init_key("piv:815?slot=9e", person=person)
        assert open_key("piv:?slot=9e", person=person).key_id == key.key_id


def test_key_is_found_in_whichever_reader_its_card_is(slot: Slot, applet: PIVApplet, person: Technician) -> None:
    key = init_key(f"piv:{SERIAL}?slot=9e", person=person)
    slot.exchange(VirtualCard())
    assert key.presence().state is PresenceState.ABSENT
    with card_inserted(VirtualCard(applet)) as other:
        assert other.reader in key.presence().device
        key.sign(b"message")


def test_devices_are_listed_with_what_opens_them(person: Technician) -> None:
    (found,) = [device for device in find_devices() if device.uri.startswith("piv:")]
    assert (found.uri, found.holds_key) == (f"piv:{SERIAL}?slot=9e", False)
    assert str(SERIAL) in found.device
    init_key(f"piv:{SERIAL}?slot=9a", person=person)
    init_key(f"piv:{SERIAL}?slot=9c", person=person)
    listed = [device for device in find_devices() if device.uri.startswith("piv:")]
    assert all(device.holds_key for device in listed)
    assert {open_key(device.uri, person=person).uri for device in listed} == {
        f"piv:{SERIAL}?slot=9a",
        f"piv:{SERIAL}?slot=9c",
    }


def test_evidence_of_a_card_from_an_issuer(slot: Slot, person: Technician) -> None:
    applet = PIVApplet(0, make="plain")
    slot.exchange(VirtualCard(applet))
    certificate = card_maker().issue(common_name("card"), applet.add_key(0x9E).private.public_key(), ca=False)
    der = certificate.public_bytes(Encoding.DER)
    applet.objects[0x5FC101] = b"\x70\x82" + len(der).to_bytes(2, "big") + der + b"\x71\x01\x00\xfe\x00"
    evidence = open_key(f"piv:{slot.reader}", person=person).attest(bytes(32))
    assert evidence.parts["certificate"] == der


@pytest.mark.parametrize("option", ["slot=9d", "slot=f9", "curve=p521", "touch=sometimes"])
def test_options_that_no_key_can_have(option: str) -> None:
    with pytest.raises(OperatorError, match="that a PIV key can have"):
        open_key(f"piv:{SERIAL}?{option}")
