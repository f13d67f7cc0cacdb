"""Keys that need a person, in boxes that run: a secure study with a TPM, a smartcard and a security key."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from agent.identity.key import init_key, open_key
from agent.service.control import ask_agent, renew_session
from agent.statements.roots import KeyKind
from tests.simulators.authenticator import Authenticator, CTAPApplet
from tests.simulators.card import VirtualCard
from tests.simulators.hospital import RunningHospital
from tests.simulators.pcscd import Slot, card_inserted
from tests.simulators.person import Technician
from tests.simulators.piv_card import PIVApplet
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until
from tests.simulators.swtpm import shared_maker

pytestmark = pytest.mark.slow

QUANTISATION = 2e-3
PIN = "975318"
LIFE_S = 24
"""Of a session that is to end in mid-run: long enough for a coordinator to get through a round."""


@dataclass(slots=True)
class AttendedKey:
    """A key in a reader that wants a person, and its holder."""

    uri: str
    slot: Slot
    card: VirtualCard

    def vouch(self, box: RunningHospital) -> int:
        """The technician comes, and runs `seh-agent key renew`."""
        return renew_session(box.directory / "state", open_key(self.uri, person=Technician(pin=PIN)))


@pytest.fixture
def attended(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AttendedKey]:
    """A security key; where a test says so, a smartcard whose slot wants the PIN for every signature."""
    card = VirtualCard(CTAPApplet(Authenticator(), polls_before_touch=2), PIVApplet(4713))
    with card_inserted(card) as slot:
        uris = {
            "fido2": f"fido2:{tmp_path}/security-key.json?reader={quote(slot.reader)}",
            "piv-9a": f"piv:{quote(slot.reader)}?slot=9a",
        }
        uri = uris[getattr(request, "param", "fido2")]
        init_key(uri, person=Technician(pin=PIN, new_pin=PIN))
        yield AttendedKey(uri, slot, card)


@pytest.fixture
def consortium(superlink: RunningSuperLink, attended: AttendedKey, tmp_path: Path) -> Iterator[SecureConsortium]:
    """Three boxes: a has a TPM, b a smartcard's slot 9E, c the security key."""
    with ExitStack() as stack:
        tpm = stack.enter_context(shared_maker().make())
        slot = stack.enter_context(card_inserted(VirtualCard(PIVApplet(4712))))
        card_uri = f"piv:{quote(slot.reader)}?slot=9e"
        init_key(card_uri, person=Technician())
        uris = {"a": tpm.uri, "b": card_uri, "c": attended.uri}
        yield stack.enter_context(SecureConsortium.found(superlink, tmp_path, letters="abc", key_uris=uris))


def _wait_until_it_wants_a_person(box: RunningHospital, *, error: str = "identity.no_session") -> None:
    """Wait until the box has refused a message because nobody has vouched for it."""
    count = len(_refusals(box, error))
    wait_until(lambda: len(_refusals(box, error)) > count, limit_s=90, what="a refusal for want of a session")


def _refusals(box: RunningHospital, error: str) -> list[object]:
    return [event for event in box.events("message_refused") if event["error"] == error]


def _session_of(box: RunningHospital) -> str:
    return "" if box.status is None else box.status.session


def test_a_study_runs_over_a_tpm_a_card_and_a_security_key_that_somebody_touched(
    consortium: SecureConsortium, attended: AttendedKey
) -> None:
    box = consortium.box("c")
    assert [consortium.box(letter).kind for letter in "abc"] == [KeyKind.TPM, KeyKind.PIV, KeyKind.FIDO2]
    consortium.start()
    wait_until(lambda: _session_of(box) == "needs-person", limit_s=30, what="a call for a person")
    status = box.status
    assert status is not None
    assert status.link == "online", "it stays joined all the same"
    assert "security key must vouch" in status.session_sentence
    assert "seh-agent key renew" in status.session_next_step
    assert "seh-agent key renew" in box.events("session_needs_person")[0]["next_step"]

    consortium.launch()
    _wait_until_it_wants_a_person(box)
    assert {event["refusal"] for event in box.events("message_refused")} == {"busy"}
    expires_s = attended.vouch(box)
    attended.slot.remove()
    consortium.wait_for("finished")

    np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
    history = consortium.result["history"]
    assert [record["cohort"] for record in history] == [list(consortium.sites)] * 3
    assert [record["attempts"] for record in history] == [1, 1, 1], "a box that waited for its person is no fault"
    answer = ask_agent(box.directory / "state", "status")
    assert (answer["session"], answer["session_expires_s"]) == ("valid", expires_s)
    for path in (box.directory / "agent.log", *(box.directory / "state").rglob("*")):
        assert not path.is_file() or PIN.encode() not in path.read_bytes()


