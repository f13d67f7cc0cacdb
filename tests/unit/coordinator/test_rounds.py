from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.core.wire import Frame, Refusal, Stage
from agent.trust.model import parse_model
from agent.trust.study import Study
from provisioning.coordinator.directory import Assignment, CoordinatorDirectory
from provisioning.coordinator.exchange import Line
from provisioning.coordinator.peers import SiteNames
from provisioning.coordinator.progress import read_events
from provisioning.coordinator.rounds import Surroundings, coordinate
from tests.simulators.played_node import STEP, PlayedTraining
from tests.simulators.played_study import PARAMETERS, SITES, plain_settings, prepare_directory
from tests.simulators.scripted_line import Answer, Said, ScriptedLine, SteppedClock

ROUNDS = 6
OPTIMA = {site: float(k) for k, site in enumerate(SITES)}


class PowerCut(BaseException):
    """Ends a coordinator as SIGKILL would: no clean-up of ours runs on it."""


def trainer(study: Study, site: str, *, rows: int = 10) -> Answer:
    training = PlayedTraining(OPTIMA[site], rows)
    return lambda frame: training.answer(study, frame)


def trainers(study: Study) -> dict[str, Answer]:
    return {site: trainer(study, site) for site in study.sites}


class Rig:
    """A coordinator directory and the sites that its runs meet."""

    def __init__(self, path: Path, **changes: Any) -> None:  # noqa: ANN401 - any part of a study
        settings = changes.pop("settings", None)
        self.directory, self.assignment = prepare_directory(path, rounds=ROUNDS, settings=settings, **changes)
        self.study = self.assignment.study
        self.clock = SteppedClock()
        self.answers = trainers(self.study)
        self.lines: list[ScriptedLine] = []

    def run(self, prepare: Callable[[ScriptedLine], None] = lambda _: None) -> ScriptedLine:
        def line_to(_: Assignment, __: SiteNames) -> Line:
            line = ScriptedLine.of(self.clock, self.answers)
            prepare(line)
            self.lines.append(line)
            return line

        coordinate(self.directory.path, Surroundings(line_to, self.clock, self.clock.sleep))
        return self.lines[-1]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.directory.progress)[0] if event["event"] == name]

    @property
    def result(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.directory.result.read_text())
        return value

    @property
    def trained(self) -> bytes:
        return parse_model(self.directory.trained_model.read_bytes()).parameters.tobytes()


def asked(line: ScriptedLine, site: str = "hospital-a") -> list[tuple[str, int]]:
    return [(frame.stage.value, frame.round) for frame in line.sites[site].asked]


def cut_at(answer: Answer, *, stage: Stage, number: int) -> Answer:
    """The coordinator's host loses its power while this site works on that round."""
    fuse = [True]

    def answering(frame: Frame) -> Frame | Said | None:
        if frame.stage is stage and frame.round == number and fuse:
            fuse.clear()
            raise PowerCut
        return answer(frame)

    return answering


def as_frame(answer: Frame | Said | None) -> Frame:
    assert isinstance(answer, Frame)
    return answer


def slowly(answer: Answer, *, seconds: float) -> Answer:
    return lambda frame: Said(frame=as_frame(answer(frame)), after_s=seconds)


def slow_down(rig: Rig, *, seconds: float) -> None:
    rig.answers = {site: slowly(answer, seconds=seconds) for site, answer in rig.answers.items()}


