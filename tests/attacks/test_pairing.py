"""What strangers try where a technician approves a box on a telephone."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.attestation.pairing import commitment, pairing_code, plain_code
from agent.core.errors import NetworkError, OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import KeyKind
from provisioning.authority.appraisal import Subject
from provisioning.registrar import pairing
from provisioning.registrar.pairing import (
    INVITATION_LIFETIME_S,
    PAIRING_LIFETIME_S,
    PairingDesk,
    PairingState,
)
from provisioning.registrar.passkeys import PasskeyServer
from provisioning.registrar.store import Store
from tests.simulators.clock import SetClock
from tests.simulators.passkey import PlayedPasskey

ORIGIN = "https://registrar.example.org:8443"
A, B = SiteID("hospital-a"), SiteID("hospital-b")
SUBJECT = Subject(KeyKind.TPM, b"public", b"\x00\x0bek", b"\x00\x0bkey")
SECRET = bytes(32)


@dataclass
class Scene:
    """The registrar's desk, and a box that shows its code."""

    desk: PairingDesk
    clock: SetClock
    issued: list[tuple[SiteID, bytes]] = field(default_factory=list)
    name: str = ""
    code: str = ""

    def show(self) -> None:
        """A box begins, and shows a code."""
        self.name, committed = self.desk.begin(SECRET, SUBJECT, b"link")
        box_nonce = secrets.token_bytes(32)
        nonce = self.desk.reveal(self.name, SECRET, box_nonce)
        assert commitment(nonce) == committed
        names = SUBJECT.ek_name, SUBJECT.key_name
        self.code = pairing_code(*names, b"link", registrar_nonce=nonce, box_nonce=box_nonce)

    def passkey(self, site: SiteID = A) -> PlayedPasskey:
        """A technician of a hospital, with a passkey."""
        passkey, invitation = PlayedPasskey(ORIGIN), self.desk.invite(site)
        assert self.desk.add_passkey(invitation, passkey.create(self.desk.ask_passkey(invitation).options)) == site
        return passkey

    def approve(self, passkey: PlayedPasskey, typed: str | None = None) -> SiteID:
        """A technician types a code, and signs."""
        ceremony = self.desk.ask(self.name, self.code if typed is None else typed)
        return self.desk.approve(self.name, passkey.sign(ceremony.options))[0]

    @property
    def state(self) -> PairingState:
        """As the box hears it."""
        return self.desk.situation(self.name, SECRET).state


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = SetClock()
    store = Store.open(f"sqlite:///{tmp_path / 'registrar.db'}", clock)
    issued: list[tuple[SiteID, bytes]] = []

    def issue(site: SiteID, ek_name: bytes) -> str:
        issued.append((site, ek_name))
        return "SEH1:A TOKEN"

    desk = PairingDesk(PasskeyServer(ORIGIN), store, issue, clock, secrets.token_bytes)
    scene = Scene(desk, clock, issued)
    scene.show()
    try:
        yield scene
    finally:
        store.close()


def refused(code: str) -> AbstractContextManager[object]:
    return pytest.raises(OperatorError, check=lambda error: error.code == code)


def test_an_honest_technician_approves(scene: Scene) -> None:
    typed = f" {scene.code[:4].lower()}-{scene.code[4:]} "
    assert scene.approve(scene.passkey(), typed) == A
    assert scene.desk.situation(scene.name, SECRET).token == "SEH1:A TOKEN"
    assert scene.issued == [(A, SUBJECT.ek_name)]


def test_a_wrong_code_ends_the_pairing_at_the_first_attempt(scene: Scene) -> None:
    passkey = scene.passkey()
    with refused("pairing.wrong_code"):
        scene.approve(passkey, "AAAAAAAA")
    assert scene.state is PairingState.REFUSED
    with refused("pairing.gone"):
        scene.approve(passkey)
    assert scene.issued == []


def test_without_a_hospitals_passkey_no_attempt_is_spent(scene: Scene) -> None:
    with refused("pairing.unknown_passkey"):
        scene.approve(PlayedPasskey(ORIGIN), "AAAAAAAA")
    assert scene.state is PairingState.WAITING
    assert scene.approve(scene.passkey()) == A


def test_a_late_code_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    scene.clock.move(PAIRING_LIFETIME_S)
    with refused("pairing.gone"):
        scene.approve(passkey)
    with refused("pairing.gone"):
        scene.desk.situation(scene.name, SECRET)


def test_an_approval_replayed_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    answer = passkey.sign(scene.desk.ask(scene.name, scene.code).options)
    scene.desk.approve(scene.name, answer)
    with refused("pairing.gone"):
        scene.desk.approve(scene.name, answer)
    scene.show()
    scene.desk.ask(scene.name, scene.code)
    with refused("passkey.refused"):
        scene.desk.approve(scene.name, answer)
    assert len(scene.issued) == 1


