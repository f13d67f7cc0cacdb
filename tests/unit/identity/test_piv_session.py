from __future__ import annotations

import gzip

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding

from agent.core.errors import HardwareError, OperatorError
from agent.identity.apdu import APDUError, tlv
from agent.identity.piv_session import (
    DEFAULT_MANAGEMENT_KEY,
    Algorithm,
    ManagementAlgorithm,
    PINPolicy,
    PIVSession,
    Slot,
)
from tests.simulators.card import VirtualCard
from tests.simulators.makers import card_maker, common_name
from tests.simulators.piv_card import DEFAULT_PIN, DEFAULT_PUK, PIVApplet

WITHOUT_PIN = PINPolicy.NEVER


def managed(applet: PIVApplet) -> PIVSession:
    session = PIVSession(VirtualCard(applet))
    session.authenticate(applet.management_key, ManagementAlgorithm(applet.management_algorithm))
    return session


@pytest.fixture
def applet() -> PIVApplet:
    return PIVApplet(4711)


@pytest.fixture
def session(applet: PIVApplet) -> PIVSession:
    return managed(applet)


def test_says_what_it_is(session: PIVSession) -> None:
    assert (session.version, session.serial) == ((5, 4, 3), 4711)


def test_plain_card_says_nothing_of_itself() -> None:
    session = PIVSession(VirtualCard(PIVApplet(4711, make="plain")))
    assert (session.version, session.serial, session.has_extensions) == (None, None, False)
    assert session.pin_is_default() is session.puk_is_default() is None
    assert session.slot_metadata(Slot.SIGNATURE) is None
    assert session.attest(Slot.SIGNATURE) is None


def test_card_of_another_kind() -> None:
    with pytest.raises(HardwareError, match="no PIV application"):
        PIVSession(VirtualCard())


def test_wrong_pin_shows_the_attempts_left(session: PIVSession) -> None:
    for left in (2, 1):
        with pytest.raises(OperatorError, match=f"attempts left: {left}") as failure:
            session.verify_pin("999999")
        assert failure.value.details == {"attempts_remaining": left}
        assert session.pin_attempts() == left
    with pytest.raises(HardwareError, match="blocked"):
        session.verify_pin("999999")
    assert session.pin_attempts() == 0
    with pytest.raises(HardwareError, match="blocked"):
        session.verify_pin(DEFAULT_PIN)


def test_right_pin_gives_all_attempts_back(session: PIVSession) -> None:
    with pytest.raises(OperatorError):
        session.verify_pin("999999")
    session.verify_pin(DEFAULT_PIN)
    assert session.pin_attempts() == 3


@pytest.mark.parametrize("text", ["", "12345", "123456789", "1234é6", "1234567\n"])
def test_what_no_card_could_accept_costs_no_attempt(session: PIVSession, text: str) -> None:
    with pytest.raises(OperatorError, match="six to eight"):
        session.verify_pin(text)
    assert session.pin_attempts() == 3


def test_puk_unblocks(session: PIVSession, applet: PIVApplet) -> None:
    applet.pin.left = 0
    session.unblock_pin(DEFAULT_PUK, "864202")
    session.verify_pin("864202")
    with pytest.raises(OperatorError, match="The PUK is wrong; attempts left: 2"):
        session.unblock_pin("00000000", "864202")


def test_pin_and_puk_change(session: PIVSession) -> None:
    assert session.pin_is_default()
    assert session.puk_is_default()
    session.change_pin(DEFAULT_PIN, "864202")
    session.change_puk(DEFAULT_PUK, "86420246")
    session.verify_pin("864202")
    assert not session.pin_is_default()
    assert not session.puk_is_default()


def test_asking_for_attempts_takes_back_anothers_verification(session: PIVSession, applet: PIVApplet) -> None:
    session.verify_pin(DEFAULT_PIN)
    assert session.pin_attempts() == 3
    assert not applet.session.pin_verified


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_generated_key_signs(session: PIVSession, algorithm: Algorithm) -> None:
    key = session.generate_key(Slot.CARD_AUTHENTICATION, algorithm, pin_policy=WITHOUT_PIN, touch_needed=False)
    hashing = hashes.SHA256() if algorithm is Algorithm.P256 else hashes.SHA384()
    digest = hashes.Hash(hashing)
    digest.update(b"message")
    signature = session.sign(Slot.CARD_AUTHENTICATION, algorithm, digest.finalize())
    key.verify(signature, b"message", ec.ECDSA(hashing))
    metadata = session.slot_metadata(Slot.CARD_AUTHENTICATION)
    assert metadata is not None
    assert metadata.public_key == key
    assert (metadata.pin_policy, metadata.touch_needed, metadata.generated) == (WITHOUT_PIN, False, True)