def test_a_study_runs_from_opening_to_result(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    line = rig.run()

    train = [("plain", number) for number in range(1, ROUNDS + 1)]
    assert asked(line) == [("open", 0), *train, ("plain", ROUNDS + 1), ("close", 0)]
    expected = np.float32(1.0)
    for _ in range(ROUNDS):
        expected = expected + np.float32(np.mean([(optimum - expected) * STEP for optimum in OPTIMA.values()]))
    np.testing.assert_allclose(np.frombuffer(rig.trained, dtype=np.float32), np.full(PARAMETERS, expected), rtol=1e-6)
    assert [record["round"] for record in rig.result["history"]] == list(range(1, ROUNDS + 1))
    assert rig.result["final"]["kind"] == "evaluate"
    assert rig.result["final"]["model_round"] == ROUNDS
    assert rig.result["environment"] == "demo"
    assert [event["event"] for event in read_events(rig.directory.progress)[0]][-1] == "finished"


def test_round_events_say_what_a_viewer_needs(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    slow_down(rig, seconds=2.0)
    rig.run()

    first, second, *_ = rig.events("round")

    assert (first["kind"], first["round"], first["model_round"], first["weight"]) == ("train", 1, 0, 40)
    assert first["cohort"] == list(SITES)
    assert first["accuracy"] == pytest.approx(0.8)
    assert first["auc"] is None  # the played rows fill no histogram
    assert second["loss"] < first["loss"]
    assert first["bytes_down"] > 4 * PARAMETERS * len(SITES)
    assert first["bytes_up"] > 4 * PARAMETERS * len(SITES)
    assert (first["legs"], first["attempts"], first["step_scale"]) == (1, 1, 1.0)
    assert 2.0 <= first["seconds"] < 2.5


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "fedavgm", "momentum": 0.9}, {"name": "fedadam"}])
@pytest.mark.parametrize("number", [1, 4, ROUNDS + 1])
def test_a_coordinator_whose_power_is_cut_goes_on_at_its_round(
    tmp_path: Path, strategy: Mapping[str, object], number: int
) -> None:
    whole, cut = Rig(tmp_path / "whole", strategy=strategy), Rig(tmp_path / "cut", strategy=strategy)
    whole.run()
    cut.answers["hospital-b"] = cut_at(cut.answers["hospital-b"], stage=Stage.PLAIN, number=number)
    with pytest.raises(PowerCut):
        cut.run()

    line = cut.run()

    assert cut.trained == whole.trained  # bit for bit
    assert asked(line)[:2] == [("open", 0), ("plain", number)]
    assert [event["round"] for event in cut.events("started")] == [1, min(number, ROUNDS + 1)]
    assert [record["loss"] for record in cut.result["history"]] == [
        record["loss"] for record in whole.result["history"]
    ]


def test_federated_moments_are_gathered_once_and_go_with_every_round(tmp_path: Path) -> None:
    data = {
        "schema_name": "played",
        "features": [{"name": "age", "kind": "number", "minimum": 0, "maximum": 100}],
        "label": {"field": "ill"},
        "standardise": "federated",
    }
    rig = Rig(tmp_path, data=data)
    rig.answers["hospital-a"] = cut_at(rig.answers["hospital-a"], stage=Stage.PLAIN, number=3)
    with pytest.raises(PowerCut):
        rig.run()
    before = rig.lines[0].sites["hospital-a"].asked
    after = rig.run().sites["hospital-a"].asked

    kinds = [frame.header.get("kind") for frame in before + after]
    assert kinds.count("moments") == 1
    moments = [frame.header["moments"] for frame in before + after if frame.header.get("kind") in {"train", "evaluate"}]
    # The played sums say: half the span on average, and in square.
    assert all(value == {"age": [50.0, 50.0]} for value in moments)
    assert len(rig.events("moments")) == 1


def test_sites_that_come_late_are_waited_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def late(line: ScriptedLine) -> None:
        line.sites["hospital-d"].away = ((0.0, line.clock.seconds + 20.0),)

    rig.run(late)

    assert [event["sites"] for event in rig.events("waiting")] == [["hospital-d"]]
    assert rig.result["final"]["cohort"] == list(SITES)


