from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.core.errors import NetworkError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.trust.metrics import training_layout
from agent.trust.study import parse_study
from provisioning.coordinator.aggregation import Kind, PlainAggregation, RoundSum, RoundTask, smallest_cohort
from provisioning.coordinator.directory import Assignment
from provisioning.coordinator.exchange import Arrival, Exchange, Faulty, Lost, Refused
from tests.simulators.played_node import PlayedTraining
from tests.simulators.played_study import PARAMETERS, SITES, plain_settings, prepare_directory, study_files
from tests.simulators.scripted_line import Answer, Said, ScriptedLine, SteppedClock

MODEL = np.linspace(-1, 1, PARAMETERS, dtype=np.float32)
ROWS = (199, 172, 30, 85)


@pytest.fixture
def waiting(tmp_path: Path) -> Assignment:
    """A study that waits for its whole cohort."""
    return prepare_directory(tmp_path / "waiting")[1]


@pytest.fixture
def continuing(tmp_path: Path) -> Assignment:
    """A study that continues without those who are missing."""
    return prepare_directory(tmp_path / "continuing", secagg={"dropout": "continue"})[1]


def trainers(assignment: Assignment) -> dict[str, Answer]:
    def answerer(optimum: float, rows: int) -> Answer:
        training = PlayedTraining(optimum, rows)
        return lambda frame: training.answer(assignment.study, frame)

    return {site: answerer(float(k), rows) for k, (site, rows) in enumerate(zip(SITES, ROWS, strict=True))}


def run(
    assignment: Assignment, answers: Mapping[str, Answer], *, within_s: float = 100.0
) -> tuple[RoundSum, list[Arrival]]:
    clock = SteppedClock()
    reported: list[Arrival] = []
    aggregation = PlainAggregation(assignment, lambda _, arrival: reported.append(arrival))
    task = RoundTask(Kind.TRAIN, 1, SITES, clock.seconds + within_s, MODEL)
    return aggregation.run(task, Exchange(ScriptedLine.of(clock, answers), clock, clock.sleep)), reported


def expected_mean(sites: Mapping[str, tuple[float, int]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    total = sum(rows for _, rows in sites.values())
    mean = sum(rows * PlayedTraining(optimum, rows).update(MODEL).astype(float) for optimum, rows in sites.values())
    return np.asarray(mean / total, dtype=np.float32)


def spoilt(answer: Answer, spoil: Callable[[Frame], Frame]) -> Answer:
    def spoiling(frame: Frame) -> Frame:
        reply = answer(frame)
        assert isinstance(reply, Frame)
        return spoil(reply)

    return spoiling


def with_header(**fields: object) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, header=dict(frame.header) | fields)


def with_update(update: object) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, payload=np.asarray(update, dtype="<f4").tobytes())


UNUSABLE = {
    "no weight": with_header(weight=None),
    "weight that is a truth": with_header(weight=True),
    "negative weight": with_header(weight=-1),
    "weight above the cap": with_header(weight=1001),
    "no words": with_header(words=None),
    "too few words": with_header(words=b"\0" * 16),
    "a word beyond its bound": with_header(words=b"\xff" * 8 * 206),
    "short update": with_update(np.zeros(PARAMETERS - 1)),
    "long update": with_update(np.zeros(PARAMETERS + 1)),
    "update that is not a number": with_update([np.nan] + [0.0] * (PARAMETERS - 1)),
    "infinite update": with_update([0.0] * (PARAMETERS - 1) + [np.inf]),
    "update cut in a number": lambda frame: replace(frame, payload=bytes(frame.payload)[:-1]),
}


def test_the_mean_is_weighted_by_rows_and_the_words_are_summed(waiting: Assignment) -> None:
    total, _ = run(waiting, trainers(waiting))

    assert total.cohort == SITES
    assert total.weight == sum(ROWS)
    np.testing.assert_array_equal(
        total.update_mean, expected_mean({s: (float(k), r) for k, (s, r) in enumerate(zip(SITES, ROWS, strict=True))})
    )
    values = training_layout(waiting.study).decode(total.words)
    assert (values["trained"], values["evaluated"], values["correct"]) == (sum(ROWS), 40, 32)


def test_an_unprotected_sum_is_refused_in_production(tmp_path: Path) -> None:
    _, assignment = prepare_directory(tmp_path, settings=plain_settings(environment="production"))

    with pytest.raises(OperatorError, match="refused outside"):
        PlainAggregation(assignment, lambda _, __: None)


