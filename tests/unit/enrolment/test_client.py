"""Enrolment from the box's side, against a played registrar over HTTPS."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.errors import OperatorError, PeerProtocolError
from agent.enrolment.line import EnrolmentStoppedError
from agent.enrolment.messages import State
from agent.enrolment.progress import Step
from agent.identity.key import init_key
from agent.trust.fingerprint import consortium_words
from agent.trust.peers import node_name
from tests.simulators.enrolling import EnrollingBox, PowerCut
from tests.simulators.registrar import SITE, Asked, PlayedRegistrar, Said, refusal


@pytest.fixture
def registrar(tmp_path: Path) -> Iterator[PlayedRegistrar]:
    with PlayedRegistrar(tmp_path / "registrar") as played:
        yield played


@pytest.fixture
def box(tmp_path: Path, registrar: PlayedRegistrar) -> EnrollingBox:
    return EnrollingBox.make(tmp_path / "box", registrar)


def test_a_token_makes_a_box_a_member_of_its_hospital(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    record = box.enrol(registrar.token())
    assert (record.site, record.node) == (SITE, node_name(box.key.key_id))
    assert record.root_digest == registrar.snapshot().root_digest
    assert box.folder.load_record() == record
    assert box.folder.load_pending() is None
    assert len(registrar.nodes[SITE]) == 1
    assert box.steps == list(Step)
    assert box.told[-1].sentence == f"Enrolled: {SITE} in The Played Consortium."


def test_the_registrar_learns_nothing_that_proves_the_token_to_the_hospital(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token()
    box.enrol(text)
    (token,) = registrar.tokens.values()
    sent = b"".join(asked.body + asked.secret.encode() for asked in registrar.asked)
    assert token.secret not in sent
    assert text.encode() not in sent


def test_a_token_of_the_registrar_waits_for_a_person_of_the_hospital(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    box.enrol(registrar.token(by_site=False))
    waiting = [news for news in box.told if "has to endorse" in news.sentence]
    assert len(waiting) == 1
    assert len(waiting[0].next_step.rpartition(": ")[2].split()) == 8


def test_the_person_at_the_box_confirms_the_consortium_by_its_words(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    box.enrol(registrar.token())
    assert box.asked_to_confirm == [consortium_words(registrar.snapshot().root_digest)]


def test_a_consortium_that_nobody_confirms_is_sent_nothing(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    box.confirms = False
    with pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.not_confirmed"
    assert {asked.method for asked in registrar.asked} == {"GET"}
    assert box.folder.load_pending() is None


def test_the_preset_consortium_needs_no_person(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    box.preset, box.confirms = registrar.snapshot().root_digest, False
    assert box.enrol(registrar.token()).site == SITE
    assert box.asked_to_confirm == []


def test_where_nobody_is_the_words_to_compare_are_said(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    box.confirms = None
    with pytest.raises(OperatorError, match="a person has to confirm") as caught:
        box.enrol(registrar.token())
    assert consortium_words(registrar.snapshot().root_digest) in caught.value.next_step
    box.confirms = True
    assert box.enrolment.resume() is not None


def test_enrolling_again_says_that_it_is_done(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    text = registrar.token()
    record = box.enrol(text)
    asked = len(registrar.asked)
    assert box.enrol(text) == record
    assert box.enrol(registrar.token()) == record
    assert len(registrar.asked) == asked
    assert "already" in box.told[-1].sentence


def test_a_new_key_takes_the_old_ones_place_only_where_asked(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    old = box.enrol(registrar.token())
    box.key = init_key(f"software:{box.directory / 'other.key'}")
    with pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.other_key"
    new = box.enrol(registrar.token(), replaces=True)
    assert new.node != old.node
    assert box.folder.load_record() == new


def test_a_registrar_that_is_down_is_asked_again_and_every_time_that_is_said(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    failures = iter([Said(503), Said(429), Said(hang_up=True), Said(502)])
    registrar.before = lambda asked: next(failures, None) if asked.method != "GET" else None
    box.enrol(registrar.token())
    busy, gone = "enrolment.busy", "enrolment.unreachable"
    assert box.troubles == [busy, busy, gone, busy]
    assert len(registrar.nodes[SITE]) == 1


def test_a_registrar_that_never_comes_back_is_waited_for_until_somebody_says_stop(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token()
    registrar.before = lambda _: Said(503)
    with pytest.raises(EnrolmentStoppedError):
        box.enrol(text)
    # Waits double to half a minute: ten minutes are some two dozen attempts, and each is told.
    assert 15 < len(box.troubles) < 40
    registrar.before = lambda _: None
    box.patience_s *= 2
    resumed = box.enrolment.resume()
    assert resumed is not None
    assert resumed.site == SITE


def test_an_answer_that_drips_is_cut_off(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    slow = iter([True])

    def late(asked: Asked, said: Said) -> Said:
        if asked.method == "POST" and next(slow, False):
            box.clock.waited_s += 31
        return said

    registrar.after = late
    box.enrol(registrar.token())
    assert box.troubles == ["enrolment.slow_answer"]


@pytest.mark.parametrize("path", ["/v1/ca.pem", "/repository/1.root.json", "/v1/enrolments"])
def test_an_endless_answer_is_cut_off(registrar: PlayedRegistrar, box: EnrollingBox, path: str) -> None:
    registrar.before = lambda asked: Said(body=b" " * 65536, endless=True) if asked.path == path else None
    with pytest.raises(PeerProtocolError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.bad_answer"


@pytest.mark.parametrize(
    "said",
    [
        Said(302, {}),
        Said(404, b"<html>"),
        Said(500, b""),
        Said(200, b"not JSON"),
        Said(200, b"[" * 100_000),
        Said(200, {"enrolment": "../../etc", "nonce": "A" * 43}),
        Said(200, {"enrolment": "good", "nonce": "A" * 40}),
        Said(200, {"enrolment": "good", "nonce": 7}),
        Said(400, {"code": "x y", "sentence": "", "next_step": ""}),
    ],
)
def test_an_answer_of_another_form_ends_the_enrolment_in_plain_words(
    registrar: PlayedRegistrar, box: EnrollingBox, said: Said
) -> None:
    registrar.before = lambda asked: said if asked.method == "POST" else None
    with pytest.raises(PeerProtocolError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.bad_answer"


def test_what_the_registrar_refuses_is_said_in_its_words_without_control_characters(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text = registrar.token()
    refused = {"code": "enrol.token_expired", "sentence": "Too\x1b[2J late.", "next_step": "Ask\nagain."}
    registrar.before = lambda asked: Said(403, refused) if asked.method == "POST" else None
    with pytest.raises(OperatorError) as caught:
        box.enrol(text)
    assert caught.value.sentence == "The registrar refuses: Too [2J late."
    assert caught.value.next_step == "Ask again."
    assert caught.value.details["registrar_code"] == "enrol.token_expired"
    assert box.folder.load_pending() is None


def test_a_refusal_of_the_hospital_ends_the_enrolment(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    def refuse(asked: Asked, said: Said) -> Said:
        for known in registrar.enrolments.values():
            if known.state is State.ENDORSED:
                known.state = State.REFUSED
        return said

    registrar.after = refuse
    with pytest.raises(OperatorError, match="The hospital says no") as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.refused"
    assert box.folder.load_record() is None


def test_a_token_that_expired_while_the_hospital_took_its_time_still_counts(
    registrar: PlayedRegistrar, box: EnrollingBox
) -> None:
    text, registrar.tool_works = registrar.token(), False
    with pytest.raises(EnrolmentStoppedError):
        box.enrol(text)
    box.clock.ahead, box.patience_s, registrar.tool_works = timedelta(days=30), box.patience_s * 2, True
    record = box.enrolment.resume()
    assert record is not None
    assert record.site == SITE


def test_there_is_nothing_to_resume_on_a_box_that_was_given_no_token(box: EnrollingBox) -> None:
    assert box.enrolment.resume() is None


def test_two_at_once_are_told_from_each_other(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    with box.folder.locked(), pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.under_way"


@pytest.mark.slow
def test_the_power_may_go_at_every_write_and_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PlayedRegistrar(tmp_path / "registrar") as registrar:
        counted = EnrollingBox.make(tmp_path / "counted", registrar)
        with PowerCut(monkeypatch, None) as never:
            counted.enrol(registrar.token())
        assert never.moments > 20
        for moment in range(never.moments):
            registrar.nodes[SITE] = ()
            box = EnrollingBox.make(tmp_path / f"box-{moment}", registrar)
            text = registrar.token()
            with PowerCut(monkeypatch, moment):
                box.enrol(text)
            record = box.enrolment.resume() or box.folder.load_record() or box.enrol(text)
            assert record.key_id == box.key.key_id
            assert box.folder.load_pending() is None
            assert [node.node for node in registrar.nodes[SITE]] == [record.node], moment
            assert len(registrar.enrolments) == moment + 2


def test_a_full_disk_is_said_and_loses_nothing(
    registrar: PlayedRegistrar, box: EnrollingBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = registrar.token()

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left") as caught:
        box.enrol(text)
    assert getattr(caught.value, "code", "") == "enrolment.not_stored"
    monkeypatch.undo()
    assert box.enrol(text).site == SITE


def test_a_token_that_another_box_has_used_is_refused(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    registrar.before = lambda asked: refusal(409, "enrol.token_used") if asked.method == "POST" else None
    with pytest.raises(OperatorError) as caught:
        box.enrol(registrar.token())
    assert caught.value.code == "enrolment.refused"
    assert registrar.nodes[SITE] == ()


def test_a_hospitals_tool_that_begins_anew_is_answered_anew(registrar: PlayedRegistrar, box: EnrollingBox) -> None:
    begun: list[Asked] = []

    def begin_anew(asked: Asked) -> Said | None:
        if asked.path.endswith("/endorsement/evidence") and not begun:
            begun.append(asked)
            for known in registrar.enrolments.values():
                known.site_nonce = bytes(32)
            return refusal(409, "enrol.wrong_state")
        return None

    registrar.before = begin_anew
    assert box.enrol(registrar.token()).site == SITE
    assert registrar.requests("PUT", "/endorsement/evidence") == 2
