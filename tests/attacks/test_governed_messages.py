"""A coordinator that asks for more than the hospital approved, and what it learns from asking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.audit.leaves import DataOpened, MessageRefused, PermitDecided
from agent.core.errors import HardwareError
from agent.core.wire import Frame, Refusal, Stage
from agent.data.fingerprint import FileDigests
from agent.federation.faults import RefusedError
from agent.federation.rounds import Rounds
from agent.governance.gate import UNSEEN
from tests.simulators.gate_scene import SITES, Scene, gate_scene
from tests.simulators.governed import PURPOSE, write_policy
from tests.simulators.hospital import STUDY_ID, install_study, study_json
from tests.simulators.house import House
from tests.simulators.steward import proof_by


class Attacked:
    """A hospital under a gate, as its coordinator meets it."""

    def __init__(self, place: Path) -> None:
        self.scene: Scene = gate_scene(place)
        self.house = House(place, self.scene.clock, gate=self.scene.gate)
        data = study_json(SITES, use=PURPOSE)
        self.scene.study, self.scene.digest = install_study(place / "studies", data)
        self.scene.place = place
        self.rounds: Rounds = self.house.rounds()

    def ask(self) -> Refusal | None:
        """Open the study; how that is refused."""
        try:
            self.rounds.answer(Frame(STUDY_ID, Stage.OPEN, header={"study_digest": self.scene.digest}))
        except RefusedError as refused:
            return refused.refusal
        return None

    @property
    def rules(self) -> list[str]:
        """What the box's own log says about refusals."""
        return [leaf.rule for leaf in self.scene.leaves(MessageRefused)]


@pytest.fixture
def attacked(tmp_path: Path) -> Attacked:
    return Attacked(tmp_path)


def test_a_study_that_nobody_approved_opens_no_data(attacked: Attacked) -> None:
    assert attacked.ask() is Refusal.NOT_PERMITTED
    assert not attacked.house.workers
    assert not attacked.scene.leaves(DataOpened)
    assert attacked.rules == ["approved"]


def test_a_withdrawn_study_loses_its_worker_with_the_next_message(attacked: Attacked) -> None:
    sequence = attacked.scene.approve()
    assert attacked.ask() is None
    (worker,) = attacked.house.workers
    act = attacked.scene.desk.book.begin_withdrawal(sequence)
    attacked.scene.desk.book.withdraw(sequence, proof_by(attacked.scene.steward, act))
    assert attacked.ask() is Refusal.NOT_PERMITTED
    assert worker.closed.is_set()


def _changed_data(attacked: Attacked) -> None:
    (attacked.scene.place / "local.csv").write_text("age,ill\n80,1\n", encoding="utf-8")


def _no_data(attacked: Attacked) -> None:
    (attacked.scene.place / "local.csv").unlink()


def _no_dataset(attacked: Attacked) -> None:
    (attacked.scene.place / "catalog.toml").write_text("", encoding="utf-8")


@pytest.mark.parametrize("happen", [_changed_data, _no_data, _no_dataset])
def test_whatever_became_of_the_data_sounds_the_same(attacked: Attacked, happen: Callable[[Attacked], None]) -> None:
    """The word says no more than that this hospital declines."""
    attacked.scene.approve()
    assert attacked.ask() is None
    happen(attacked)
    assert attacked.ask() is Refusal.DECLINED
    assert attacked.house.workers[0].closed.is_set()


@pytest.mark.parametrize("happen", [_changed_data, _no_data, _no_dataset])
def test_a_study_that_nobody_approved_learns_nothing_of_the_data(
    attacked: Attacked, happen: Callable[[Attacked], None]
) -> None:
    """Asked again and again with a study that was only published, a box would tell when its data come and go."""
    assert attacked.ask() is Refusal.NOT_PERMITTED
    happen(attacked)
    assert attacked.ask() is Refusal.NOT_PERMITTED


def test_the_time_of_a_refusal_tells_nothing_of_data_that_nobody_approved(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file takes long to be hashed, and is hashed anew only when it changed."""

    def looked_at(*_: object) -> str:
        raise AssertionError("the data set was looked at")

    monkeypatch.setattr(FileDigests, "dataset_digest", looked_at)
    assert attacked.ask() is Refusal.NOT_PERMITTED
    (decision,) = attacked.scene.leaves(PermitDecided)
    assert decision.dataset_digest == UNSEEN


def test_a_study_that_another_rule_refuses_learns_nothing_of_the_data(attacked: Attacked) -> None:
    attacked.scene.approve()
    _changed_data(attacked)
    write_policy(attacked.scene.place / "policy.toml", fields=["ill"])
    assert attacked.ask() is Refusal.NOT_PERMITTED


def test_a_study_swapped_under_its_approval_is_not_the_approved_one(attacked: Attacked) -> None:
    attacked.scene.approve()
    assert attacked.ask() is None
    data = study_json(SITES, use=PURPOSE, rounds=9999)
    _, attacked.scene.digest = install_study(attacked.scene.place / "studies", data)
    assert attacked.ask() is Refusal.NOT_PERMITTED
    assert attacked.rules == ["approved"]


def test_a_policy_made_stricter_in_mid_run_holds_at_once(attacked: Attacked) -> None:
    attacked.scene.approve()
    assert attacked.ask() is None
    write_policy(attacked.scene.place / "policy.toml", fields=["ill"])
    assert attacked.ask() is Refusal.NOT_PERMITTED
    assert attacked.rules == ["fields"]


def test_asking_for_unknown_studies_writes_nothing(attacked: Attacked) -> None:
    for name in ("unheard-of", "../../etc", "x" * 300):
        with pytest.raises(RefusedError):
            attacked.rounds.answer(Frame(name, Stage.OPEN))
        with pytest.raises(RefusedError):
            attacked.rounds.answer(Frame(name, Stage.AGREE))
    assert not attacked.scene.desk.audit.size


def test_a_log_that_takes_nothing_more_lets_no_data_be_opened(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked.scene.approve()

    def full(_: object) -> int:
        raise HardwareError("audit.disk", "The disk is full.", next_step="Free space.")

    monkeypatch.setattr(attacked.scene.desk.audit, "append", full)
    assert attacked.ask() is Refusal.BUSY
    assert not attacked.house.workers
