"""Attacks on the moment of a withdrawal: what a steward withdrew leaves no more, wherever the message stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from agent.core.errors import HardwareError, OperatorError, SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.faults import RefusedError
from agent.federation.journal import FileJournal
from agent.federation.rounds import OpenHandler, Rounds
from agent.federation.secure import Governed, SecureHandler, SecureSettings, _OpenStudy
from agent.federation.studies import StudyShelf, load_study
from agent.secagg.codec import Contribution
from agent.secagg.node import AcceptedRound, NodeSession, Upload
from tests.simulators.clock import SetClock
from tests.simulators.hospital import STUDY_ID, install_study, study_json
from tests.simulators.permitting import PermittingGate
from tests.simulators.trainer import PlayedWorker, played_opener

SITE = "hospital-a"
WITHDRAWN = OperatorError("permit.approved", "Played.", next_step="None.")
ROLLED_BACK = OperatorError("audit.rolled_back", "Played.", next_step="None.")
NO_DISK = HardwareError("audit.disk", "Played.", next_step="None.")


@pytest.fixture
def gate() -> PermittingGate:
    return PermittingGate()


@pytest.fixture
def shelf(tmp_path: Path, gate: PermittingGate) -> StudyShelf:
    """A box's studies."""
    (tmp_path / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
    install_study(tmp_path / "studies", study_json())
    return StudyShelf(
        tmp_path / "studies",
        tmp_path / "catalog.toml",
        site=SITE,
        open_worker=played_opener(),
        clock=SetClock(),
        gate=gate,
    )


@pytest.fixture
def rounds(tmp_path: Path, shelf: StudyShelf) -> Rounds:
    """A box's table of stages, with the study open."""
    digest = load_study(tmp_path / "studies", STUDY_ID).digest
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


@dataclass(slots=True)
class PlayedSession:
    """Accepts one round, and masks it; `meanwhile` is what happens elsewhere while it masks."""

    meanwhile: Callable[[], None] = lambda: None
    masked: int = 0

    def accept(self, frame: Frame) -> AcceptedRound:
        attempt = SimpleNamespace(round_number=1, attempt=1, context=bytes(32), cohort=(SITE,))
        return AcceptedRound(cast("Any", attempt), np.ones(10, dtype=np.float32), b"", b"")

    def masked_input(self, contribution: Contribution | None) -> Upload:
        self.masked += 1
        self.meanwhile()
        return Upload(Frame(STUDY_ID, Stage.MASKED_INPUT, 1, payload=b"masked"))


@dataclass(frozen=True, slots=True)
class Masking:
    """A box in the middle of leg 1."""

    gate: PermittingGate
    worker: PlayedWorker
    session: PlayedSession
    upload: Callable[[], object]


@pytest.fixture
def masking(tmp_path: Path, gate: PermittingGate, shelf: StudyShelf) -> Masking:
    run, session = shelf.run_of(STUDY_ID, on_close=lambda _: None), PlayedSession()
    governed = Governed(gate, shelf.check_still_permitted)
    nobody = cast("Any", None)
    settings = SecureSettings(SITE, tmp_path, nobody, nobody, nobody, lambda: False, bytes(32), governed)
    handler = SecureHandler(settings)
    handler._open[run.folder.digest] = _OpenStudy(
        cast("NodeSession", session), FileJournal(tmp_path / "a/b", bytes(32))
    )
    return Masking(
        gate,
        cast("PlayedWorker", run.worker),
        session,
        lambda: handler.handle(run, Frame(STUDY_ID, Stage.MASKED_INPUT, 1)),
    )


def test_what_is_permitted_to_the_end_leaves_with_its_receipt(masking: Masking) -> None:
    masking.upload()
    assert [receipt.round_number for receipt in masking.gate.sent] == [1]


def test_withdrawn_between_training_and_upload(masking: Masking) -> None:
    def withdraw() -> None:
        masking.gate.refusal = WITHDRAWN

    masking.session.meanwhile = withdraw
    assert refusal(masking.upload) is Refusal.NOT_PERMITTED
    assert not masking.gate.sent


def test_disk_found_rolled_back_while_training(masking: Masking, monkeypatch: pytest.MonkeyPatch) -> None:
    train = PlayedWorker.train

    def train_meanwhile(self: PlayedWorker, *given: Any, **named: Any) -> object:  # noqa: ANN401 - passed on
        masking.gate.blocked = ROLLED_BACK
        return train(self, *given, **named)

    monkeypatch.setattr(PlayedWorker, "train", train_meanwhile)
    assert refusal(masking.upload) is Refusal.NOT_PERMITTED
    assert (masking.session.masked, masking.gate.sent) == (0, [])


def test_round_that_left_already_leaves_no_second_time(masking: Masking, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(*_: object) -> None:
        raise OperatorError("rounds.put_back", "Played.", next_step="None.")

    monkeypatch.setattr(PermittingGate, "note_sent", known)
    assert refusal(masking.upload) is Refusal.NOT_PERMITTED


def test_run_closed_while_the_answer_waits_for_the_link(rounds: Rounds) -> None:
    rounds.answer(Frame(STUDY_ID, Stage.CLOSE, 0))
    assert refusal(lambda: rounds.check_still_stands(waiting())) is Refusal.NOT_PERMITTED
    rounds.check_still_stands(waiting(Stage.CLOSE))  # it says nothing