def test_a_signature_for_another_code_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    answer = passkey.sign(scene.desk.ask(scene.name, "AAAAAAAA").options)
    scene.desk.ask(scene.name, scene.code)
    with refused("passkey.refused"):
        scene.desk.approve(scene.name, answer)
    assert scene.state is PairingState.WAITING


def test_a_page_of_another_origin_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    for origin in ("https://registrar.example.org", "http://registrar.example.org:8443", "https://evil.example"):
        passkey.origin = origin
        with refused("passkey.refused"):
            scene.approve(passkey)
    assert scene.state is PairingState.WAITING


def test_a_person_who_was_not_verified_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    passkey.verified = False
    with refused("passkey.refused"):
        scene.approve(passkey)


def test_a_copied_passkey_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    passkey.count = 7
    scene.approve(passkey)
    scene.show()
    passkey.count = 3
    with refused("passkey.refused"):
        scene.approve(passkey)


def test_a_forged_signature_is_refused(scene: Scene) -> None:
    passkey = scene.passkey()
    passkey.key = PlayedPasskey(ORIGIN).key
    with refused("passkey.refused"):
        scene.approve(passkey)


@pytest.mark.parametrize("answer", [{}, {"id": 1}, {"id": "AA", "rawId": "AA", "type": "public-key", "response": {}}])
def test_an_answer_that_is_nonsense_is_refused(scene: Scene, answer: dict[str, object]) -> None:
    scene.desk.ask(scene.name, scene.code)
    with refused("passkey.refused"):
        scene.desk.approve(scene.name, answer)
    invitation = scene.desk.invite(A)
    scene.desk.ask_passkey(invitation)
    with refused("passkey.refused"):
        scene.desk.add_passkey(invitation, answer)


def test_an_invitation_is_good_once_and_not_for_long(scene: Scene) -> None:
    invitation = scene.desk.invite(B)
    passkey = PlayedPasskey(ORIGIN)
    scene.desk.add_passkey(invitation, passkey.create(scene.desk.ask_passkey(invitation).options))
    with refused("pairing.gone"):
        scene.desk.ask_passkey(invitation)
    late = scene.desk.invite(B)
    scene.clock.move(INVITATION_LIFETIME_S)
    with refused("pairing.gone"):
        scene.desk.ask_passkey(late)
    scene.show()
    assert scene.approve(passkey) == B


def test_another_box_cannot_fetch_the_token(scene: Scene) -> None:
    scene.approve(scene.passkey())
    with refused("pairing.gone"):
        scene.desk.situation(scene.name, b"\x01" * 32)
    with refused("pairing.gone"):
        scene.desk.reveal(scene.name, b"\x01" * 32, bytes(32))


def test_a_box_cannot_try_nonces_for_a_code_it_wishes(scene: Scene) -> None:
    with refused("pairing.gone"):
        scene.desk.reveal(scene.name, SECRET, bytes(32))


def test_a_code_is_bound_to_the_whole_box() -> None:
    nonces = {"registrar_nonce": bytes(32), "box_nonce": bytes(32)}
    codes = {
        pairing_code(b"a", b"b", b"c", **nonces),
        pairing_code(b"x", b"b", b"c", **nonces),
        pairing_code(b"a", b"x", b"c", **nonces),
        pairing_code(b"a", b"b", b"x", **nonces),
        pairing_code(b"ab", b"", b"c", **nonces),
        pairing_code(b"a", b"b", b"c", registrar_nonce=bytes(32), box_nonce=b"\x01" * 32),
        pairing_code(b"a", b"b", b"c", registrar_nonce=b"\x01" * 32, box_nonce=bytes(32)),
    }
    assert len(codes) == 7
    assert all(len(code) == 8 and plain_code(code) == code for code in codes)


def test_a_crowd_of_boxes_is_held_up_until_some_are_gone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MAX_PAIRINGS", 3)
    scene.show()
    scene.show()
    with pytest.raises(NetworkError, match="Too many boxes"):
        scene.show()
    scene.clock.move(PAIRING_LIFETIME_S)
    scene.show()


def test_a_lost_telephone_approves_nothing_once_its_hospital_forgot_it(scene: Scene) -> None:
    lost, invitation, other = scene.passkey(), scene.desk.invite(A), scene.passkey(B)
    assert scene.desk.forget_passkeys(A) == 1
    with refused("pairing.unknown_passkey"):
        scene.approve(lost)
    with refused("pairing.gone"):
        scene.desk.ask_passkey(invitation)
    assert scene.approve(other) == B