def test_a_security_key_s_session_that_ends_in_mid_run_holds_the_study_up_until_somebody_touches_it(
    consortium: SecureConsortium, attended: AttendedKey
) -> None:
    box, other = consortium.box("c"), consortium.box("a")
    box.session_life_s = LIFE_S
    consortium.start(training_s=1.0)
    consortium.launch()
    _wait_until_it_wants_a_person(box)
    attended.vouch(box)
    attended.slot.remove()
    # Out of its reader, the key is not missed as long as its session counts: the first round comes about.
    consortium.wait_for("round")
    consortium.wait_for_work("a", "masked-input 2")
    assert other.process is not None
    other.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(
            lambda: (
                box.status is not None and box.status.session == "needs-person" and not box.status.session_expires_s
            ),
            limit_s=2 * LIFE_S,
            what="the session's end",
        )
    finally:
        other.process.send_signal(signal.SIGCONT)
    _wait_until_it_wants_a_person(box)
    assert len(consortium.events("round")) < 4
    assert box.status is not None
    assert box.status.link == "online"

    attended.slot.insert(attended.card)
    attended.vouch(box)
    consortium.wait_for("finished")
    np.testing.assert_allclose(consortium.trained, 1.0 + 3 * consortium.mean, atol=QUANTISATION)
    assert all(record["cohort"] == list(consortium.sites) for record in consortium.result["history"])
    assert not consortium.events("faulty")


def _at_a_terminal(command: list[str], *, answer: str) -> tuple[str, int]:
    """Run a command that asks one question; returns all that its terminal showed, and its exit status."""
    terminal, far_end = os.openpty()
    shown = ""
    try:
        with subprocess.Popen(
            command, stdin=far_end, stdout=far_end, stderr=far_end, start_new_session=True
        ) as process:
            os.close(far_end)
            with contextlib.suppress(OSError):  # EIO: the command has ended
                while piece := os.read(terminal, 1000):
                    before, shown = shown, shown + piece.decode()
                    if "PIN of" in shown and "PIN of" not in before:
                        os.write(terminal, f"{answer}\n".encode())
            return shown, process.wait(30)
    finally:
        os.close(terminal)


def test_a_technician_vouches_at_a_terminal_and_no_pin_is_echoed(
    consortium: SecureConsortium, attended: AttendedKey
) -> None:
    box = consortium.box("c")
    box.start()
    box.wait_for_link()
    command = [str(Path(sys.executable).parent / "seh-agent"), "key", "renew", "--config", str(box.config)]
    shown, status = _at_a_terminal(command, answer="000000")
    assert (status, "attempts left: 7" in " ".join(shown.split())) == (2, True), shown
    shown, status = _at_a_terminal(command, answer=PIN)
    assert status == 0, shown
    for words in (box.site, "7 attempts left", "Touch", "Done"):
        assert words in shown
    assert PIN not in shown
    wait_until(lambda: _session_of(box) == "valid", limit_s=10, what="a session")


@pytest.mark.parametrize("attended", ["fido2", "piv-9a"], indirect=True)
def test_a_restarted_agent_asks_for_its_person_again_and_keeps_its_door_key(
    consortium: SecureConsortium, attended: AttendedKey
) -> None:
    box = consortium.box("c")
    box.start()
    box.wait_for_link()
    attended.vouch(box)
    wait_until(lambda: _session_of(box) == "valid", limit_s=10, what="a session")
    box.kill()
    box.start()
    assert box.wait_for_link() < 15, "the SuperLink knows it by the same key"
    wait_until(lambda: _session_of(box) == "needs-person", limit_s=10, what="a call for a person")
    attended.vouch(box)
    assert box.stop()[0] == 0
    assert box.events("agent_stopped")[-1]["clean"] is True
    assert not (box.directory / "state" / "control.sock").exists()
