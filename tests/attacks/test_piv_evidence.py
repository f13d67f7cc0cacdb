"""Attacks on the evidence of a PIV key: by forged, relayed, weak or foreign cards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation.evidence import Evidence
from agent.attestation.makers import TrustStore
from agent.attestation.piv import appraise_piv
from agent.attestation.possession import POSSESSION_TYPE
from agent.core.errors import PeerProtocolError
from agent.identity.piv_session import PIVSession, Slot
from agent.identity.piv_setup import SlotSigner
from agent.statements.envelope import pre_authentication_encoding
from agent.statements.roots import EvidenceClass, KeyKind, public_key_bytes
from tests.simulators import piv_maker
from tests.simulators.card import VirtualCard
from tests.simulators.makers import Maker, card_maker, common_name
from tests.simulators.piv_card import PIN_NEVER, PIVApplet

NOW_S = 1_800_000_000
ASKED = bytes(range(32))
STORES = (TrustStore(EvidenceClass.TEST, (card_maker().root,)),)


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(PeerProtocolError, match=words):
        yield


def evidence_from(applet: PIVApplet, slot: Slot = Slot.CARD_AUTHENTICATION, *, bound_to: bytes = ASKED) -> Evidence:
    session = PIVSession(VirtualCard(applet))
    session.verify_pin("123456")
    key = applet.keys[slot].private.public_key()
    attested = session.attest(slot)
    assert attested is not None
    signature = SlotSigner(session, slot, key).sign(pre_authentication_encoding(POSSESSION_TYPE, bound_to))
    parts = {"attestation": attested[0], "attestation_issuer": attested[1], "possession": signature}
    return Evidence(KeyKind.PIV, public_key_bytes(key), parts)


def card(slot: Slot = Slot.CARD_AUTHENTICATION, **options: object) -> PIVApplet:
    applet = PIVApplet(4711, **options)  # type: ignore[arg-type] # each test names the option that it is about
    applet.add_key(slot)
    return applet


def with_part(evidence: Evidence, **parts: bytes) -> Evidence:
    return replace(evidence, parts={**evidence.parts, **parts})


@pytest.fixture
def evidence() -> Evidence:
    return evidence_from(card())


def appraise(evidence: Evidence, *, asked: bytes = ASKED, stores: tuple[TrustStore, ...] = STORES) -> EvidenceClass:
    return appraise_piv(evidence, asked, stores, now_s=NOW_S).root.evidence


def test_honest_card_is_accepted(evidence: Evidence) -> None:
    appraisal = appraise_piv(evidence, ASKED, STORES, now_s=NOW_S)
    assert appraisal.root.evidence is EvidenceClass.TEST
    assert appraisal.root.public_key == evidence.public_key
    assert appraisal.facts is not None
    facts = appraisal.facts
    assert (facts.serial, facts.firmware, facts.slot, facts.pin_policy, facts.touch_needed) == (
        4711,
        (5, 4, 3),
        0x9E,
        PIN_NEVER,
        False,
    )


def test_card_of_an_unknown_maker() -> None:
    with refused("No known maker"):
        appraise(evidence_from(card(maker=Maker("Virtual PIV Root (test)"))))


def test_test_maker_counts_for_nothing_more(evidence: Evidence) -> None:
    hardware = TrustStore(EvidenceClass.HARDWARE, (Maker("A real maker").root,))
    assert appraise(evidence, stores=(hardware, *STORES)) is EvidenceClass.TEST
    with refused("No known maker"):
        appraise(evidence, stores=(hardware,))


def test_evidence_relayed_from_another_exchange(evidence: Evidence) -> None:
    with refused("signature does not hold"):
        appraise(evidence, asked=bytes(32))


def test_evidence_without_possession(evidence: Evidence) -> None:
    with refused("signature does not hold"):
        appraise(with_part(evidence, possession=b""))


def test_attestation_of_another_key(evidence: Evidence) -> None:
    other = evidence_from(card()).parts
    with refused("another key"):
        appraise(with_part(evidence, attestation=other["attestation"], attestation_issuer=other["attestation_issuer"]))


def test_software_key_with_a_cards_attestation(evidence: Evidence) -> None:
    mine = ec.generate_private_key(ec.SECP256R1())
    with refused("another key"):
        appraise(replace(evidence, public_key=public_key_bytes(mine.public_key())))


def test_attestation_signed_by_a_slot_key_instead_of_f9(evidence: Evidence) -> None:
    """A certificate that a card issued for a slot is no authority, although it chains to the maker."""
    applet = card()
    honest = evidence_from(applet)
    mine = ec.generate_private_key(ec.SECP256R1())
    forged = piv_maker.attest(
        applet.keys[0x9E].private, mine.public_key(), slot=0x9E, serial=4711, firmware=(5, 4, 3), policies=(1, 1)
    )
    parts = {**honest.parts, "attestation": forged, "attestation_issuer": honest.parts["attestation"]}
    with refused("No known maker"):
        appraise(Evidence(KeyKind.PIV, public_key_bytes(mine.public_key()), parts))


def test_attestation_by_a_card_whose_f9_was_replaced() -> None:
    applet = card()
    mine = ec.generate_private_key(ec.SECP256R1())
    applet.attestation_key = mine
    with refused("No known maker"):
        appraise(evidence_from(applet))


@pytest.mark.parametrize("firmware", [(4, 2, 6), (4, 3, 4), (0, 0, 0)])
def test_card_with_weak_firmware(firmware: tuple[int, int, int]) -> None:
    with refused("CVE-2017-15361"):
        appraise(evidence_from(card(firmware=firmware)))


@pytest.mark.parametrize("slot", [Slot.AUTHENTICATION, Slot.SIGNATURE])
def test_key_that_promises_a_pin_but_wants_none(slot: Slot) -> None:
    applet = card(slot)
    assert appraise(evidence_from(applet, slot)) is EvidenceClass.TEST
    applet.keys[slot].pin_policy = PIN_NEVER
    with refused("without a PIN"):
        appraise(evidence_from(applet, slot))


@pytest.mark.parametrize("now_s", [1_600_000_000, 2_500_000_000])
def test_attestation_out_of_its_time(evidence: Evidence, now_s: int) -> None:
    with refused("No known maker"):
        appraise_piv(evidence, ASKED, STORES, now_s=now_s)


def test_card_with_its_issuers_certificate_only() -> None:
    applet = PIVApplet(0, make="plain")
    key = applet.add_key(0x9E).private.public_key()
    session = PIVSession(VirtualCard(applet))
    certificate = card_maker().issue(common_name("card 12"), key, ca=False).public_bytes(Encoding.DER)
    message = pre_authentication_encoding(POSSESSION_TYPE, ASKED)
    signature = SlotSigner(session, Slot.CARD_AUTHENTICATION, key).sign(message)
    evidence = Evidence(KeyKind.PIV, public_key_bytes(key), {"certificate": certificate, "possession": signature})
    appraisal = appraise_piv(evidence, ASKED, STORES, now_s=NOW_S)
    assert (appraisal.root.evidence, appraisal.facts) == (EvidenceClass.TEST, None)
    with refused("No known maker"):
        appraise(evidence, stores=(TrustStore(EvidenceClass.TEST, (Maker("Another issuer").root,)),))


def test_other_kinds_of_evidence_are_refused(evidence: Evidence) -> None:
    with refused("another kind"):
        appraise(replace(evidence, kind=KeyKind.TPM))
    with refused("no certificate"):
        appraise(replace(evidence, parts={}))


# A bent serial number may be negative, of which `cryptography` warns.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(part=st.sampled_from(["attestation", "attestation_issuer", "possession"]), data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_altered_byte_is_believed_or_crashes(part: str, data: st.DataObject) -> None:
    original = SHARED.parts[part]
    at = data.draw(st.integers(0, len(original) - 1))
    altered = original[:at] + bytes([original[at] ^ data.draw(st.integers(1, 255))]) + original[at + 1 :]
    # A certificate has bits that mean nothing (unused ones of its signature); whatever else changes is refused.
    with contextlib.suppress(PeerProtocolError):
        assert appraise_piv(with_part(SHARED, **{part: altered}), ASKED, STORES, now_s=NOW_S) == HONEST


SHARED = evidence_from(card())
HONEST = appraise_piv(SHARED, ASKED, STORES, now_s=NOW_S)