def test_pin_counts_for_one_signature(session: PIVSession) -> None:
    key = session.generate_key(Slot.SIGNATURE, Algorithm.P256, pin_policy=PINPolicy.ALWAYS, touch_needed=False)
    session.verify_pin(DEFAULT_PIN)
    signature = session.sign(Slot.SIGNATURE, Algorithm.P256, bytes(32))
    key.verify(signature, bytes(32), ec.ECDSA(Prehashed(hashes.SHA256())))
    with pytest.raises(APDUError, match="6982"):
        session.sign(Slot.SIGNATURE, Algorithm.P256, bytes(32))


@pytest.mark.parametrize("algorithm", list(ManagementAlgorithm))
def test_management_key_of_every_kind(algorithm: ManagementAlgorithm) -> None:
    applet = PIVApplet(1, management_algorithm=algorithm)
    session = managed(applet)
    new = bytes(range(algorithm.key_bytes))
    assert session.management_algorithm(new) is algorithm
    session.set_management_key(new, algorithm)
    again = PIVSession(VirtualCard(applet))
    with pytest.raises(OperatorError, match="does not accept the management key"):
        again.authenticate(bytes(algorithm.key_bytes), algorithm)
    again.authenticate(new, algorithm)
    again.put_object(0x5FC10A, b"written")


def test_nothing_is_written_without_the_management_key(applet: PIVApplet) -> None:
    session = PIVSession(VirtualCard(applet))
    with pytest.raises(APDUError, match="6982"):
        session.put_object(0x5FC10A, b"no")
    with pytest.raises(APDUError, match="6982"):
        session.generate_key(Slot.SIGNATURE, Algorithm.P256, pin_policy=WITHOUT_PIN, touch_needed=False)


def test_card_that_does_not_know_its_own_management_key(applet: PIVApplet) -> None:
    class Impostor(VirtualCard):
        def transmit(self, command: bytes) -> bytes:
            if command[1] == 0x87 and b"\x81\x08" in command:
                return tlv(0x7C, tlv(0x82, bytes(8))) + b"\x90\x00"
            return super().transmit(command)

    with pytest.raises(HardwareError, match="does not know its own management key"):
        PIVSession(Impostor(applet)).authenticate(DEFAULT_MANAGEMENT_KEY, ManagementAlgorithm.TDES)


def test_management_key_kept_on_the_card_needs_the_pin(session: PIVSession) -> None:
    assert not session.has_stored_management_key()
    session.store_management_key(bytes(range(24)))
    assert session.has_stored_management_key()
    with pytest.raises(APDUError, match="6982"):
        session.load_management_key()
    session.verify_pin(DEFAULT_PIN)
    assert session.load_management_key() == bytes(range(24))


def certificate_of(session: PIVSession, applet: PIVApplet) -> bytes:
    key = applet.add_key(Slot.SIGNATURE).private.public_key()
    certificate = card_maker().issue(common_name("n" * 60), key, ca=False)
    session.put_certificate(Slot.SIGNATURE, certificate)
    return certificate.public_bytes(Encoding.DER)


def test_certificate_round_trip(session: PIVSession, applet: PIVApplet) -> None:
    assert session.get_certificate(Slot.SIGNATURE) is None
    der = certificate_of(session, applet)
    found = session.get_certificate(Slot.SIGNATURE)
    assert found is not None
    assert found.public_bytes(Encoding.DER) == der


def test_packed_certificate_is_unpacked(session: PIVSession, applet: PIVApplet) -> None:
    der = certificate_of(session, applet)
    session.put_object(0x5FC10A, tlv(0x70, gzip.compress(der)) + tlv(0x71, b"\x01") + tlv(0xFE))
    found = session.get_certificate(Slot.SIGNATURE)
    assert found is not None
    assert found.public_bytes(Encoding.DER) == der


@pytest.mark.parametrize(
    ("packed", "words"),
    [(gzip.compress(bytes(1 << 20)), "too large"), (b"\x1f\x8bnonsense", "cannot be unpacked")],
)
def test_packed_certificate_cannot_fill_the_memory(session: PIVSession, packed: bytes, words: str) -> None:
    session.put_object(0x5FC10A, tlv(0x70, packed) + tlv(0x71, b"\x01"))
    with pytest.raises(HardwareError, match=words):
        session.get_certificate(Slot.SIGNATURE)


def test_imported_key_is_not_attested(session: PIVSession, applet: PIVApplet) -> None:
    applet.add_key(Slot.SIGNATURE).generated = False
    assert session.attest(Slot.SIGNATURE) is None
    metadata = session.slot_metadata(Slot.SIGNATURE)
    assert metadata is not None
    assert not metadata.generated