def test_a_site_that_refuses_is_asked_again_and_may_change_its_mind(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    usual = rig.answers["hospital-c"]

    def answer(frame: Frame) -> Frame | Said | None:
        if frame.stage is Stage.OPEN and rig.clock.seconds < 1020.0:
            return Said({"refusal": Refusal.NOT_PERMITTED})
        return usual(frame)

    rig.answers["hospital-c"] = answer
    rig.run()

    refused = rig.events("refused")
    assert {(event["site"], event["refusal"]) for event in refused} == {("hospital-c", "not-permitted")}
    assert len(refused) > 1


def test_a_study_that_never_gathers_says_who_is_missing_and_why(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.answers["hospital-b"] = lambda _: Said({"refusal": Refusal.UNKNOWN_STUDY})

    def absent(line: ScriptedLine) -> None:
        line.sites["hospital-d"].away = ((0.0, 1e9),)

    with pytest.raises(NetworkError, match=r"not willing: hospital-b \(unknown-study\), hospital-d\."):
        rig.run(absent)

    (paused,) = rig.events("paused")
    assert "fetched it" in paused["next_step"]
    assert "seh-agent status" in paused["next_step"]


def test_a_round_past_its_deadline_pauses_the_study_and_it_resumes_there(tmp_path: Path) -> None:
    rig = Rig(tmp_path, round_deadline_s=50.0)
    usual, silent = rig.answers["hospital-b"], [True]
    rig.answers["hospital-b"] = lambda frame: None if frame.round == 3 and silent else usual(frame)

    with pytest.raises(NetworkError, match="No answer in round 3 within 50 s from: hospital-b"):
        rig.run()
    assert rig.events("paused")[-1]["code"] == "coordinator.deadline_missed"
    assert asked(rig.lines[-1])[-1] == ("close", 0)  # nobody is left working for nothing

    silent.clear()
    line = rig.run()

    assert asked(line)[1] == ("plain", 3)
    assert rig.result["rounds"] == ROUNDS


def test_waiting_a_site_that_drops_in_mid_round_is_in_the_sum_all_the_same(tmp_path: Path) -> None:
    rig, whole = Rig(tmp_path / "rig"), Rig(tmp_path / "whole")
    whole.run()
    rig.answers["hospital-b"] = slowly(rig.answers["hospital-b"], seconds=5.0)

    def dropping(line: ScriptedLine) -> None:
        begin = line.clock.seconds + 17.0
        line.sites["hospital-b"].away = ((begin, begin + 60.0),)

    rig.run(dropping)

    assert [event["site"] for event in rig.events("lost")] == ["hospital-b"]
    assert [event["site"] for event in rig.events("returned")] == ["hospital-b"]
    assert all(event["cohort"] == list(SITES) for event in rig.events("round"))
    assert rig.trained == whole.trained


def test_continuing_a_site_that_drops_is_left_out_until_it_is_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, secagg={"dropout": "continue"})
    slow_down(rig, seconds=5.0)

    def dropping(line: ScriptedLine) -> None:
        begin = line.clock.seconds + 17.0
        line.sites["hospital-b"].away = ((begin, begin + 8.0),)

    rig.run(dropping)

    cohorts = [len(event["cohort"]) for event in rig.events("round")]
    assert cohorts[0] == 4
    assert 3 in cohorts
    assert cohorts[-1] == 4
    opened = [event["site"] for event in rig.events("opened")]
    assert opened.count("hospital-b") == 2  # it agreed anew when it was back


def test_continuing_a_study_starts_without_those_who_do_not_come(tmp_path: Path) -> None:
    rig = Rig(tmp_path, secagg={"dropout": "continue"}, settings=plain_settings(gather_s=5.0))

    def absent(line: ScriptedLine) -> None:
        line.sites["hospital-d"].away = ((0.0, 1e9),)

    rig.run(absent)

    assert rig.result["final"]["cohort"] == list(SITES[:3])
    assert {tuple(event["sites"]) for event in rig.events("dropped")} == {("hospital-d",)}


def test_continuing_too_few_sites_pause_the_study(tmp_path: Path) -> None:
    rig = Rig(tmp_path, secagg={"dropout": "continue"})
    usual = rig.answers["hospital-a"]

    def answer(frame: Frame) -> Frame | Said | None:
        if frame.round == 1:  # as soon as they have answered, two are gone for good
            for site in ("hospital-c", "hospital-d"):
                rig.lines[-1].sites[site].away = ((rig.clock.seconds, 1e9),)
        return usual(frame)

    rig.answers["hospital-a"] = answer

    with pytest.raises(NetworkError, match="Round 2 needs 3 sites, and 2 are there"):
        rig.run()
    assert rig.events("paused")[-1]["code"] == "coordinator.too_few_sites"


def test_a_step_beyond_the_studys_bound_is_shortened_and_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path, secagg={"max_step_linf": 0.05})
    rig.run()

    scales = [event["step_scale"] for event in rig.events("round") if event["kind"] == "train"]
    assert scales[0] == pytest.approx(0.05 / 0.125, rel=1e-4)


