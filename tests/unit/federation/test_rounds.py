"""Studies, the table of stages, and stage PLAIN, with a played worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import HardwareError, PeerProtocolError, SoftwareError
from agent.core.wire import Frame, Refusal, Stage, encode_frame, parse_frame
from agent.data.catalog import Dataset
from agent.federation.faults import RefusedError, StoppedError
from agent.federation.plain import parse_moments
from agent.federation.rounds import LateHandler, Rounds
from agent.federation.studies import MAX_OPEN_STUDIES, StudyRun
from agent.trust.metrics import Moments, moments_layout, training_layout
from agent.trust.study import parse_study
from tests.simulators.clock import SetClock
from tests.simulators.hospital import STUDY_ID, install_study, study_json
from tests.simulators.house import House

ONES = np.ones(10, dtype="<f4").tobytes()
LOCAL = {"id": "local", "schema": "played", "source": "local.csv"}
FEDERATED: dict[str, Any] = {
    "schema_name": "played",
    "features": [
        {"name": "age", "kind": "number", "minimum": 0, "maximum": 120},
        {"name": "smoker", "kind": "flag"},
    ],
    "label": {"field": "ill"},
    "standardise": "federated",
}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House.build(tmp_path)


def _train(round_number: int = 1, payload: bytes = ONES, **header: object) -> Frame:
    return Frame(STUDY_ID, Stage.PLAIN, round_number, header={"kind": "train"} | header, payload=payload)


def _refused(rounds: Rounds, frame: Frame) -> tuple[Refusal, str]:
    with pytest.raises(RefusedError) as caught:
        rounds.answer(frame)
    return caught.value.refusal, caught.value.cause.code


@dataclass(slots=True)
class Echo:
    """Sends every frame back."""

    forgotten: list[str] = field(default_factory=list)

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        return frame

    def forget(self, run: StudyRun) -> None:
        self.forgotten.append(run.study.id)


def test_a_late_handler_is_made_once_with_the_first_frame_for_it(house: House) -> None:
    made: list[Echo] = []

    def make() -> Echo:
        made.append(Echo())
        return made[-1]

    digest = house.install()
    house.extra = dict.fromkeys((Stage.ADVERTISE, Stage.REVEAL), LateHandler(make))
    rounds, close = house.rounds(), Frame(STUDY_ID, Stage.CLOSE)
    rounds.answer(Frame(STUDY_ID, Stage.OPEN, header={"study_digest": digest}))
    rounds.answer(close)
    assert made == []
    for stage in (Stage.ADVERTISE, Stage.REVEAL):
        assert rounds.answer(Frame(STUDY_ID, stage, 1)) == Frame(STUDY_ID, stage, 1)
    rounds.answer(close)
    assert [echo.forgotten for echo in made] == [[STUDY_ID]]


def test_opening_says_nothing_but_yes(house: House) -> None:
    digest = house.install()
    answer = house.rounds().answer(Frame(STUDY_ID, Stage.OPEN, header={"study_digest": digest}))
    assert dict(answer.header) == {}
    assert bytes(answer.payload) == b""


def test_another_version_of_the_study_is_unknown(house: House) -> None:
    house.install()
    frame = Frame(STUDY_ID, Stage.OPEN, header={"study_digest": "0" * 64})
    assert _refused(house.rounds(), frame)[0] is Refusal.UNKNOWN_STUDY


def test_an_opening_without_digest_breaks_the_protocol(house: House) -> None:
    house.install()
    assert _refused(house.rounds(), Frame(STUDY_ID, Stage.OPEN))[0] is Refusal.PROTOCOL


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sites": ("hospital-b",)}, "study.site_not_named"),
        ({"expires": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}, "study.expired"),
    ],
)
def test_a_study_that_may_not_run_here_is_not_permitted(house: House, changes: dict[str, object], code: str) -> None:
    house.install(**changes)
    assert _refused(house.rounds(), _train()) == (Refusal.NOT_PERMITTED, code)
    assert house.workers == []


def test_a_study_that_expires_between_rounds_stops_at_the_next_message(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.answer(_train())
    house.clock.move(2 * 86400)
    assert _refused(rounds, _train(2)) == (Refusal.NOT_PERMITTED, "study.expired")


def test_a_study_that_is_taken_away_stops_at_the_next_message(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.answer(_train())
    (house.directory / "studies" / STUDY_ID / "study.json").unlink()
    assert _refused(rounds, _train(2))[0] is Refusal.UNKNOWN_STUDY


def test_a_study_that_was_replaced_opens_anew(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.answer(_train())
    house.install(title="A second version")
    rounds.answer(_train())
    assert len(house.workers) == 2
    assert house.workers[0].closed.is_set()


def test_a_broken_or_misplaced_study_file_is_unknown(house: House) -> None:
    folder = house.directory / "studies" / STUDY_ID
    house.install()
    (folder / "study.json").write_bytes(b"{}")
    assert _refused(house.rounds(), _train()) == (Refusal.UNKNOWN_STUDY, "study.invalid")
    (folder / "study.json").write_bytes(study_json(id="another"))
    assert _refused(house.rounds(), _train()) == (Refusal.UNKNOWN_STUDY, "study.wrong_folder")


def test_a_worker_that_fails_in_any_way_declines_and_the_next_round_gets_a_fresh_one(house: House) -> None:
    house.install()
    for failure in (
        SoftwareError("worker.died", "Died.", next_step="-"),
        HardwareError("worker.gpu", "No GPU.", next_step="-"),
        MemoryError(),
        ZeroDivisionError(),
    ):
        rounds = house.rounds()
        rounds.answer(_train())
        house.workers[-1].failure = failure
        assert _refused(rounds, _train(2))[0] is Refusal.DECLINED
        assert house.workers[-1].closed.is_set()
        count = len(house.workers)
        rounds.answer(_train(2))
        assert len(house.workers) == count + 1


def test_training_gives_update_weight_and_words(house: House) -> None:
    house.install()
    answer = house.rounds().answer(_train())
    study = parse_study(study_json())
    np.testing.assert_array_equal(np.frombuffer(answer.payload, "<f4"), np.full(10, 0.5, np.float32))
    assert answer.header["weight"] == 200
    words = answer.header["words"]
    assert isinstance(words, bytes)
    values = training_layout(study).decode(np.frombuffer(words, "<u8"))
    assert (values["trained"], values["correct"]) == (200, 80)
    assert parse_frame(encode_frame(answer)) == answer


def test_the_weight_is_capped(house: House) -> None:
    house.install(secagg={"weight_cap": 50})
    assert house.rounds().answer(_train()).header["weight"] == 50


def test_the_last_evaluation_sends_no_vector(house: House) -> None:
    house.install()
    frame = Frame(STUDY_ID, Stage.PLAIN, 4, header={"kind": "evaluate"}, payload=bytes(40))
    answer = house.rounds().answer(frame)
    assert bytes(answer.payload) == b""
    assert house.workers[0].calls == ["evaluate"]


def test_the_worker_stays_warm_between_rounds(house: House) -> None:
    house.install()
    rounds = house.rounds()
    for number in (1, 2, 3):
        rounds.answer(_train(number))
    assert [worker.calls for worker in house.workers] == [["train 1", "train 2", "train 3"]]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (0, "train"),
        (4, "train"),
        (3, "evaluate"),
        (5, "evaluate"),
        (0, "moments"),
        (1, "spy"),
        (1, None),
        (1, ["train"]),
    ],
)
def test_a_request_that_does_not_belong_to_its_round_is_refused(house: House, number: int, kind: object) -> None:
    house.install()
    assert _refused(house.rounds(), _train(number, kind=kind))[0] is Refusal.PROTOCOL


def test_federated_moments_are_asked_for_first_and_then_used(house: House) -> None:
    house.install(data=FEDERATED)
    rounds = house.rounds()
    first = rounds.answer(Frame(STUDY_ID, Stage.PLAIN, 0, header={"kind": "moments"}))
    words = first.header["words"]
    assert isinstance(words, bytes)
    study = parse_study(study_json(data=FEDERATED))
    assert moments_layout(study).decode(np.frombuffer(words, "<u8"))["trained"] == 200
    rounds.answer(_train(moments={"age": [60.0, 10]}))
    assert house.workers[0].moments_seen == [{"age": Moments(60.0, 10.0)}]


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"age": [60.0, 10.0], "smoker": [0.5, 0.5]},
        {"age": [60.0]},
        {"age": [60.0, 0.0]},
        {"age": [60.0, -1.0]},
        {"age": [math.nan, 1.0]},
        {"age": [math.inf, 1.0]},
        {"age": ["60", 1.0]},
        {"age": [1 << 5000, 1.0]},
        [["age", 60.0, 10.0]],
    ],
)
def test_moments_of_another_form_are_refused(value: object) -> None:
    with pytest.raises(PeerProtocolError):
        parse_moments(parse_study(study_json(data=FEDERATED)), value)


def test_moments_that_the_study_does_not_use_are_refused(house: House) -> None:
    house.install()
    assert _refused(house.rounds(), _train(moments={"age": [60.0, 10.0]}))[0] is Refusal.PROTOCOL


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.MASKED_INPUT, Stage.AGREE, Stage.REVEAL])
def test_a_stage_without_handler_is_refused(house: House, stage: Stage) -> None:
    house.install()
    assert _refused(house.rounds(), Frame(STUDY_ID, stage, 1))[0] is Refusal.PROTOCOL
    assert house.workers == []


def test_another_handler_plugs_in_and_learns_that_its_run_ended(house: House) -> None:
    class Counting:
        def __init__(self) -> None:
            self.forgotten: list[StudyRun] = []

        def handle(self, run: StudyRun, frame: Frame) -> Frame:
            return Frame(frame.study, frame.stage, frame.round, frame.attempt, {"site": run.dataset.id})

        def forget(self, run: StudyRun) -> None:
            self.forgotten.append(run)

    house.install()
    counting = Counting()
    house.extra = {Stage.ADVERTISE: counting, Stage.MASKED_INPUT: counting}
    rounds = house.rounds()
    assert rounds.answer(Frame(STUDY_ID, Stage.ADVERTISE, 1)).header == {"site": "local"}
    rounds.answer(Frame(STUDY_ID, Stage.CLOSE))
    assert len(counting.forgotten) == 1


def test_closing_ends_the_worker_and_needs_no_permission(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.answer(_train())
    house.clock.move(10 * 86400)
    rounds.answer(Frame(STUDY_ID, Stage.CLOSE))
    assert house.workers[0].closed.is_set()
    rounds.answer(Frame("never-opened", Stage.CLOSE))


def test_too_many_open_studies_close_the_one_used_longest_ago(house: House) -> None:
    rounds = house.rounds()
    for index in range(MAX_OPEN_STUDIES + 1):
        house.install(id=f"study-{index}")
        rounds.answer(Frame(f"study-{index}", Stage.PLAIN, 1, header={"kind": "train"}, payload=ONES))
        house.clock.move(1)
    assert [worker.closed.is_set() for worker in house.workers] == [True] + [False] * MAX_OPEN_STUDIES


def test_once_stopped_nothing_opens(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.close()
    with pytest.raises(StoppedError):
        rounds.answer(_train())
    assert house.workers[0].closed.is_set()


def test_stopping_ends_a_training_under_way(house: House) -> None:
    house.install()
    rounds = house.rounds()
    rounds.answer(_train())
    rounds.close()
    house.workers[0].training_s = 60
    assert _refused(rounds, _train(2))[0] is Refusal.DECLINED


@given(
    st.sampled_from([Stage.OPEN, Stage.PLAIN]),
    st.integers(0, 10),
    st.dictionaries(
        st.sampled_from(["kind", "moments", "study_digest", "x"]),
        st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.lists(st.integers(), max_size=3),
    ),
    st.binary(max_size=60),
)
def test_any_frame_is_answered_or_refused_with_a_listed_word(
    stage: Stage, number: int, header: dict[str, object], payload: bytes
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.federation.studies.check_model", lambda _: None)
        patch.setattr("agent.federation.studies.choose_dataset", lambda *_: Dataset.model_validate(LOCAL))
        house = House(_shared_directory(), SetClock(datetime.now(UTC)))
        try:
            house.rounds().answer(Frame(STUDY_ID, stage, number, header=header, payload=payload))
        except RefusedError as refused:
            assert refused.refusal in {Refusal.PROTOCOL, Refusal.UNKNOWN_STUDY}  # noqa: PT017 - both ends are fine


_SHARED: list[Path] = []


def _shared_directory() -> Path:
    return _SHARED[0]


@pytest.fixture(autouse=True, scope="module")
def _one_study(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("shared")
    install_study(directory / "studies", study_json())
    _SHARED[:] = [directory]
