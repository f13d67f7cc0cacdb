"""Attacks on the moment of a withdrawal: what a steward withdrew leaves no more, wherever the message stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.faults import RefusedError
from agent.federation.rounds import OpenHandler, Rounds
from agent.federation.studies import StudyShelf
from tests.simulators.clock import SetClock
from tests.simulators.hospital import STUDY_ID, install_study, study_json
from tests.simulators.permitting import PermittingGate
from tests.simulators.trainer import played_opener

SITE = "hospital-a"
WITHDRAWN = OperatorError("permit.approved", "Played.", next_step="None.")
NO_DISK = HardwareError("audit.disk", "Played.", next_step="None.")


@pytest.fixture
def gate() -> PermittingGate:
    return PermittingGate()


@pytest.fixture
def rounds(tmp_path: Path, gate: PermittingGate) -> Rounds:
    """A box's table of stages, with the study open."""
    (tmp_path / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
    digest = install_study(tmp_path / "studies", study_json())[1]
    shelf = StudyShelf(
        tmp_path / "studies",
        tmp_path / "catalog.toml",
        site=SITE,
        open_worker=played_opener(),
        clock=SetClock(),
        gate=gate,
    )
    rounds = Rounds(shelf, {Stage.OPEN: OpenHandler()})
    rounds.answer(Frame(STUDY_ID, Stage.OPEN, 0, header={"study_digest": digest}))
    return rounds


def waiting(stage: Stage = Stage.MASKED_INPUT) -> Frame:
    """What was asked, as it is kept while the answer waits for the link."""
    return Frame(STUDY_ID, stage, 1)


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(RefusedError) as refused:
        call()
    return refused.value.refusal


def test_an_answer_that_waits_for_the_link_may_leave_while_the_permit_stands(rounds: Rounds) -> None:
    rounds.check_still_stands(waiting())


@pytest.mark.parametrize(
    ("cause", "said"), [(WITHDRAWN, Refusal.NOT_PERMITTED), (NO_DISK, Refusal.BUSY)], ids=["withdrawn", "no disk"]
)
def test_withdrawn_while_the_answer_waits_for_the_link(
    rounds: Rounds, gate: PermittingGate, cause: SecureHealthError, said: Refusal
) -> None:
    gate.refusal = cause
    assert refusal(lambda: rounds.check_still_stands(waiting())) is said
    assert gate.refused


def test_approved_anew_for_other_data_while_the_answer_waits_for_the_link(rounds: Rounds, gate: PermittingGate) -> None:
    gate.dataset_digest = "e6" * 32
    assert refusal(lambda: rounds.check_still_stands(waiting())) is Refusal.NOT_PERMITTED


def test_run_closed_while_the_answer_waits_for_the_link(rounds: Rounds) -> None:
    rounds.answer(Frame(STUDY_ID, Stage.CLOSE, 0))
    assert refusal(lambda: rounds.check_still_stands(waiting())) is Refusal.NOT_PERMITTED
    rounds.check_still_stands(waiting(Stage.CLOSE))  # it says nothing