def test_rounds_without_any_row_leave_the_model_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.answers = {site: trainer(rig.study, site, rows=0) for site in SITES}
    rig.run()

    assert rig.trained == np.ones(PARAMETERS, dtype=np.float32).tobytes()


def test_production_refuses_unprotected_rounds_before_anyone_is_asked(tmp_path: Path) -> None:
    rig = Rig(tmp_path, settings=plain_settings(environment="production"))

    with pytest.raises(OperatorError, match="refused outside"):
        rig.run()
    assert rig.events("failed")[-1]["code"] == "coordinator.plain_refused"
    assert rig.lines[-1].pushes == 0


def test_a_finished_study_is_not_run_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.run()
    before = rig.directory.result.read_bytes()

    with pytest.raises(OperatorError, match="has ended"):
        rig.run()
    assert rig.directory.result.read_bytes() == before


def test_two_coordinators_never_share_a_directory(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.directory.hold(), pytest.raises(OperatorError, match="at work"):
        rig.run()
    rig.run()


def test_a_damaged_last_checkpoint_costs_one_round(tmp_path: Path) -> None:
    rig, whole = Rig(tmp_path / "rig"), Rig(tmp_path / "whole")
    whole.run()
    rig.answers["hospital-b"] = cut_at(rig.answers["hospital-b"], stage=Stage.PLAIN, number=4)
    with pytest.raises(PowerCut):
        rig.run()
    newest = max(rig.directory.checkpoints.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])

    line = rig.run()

    assert asked(line)[1] == ("plain", 3)
    assert [event["file"] for event in rig.events("damaged")] == ["round-000003.checkpoint"]
    assert rig.trained == whole.trained


def test_a_refusal_in_mid_study_pauses_it_and_names_the_site(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    usual = rig.answers["hospital-c"]
    rig.answers["hospital-c"] = lambda frame: (
        Said({"refusal": Refusal.NOT_PERMITTED}) if frame.round == 2 else usual(frame)
    )

    with pytest.raises(PeerProtocolError, match="hospital-c refuses round 2: not-permitted"):
        rig.run()
    assert "data steward" in rig.events("paused")[-1]["next_step"]


def test_the_directory_is_prepared_once(tmp_path: Path) -> None:
    directory, _ = prepare_directory(tmp_path)
    assert CoordinatorDirectory(tmp_path).load().settings == plain_settings()

    with pytest.raises(OperatorError, match="already holds"):
        prepare_directory(tmp_path)
    (directory.path / "model.onnx").write_bytes(b"another")
    with pytest.raises(OperatorError, match="not the one that the study names"):
        directory.load()


@pytest.mark.parametrize("text", ["{", '{"environment": "lab"}', '{"keep_checkpoints": 0}', '{"unknown": 1}'])
def test_settings_that_cannot_be_used_are_named(tmp_path: Path, text: str) -> None:
    directory, _ = prepare_directory(tmp_path)
    (tmp_path / "settings.json").write_text(text)

    with pytest.raises(OperatorError, match=r"settings cannot be used"):
        directory.load()