def test_the_words_layout_that_the_cases_assume(waiting: Assignment) -> None:
    assert len(training_layout(waiting.study).words) == 206


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_round_that_continues_leaves_an_unusable_answer_out(continuing: Assignment, name: str) -> None:
    answers = trainers(continuing)
    answers["hospital-a"] = spoilt(answers["hospital-a"], UNUSABLE[name])

    total, reported = run(continuing, answers)

    assert total.cohort == SITES[1:]
    assert total.weight == sum(ROWS[1:])
    others = {site: (float(k), ROWS[k]) for k, site in enumerate(SITES) if k}
    np.testing.assert_array_equal(total.update_mean, expected_mean(others))
    assert [arrival.site for arrival in reported if isinstance(arrival, Faulty)] == ["hospital-a"]


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_round_that_waits_asks_again_and_then_gives_up(waiting: Assignment, name: str) -> None:
    answers = trainers(waiting)
    answers["hospital-a"] = spoilt(answers["hospital-a"], UNUSABLE[name])

    with pytest.raises(PeerProtocolError, match="hospital-a cannot be used"):
        run(waiting, answers)


def test_a_round_that_waits_takes_a_good_answer_after_a_bad_one(waiting: Assignment) -> None:
    answers = trainers(waiting)
    good, first = answers["hospital-a"], [True]

    def answer(frame: Frame) -> Frame | Said | None:
        return spoilt(good, UNUSABLE["infinite update"])(frame) if first.pop() else good(frame)

    first.insert(0, False)
    answers["hospital-a"] = answer
    total, reported = run(waiting, answers)

    assert total.cohort == SITES
    assert sum(isinstance(arrival, Faulty) for arrival in reported) == 1


@pytest.mark.parametrize("refusal", sorted(set(Refusal) - {Refusal.BUSY}))
def test_a_refusal_ends_a_round_that_waits_in_the_nodes_word(waiting: Assignment, refusal: Refusal) -> None:
    answers = trainers(waiting) | {"hospital-b": lambda _: Said({"refusal": refusal})}

    with pytest.raises(PeerProtocolError, match=f"hospital-b refuses round 1: {refusal.value}"):
        run(waiting, answers)


def test_a_refusal_is_left_out_where_the_round_continues(continuing: Assignment) -> None:
    answers = trainers(continuing) | {"hospital-b": lambda _: Said({"refusal": Refusal.DECLINED})}

    total, reported = run(continuing, answers)

    assert total.cohort == ("hospital-a", "hospital-c", "hospital-d")
    assert Refused("hospital-b", Refusal.DECLINED) in reported


def test_a_silent_site_stops_a_round_that_waits_at_its_deadline(waiting: Assignment) -> None:
    answers = trainers(waiting) | {"hospital-c": lambda _: None}

    with pytest.raises(NetworkError, match="No answer in round 1 within 30 s from: hospital-c"):
        run(waiting, answers, within_s=30.0)


def test_a_silent_site_is_left_out_where_the_round_continues(continuing: Assignment) -> None:
    answers = trainers(continuing) | {"hospital-c": lambda _: None}

    total, _ = run(continuing, answers, within_s=30.0)

    assert total.cohort == ("hospital-a", "hospital-b", "hospital-d")


def test_a_lost_site_is_left_out_at_once_where_the_round_continues(continuing: Assignment) -> None:
    answers = trainers(continuing) | {"hospital-c": lambda _: Said({"lost": "the node is gone"})}

    total, reported = run(continuing, answers, within_s=30.0)

    assert total.cohort == ("hospital-a", "hospital-b", "hospital-d")
    assert Lost("hospital-c", "the node is gone") in reported


def test_fewer_than_the_smallest_cohort_give_no_sum(continuing: Assignment) -> None:
    silent: dict[str, Answer] = {"hospital-c": lambda _: None, "hospital-d": lambda _: None}

    with pytest.raises(SecureHealthError, match="hospital-c, hospital-d"):
        run(continuing, trainers(continuing) | silent, within_s=30.0)


@pytest.mark.parametrize(
    ("sites", "secagg", "expected"),
    [
        (2, {}, 2),
        (3, {}, 3),
        (4, {}, 3),
        (7, {}, 4),
        (10, {}, 5),
        (10, {"minimum_sites": 8}, 8),
        (10, {"colluders": 1}, 3),
    ],
)
def test_the_smallest_cohort_has_an_honest_site_more_than_conspirators(
    sites: int, secagg: dict[str, int], expected: int
) -> None:
    names = tuple(f"site-{k}" for k in range(sites))

    assert smallest_cohort(parse_study(study_files(names, secagg=secagg)[0])) == expected


def test_a_request_carries_kind_model_and_moments_to_every_site_alike(waiting: Assignment) -> None:
    seen: list[Frame] = []
    base = trainers(waiting)

    def noting(answer: Answer) -> Answer:
        def answering(frame: Frame) -> Frame | Said | None:
            seen.append(frame)
            return answer(frame)

        return answering

    run(waiting, {site: noting(answer) for site, answer in base.items()})

    assert {(frame.stage, frame.round, frame.header["kind"]) for frame in seen} == {(Stage.PLAIN, 1, "train")}
    assert {bytes(frame.payload) for frame in seen} == {MODEL.tobytes()}
