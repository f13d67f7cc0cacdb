"""The gate: what lets a study pass, what stops it, and what stands in the log."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest

from agent.audit.leaves import BudgetReserved, BudgetSettled, DataOpened, MessageRefused, PermitDecided, UpdateSent
from agent.core.errors import OperatorError
from agent.governance.admission import Permit, Receipt
from agent.governance.gate import REPEAT_S
from agent.trust.study import parse_study, study_digest
from tests.simulators.gate_scene import SITES, Scene, gate_scene
from tests.simulators.governed import PURPOSE, write_policy
from tests.simulators.hospital import study_json
from tests.simulators.steward import PasskeySteward, proof_by


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A study that nobody approved yet."""
    return gate_scene(tmp_path)


def test_an_approved_study_passes_and_its_decision_is_written_once(scene: Scene) -> None:
    assert scene.refused() == "permit.approved"
    sequence = scene.approve()
    permit = scene.gate.admit(scene.candidate)
    assert (permit.approvals, permit.dataset, permit.minimum_cohort) == ((sequence,), "local", 3)
    assert scene.gate.admit(scene.candidate) == permit
    decisions = scene.leaves(PermitDecided)
    assert [leaf.permitted for leaf in decisions] == [False, True]
    assert scene.desk.audit.size - 1 == permit.leaf


def test_a_withdrawn_approval_stops_the_next_message(scene: Scene) -> None:
    sequence = scene.approve()
    permit = scene.gate.admit(scene.candidate)
    act = scene.desk.book.begin_withdrawal(sequence)
    scene.desk.book.withdraw(sequence, proof_by(scene.steward, act))
    assert scene.refused() == "permit.approved"
    assert permit.approvals == (sequence,)


def test_data_that_changed_since_its_approval_are_refused_until_approved_anew(scene: Scene) -> None:
    scene.approve()
    before = scene.gate.admit(scene.candidate)
    (scene.place / "local.csv").write_text("age,ill\n50,1\n51,0\n", encoding="utf-8")
    assert scene.refused() == "permit.dataset_unchanged"
    scene.approve()
    after = scene.gate.admit(scene.candidate)
    assert not after.upholds(before)


def test_a_study_that_runs_out_is_refused_by_name(scene: Scene) -> None:
    scene.approve()
    scene.gate.admit(scene.candidate)
    scene.clock.wall = scene.study.expires + timedelta(seconds=1)
    assert scene.refused() == "permit.not_expired"


def test_another_model_file_is_refused_by_name(scene: Scene) -> None:
    scene.approve()
    scene.gate.admit(scene.candidate)
    (scene.place / "model.onnx").write_bytes(b"another")
    assert scene.refused() == "permit.model_digest"


def test_a_hospital_that_is_not_named_is_refused_by_name(scene: Scene) -> None:
    data = study_json(("hospital-b", "hospital-c", "hospital-d"), use=PURPOSE)
    scene.study, scene.digest = parse_study(data), study_digest(data)
    assert scene.refused() == "permit.site_named"


def test_without_a_policy_everything_is_refused(scene: Scene) -> None:
    scene.approve()
    scene.gate.admit(scene.candidate)
    (scene.place / "policy.toml").unlink()
    assert scene.refused() == "permit.policy"
    assert not scene.gate.policy().datasets


def test_two_keys_of_one_person_are_one_of_two_people(scene: Scene) -> None:
    text = (scene.place / "policy.toml").read_text(encoding="utf-8")
    (scene.place / "policy.toml").write_text(text.replace("[policy]", "[policy]\ntwo_people = true"), encoding="utf-8")
    first, again, other = (PasskeySteward(name, person) for name, person in [("b1", "B"), ("b2", "B"), ("c", "C")])
    scene.desk.employ(first, again, other)
    scene.approve(first)
    scene.approve(again)
    assert scene.refused() == "permit.approved"
    scene.approve(other)
    assert len(scene.gate.admit(scene.candidate).approvals) == 2


def test_another_approval_in_mid_run_changes_nothing(scene: Scene) -> None:
    scene.approve()
    before = scene.gate.admit(scene.candidate)
    scene.approve()
    assert scene.gate.admit(scene.candidate).upholds(before)


def test_only_what_an_approval_can_put_right_may_be_asked_of_a_steward(scene: Scene) -> None:
    scene.gate.check_approvable(scene.candidate)
    write_policy(scene.place / "policy.toml", duo=[])
    with pytest.raises(OperatorError) as refusal:
        scene.gate.check_approvable(scene.candidate)
    assert refusal.value.code == "permit.duo_permission"


def _receipt(round_number: int, *, last: bool = False) -> Receipt:
    digest = hashlib.sha256(os.urandom(8)).hexdigest()
    return Receipt(round_number, 1, bytes(32), SITES, 100, digest, last)


def test_the_budget_is_reserved_once_before_anything_leaves_and_settled_at_the_end(scene: Scene) -> None:
    scene.approve()
    permit: Permit = scene.gate.admit(scene.candidate)
    scene.gate.note_opened(permit)
    for _ in range(2):
        scene.gate.reserve(permit, scene.study)
    (reserved,) = scene.leaves(BudgetReserved)
    assert scene.door.covered == [scene.desk.audit.size] * 2
    for number in range(1, 5):
        scene.gate.note_sent(permit, _receipt(number, last=number == 4), scene.study)
    (settled,) = scene.leaves(BudgetSettled)
    assert (reserved.releases, settled.releases) == (4, 4)
    sent = scene.leaves(UpdateSent)
    assert [leaf.permit for leaf in sent] == [permit.leaf] * 4
    assert [leaf.approval for leaf in sent] == list(permit.approvals) * 4
    assert len(scene.leaves(DataOpened)) == 1


def test_nothing_is_reserved_while_uploads_are_blocked(scene: Scene) -> None:
    scene.approve()
    permit = scene.gate.admit(scene.candidate)
    scene.door.refusal = OperatorError("audit.rolled_back", "The disk was put back.", next_step="Look.")
    with pytest.raises(OperatorError, match="put back"):
        scene.gate.reserve(permit, scene.study)
    with pytest.raises(OperatorError, match="put back"):
        scene.gate.check_uploads()
    assert not scene.leaves(BudgetReserved)


def test_a_study_beyond_the_budget_is_refused_by_name(scene: Scene) -> None:
    write_policy(scene.place / "policy.toml", unbounded_releases=3)
    scene.approve()
    assert scene.refused() == "permit.budget"


def test_asking_again_and_again_does_not_fill_the_log(scene: Scene) -> None:
    for _ in range(100):
        scene.gate.note_refused("played-study", "approved")
    assert len(scene.leaves(MessageRefused)) == 1
    scene.gate.note_refused("played-study", "rounds.broken_rule")
    scene.clock.move(REPEAT_S)
    scene.gate.note_refused("played-study", "approved")
    assert len(scene.leaves(MessageRefused)) == 3
