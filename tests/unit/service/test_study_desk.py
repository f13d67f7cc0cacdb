"""Studies as console and terminal see them, and a steward's decisions as they come in through the control socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.wire import Frame, Stage
from agent.federation.board import RoundBoard
from agent.governance.approval import TERMINAL_ORIGIN
from agent.service.control import ControlDesk, ControlSocket
from agent.service.running_box import RunningBox
from agent.service.state import AgentStatus
from agent.service.study_desk import StudyDesk, StudyShelves
from tests.simulators.gate_scene import SITES, Scene, gate_scene
from tests.simulators.governed import PURPOSE, Deciding, write_policy
from tests.simulators.hospital import STUDY_ID, install_study, study_json

SITE = "hospital-a"


@dataclass
class Box:
    """A box's desk behind a control socket, and its steward."""

    scene: Scene
    board: RoundBoard
    asked: RunningBox
    steward: Deciding
    studies: Path

    def line(self, study: str = STUDY_ID) -> tuple[str, str]:
        line = next(line for line in self.asked.studies() if line.study == study)
        return line.state, line.rule


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    scene, steward = gate_scene(tmp_path), Deciding(SITE)
    scene.desk.employ(steward.key)
    studies = tmp_path / "studies"
    scene.study, scene.digest = install_study(studies, study_json(SITES, use=PURPOSE))
    board = RoundBoard(scene.clock)
    desk = StudyDesk(
        StudyShelves(studies, tmp_path / "catalog.toml", tmp_path / "stewards"),
        scene.gate,
        scene.desk.book,
        scene.desk.records,
        scene.desk.audit,
        board,
        SITE,
        ("https://box.example",),
        scene.clock,
    )
    control = ControlDesk(None, lambda: AgentStatus("online"), handlers=desk.handlers())
    with ControlSocket(tmp_path, control.answer, SystemClock()):
        yield Box(scene, board, RunningBox(tmp_path), steward, studies)


def test_a_study_goes_from_waiting_to_approved_to_withdrawn(box: Box) -> None:
    assert box.line() == ("waiting", "approved")
    given = box.steward.approve(box.asked, STUDY_ID)
    assert (given.standing, given.steward, given.epsilon) == (True, "dr-steward", None)
    assert box.line() == ("approved", "")
    box.steward.withdraw(box.asked, given.sequence)
    assert box.line() == ("withdrawn", "approved")
    told = [(one.standing, one.trouble) for one in box.asked.study(STUDY_ID).approvals]
    assert told == [(False, "dr-steward withdrew it")]


def test_all_that_a_steward_must_know_is_shown(box: Box) -> None:
    view = box.asked.study(STUDY_ID)
    assert (view.fields, view.label, view.sites) == (("age", "ill"), "ill", SITES)
    assert (view.minimum_sites, view.rounds, view.unit, view.epsilon) == (3, 3, None, None)
    assert view.approvals_needed == 1
    assert {finding.rule for finding in view.findings if not finding.passed} == {"approved"}
    assert len(view.dataset_digest) == 64


def test_a_refusal_is_remembered_until_somebody_approves(box: Box) -> None:
    box.asked.refuse_study(STUDY_ID, box.steward.name)
    assert box.line() == ("refused", "approved")
    box.steward.approve(box.asked, STUDY_ID)
    assert box.line() == ("approved", "")


def test_nobody_is_asked_to_approve_what_could_not_run(box: Box) -> None:
    write_policy(box.scene.place / "policy.toml", fields=["ill"])
    assert box.line() == ("not-permitted", "fields")
    with pytest.raises(OperatorError) as refusal:
        box.asked.begin_approval(STUDY_ID, box.steward.name)
    assert refusal.value.code == "permit.fields"


def test_what_changed_while_the_steward_read_is_not_approved(box: Box) -> None:
    class Slow(RunningBox):
        def complete_approval(self, approval: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
            (box.scene.place / "local.csv").write_text("age,ill\n99,1\n", encoding="utf-8")
            return super().complete_approval(approval)

    with pytest.raises(OperatorError) as refusal:
        box.steward.approve(Slow(box.asked.directory), STUDY_ID)
    assert refusal.value.code == "approval.changed_meanwhile"
    assert box.line() == ("waiting", "approved")


def test_studies_that_are_gone_and_data_that_fit_none_are_named(box: Box) -> None:
    box.steward.approve(box.asked, STUDY_ID)
    shutil.rmtree(box.studies / STUDY_ID)
    assert box.line()[0] == "absent"
    data = study_json(SITES, use=PURPOSE, id="other-data").replace(b'"played"', b'"elsewhere"')
    install_study(box.studies, data)
    assert box.line("other-data") == ("not-permitted", "schema")
    (box.studies / "broken").mkdir()
    (box.studies / "broken" / "study.json").write_text("{", encoding="utf-8")
    assert box.line("broken")[0] == "absent"


def test_keys_on_record_and_keys_that_wait_are_told_apart(box: Box) -> None:
    newcomer = Deciding(SITE, "dr-new")
    offered = box.asked.offer_steward(newcomer.key.record.encode().decode())
    assert not offered.endorsed
    listed = {view.steward: view.endorsed for view in box.asked.stewards()}
    assert listed == {"dr-a": True, "dr-steward": True, "dr-new": False}
    assert {view.origins for view in box.asked.stewards()} == {("https://box.example", TERMINAL_ORIGIN)}
    with pytest.raises(SecureHealthError):
        newcomer.approve(box.asked, STUDY_ID)
    with pytest.raises(OperatorError) as refusal:
        box.asked.offer_steward(Deciding("hospital-b").key.record.encode().decode())
    assert refusal.value.code == "approval.not_offered"
    with pytest.raises(PeerProtocolError):
        box.asked.offer_steward("{}")


def test_rounds_are_shown_while_they_are_under_way(box: Box) -> None:
    for stage in (Stage.ADVERTISE, Stage.MASKED_INPUT):
        frame = Frame(STUDY_ID, stage, 2, 1)
        box.board.note_leg(frame, title="Heart", dataset="local", rounds=3)
    box.board.note_sent(STUDY_ID, SITES, 4096)
    box.scene.clock.move(2.5)
    (view,) = box.asked.rounds()
    assert (view.round, view.cohort, view.bytes, view.seconds, view.under_way) == (2, SITES, 4096, 2.5, True)
    assert box.asked.studies()[0].running
    box.board.note_answered(Frame(STUDY_ID, Stage.AGREE, 2, 1))
    (view,) = box.asked.rounds()
    assert not view.under_way


def test_studies_with_monstrous_titles_keep_no_other_from_being_listed(box: Box) -> None:
    monstrous = "\x01" * 200
    names = [f"a-{number:02}" for number in range(60)]
    for name in names:
        install_study(box.studies, study_json(SITES, use=PURPOSE, id=name, title=monstrous, requester=monstrous))
    assert [line.study for line in box.asked.studies()] == [*names, STUDY_ID]


def test_a_study_that_asks_for_thousands_of_fields_can_be_looked_at(box: Box) -> None:
    write_policy(box.scene.place / "policy.toml", fields=["ill"])
    fields = [{"name": f"{number:04}".rjust(62, "f"), "kind": "flag"} for number in range(2000)]
    data = {"schema_name": "played", "features": fields, "label": {"field": "ill"}}
    install_study(box.studies, study_json(SITES, use=PURPOSE, id="wide", data=data))
    assert box.asked.study("wide").line.rule == "fields"
