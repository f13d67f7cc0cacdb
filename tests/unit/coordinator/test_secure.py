"""Secure aggregation from coordinator to handler and back: real protocol on both sides, no network between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.core.errors import OperatorError, SecureHealthError
from agent.core.wire import Frame, Stage
from agent.identity.key import HardwareKey
from agent.trust.roster import encode_roster
from agent.trust.study import parse_study, study_digest
from provisioning.coordinator.directory import CoordinatorDirectory, CoordinatorSettings
from provisioning.coordinator.rounds import Surroundings, coordinate
from tests.simulators.played_study import PARAMETERS, SITES, study_files
from tests.simulators.scripted_line import ScriptedLine, SteppedClock
from tests.simulators.secure_site import SecureSite, roster_of

STEPS = {"hospital-a": 0.5, "hospital-b": -0.25, "hospital-c": 0.125, "hospital-d": 0.0625}
WEIGHTS = {"hospital-a": 100, "hospital-b": 50, "hospital-c": 10, "hospital-d": 40}
MEAN = sum(STEPS[site] * WEIGHTS[site] for site in SITES) / sum(WEIGHTS.values())


class Federation:
    """Four hospitals and a coordinator's directory."""

    def __init__(
        self,
        place: Path,
        *,
        keys: Mapping[str, HardwareKey] | None = None,
        **changes: Any,  # noqa: ANN401 - any part of a study
    ) -> None:
        self.clock = SteppedClock()
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        changes.setdefault("round_deadline_s", 60.0)
        # The cap is what fixed-point weights are relative to: near the largest hospital, little is lost to rounding.
        changes["secagg"] = {"weight_cap": 100} | changes.get("secagg", {})
        study_file, model = study_files(**changes)
        study = parse_study(study_file)
        self.sites = {
            site: SecureSite.make(place / site, site, step=STEPS[site], weight=WEIGHTS[site], parameters=PARAMETERS)
            for site in SITES
        }
        for site, hardware_key in (keys or {}).items():
            self.sites[site].key = hardware_key
        roster = roster_of({site: member.key for site, member in self.sites.items()}, key.public_key())
        for member in self.sites.values():
            member.join(study, study_digest(study_file), roster)
        self.directory = CoordinatorDirectory(place / "coordinator")
        settings = CoordinatorSettings(open_deadline_s=30.0, gather_s=0.5)
        self.directory.prepare(study_file, model, settings, roster=encode_roster(roster), key=pem)
        self.line = ScriptedLine.of(self.clock, {site: member.answer for site, member in self.sites.items()})

    def run(self, line: ScriptedLine | None = None) -> dict[str, Any]:
        coordinate(self.directory.path, Surroundings(lambda *_: line or self.line, self.clock, self.clock.sleep))
        result: dict[str, Any] = json.loads(self.directory.result.read_bytes())
        return result

    def trained(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        from agent.trust.model import parse_model  # noqa: PLC0415 - loads onnx, which only this needs

        return parse_model(self.directory.trained_model.read_bytes()).parameters

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = self.directory.progress.read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


def test_three_rounds_end_at_the_weighted_mean(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    result = federation.run()
    assert result["aggregation"] == "secure"
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["cohort"] for record in result["history"]] == [list(SITES)] * 3
    assert result["final"]["evaluated"] == 8
    assert result["final"]["accuracy"] == 0.5


def test_no_frame_that_leaves_a_hospital_holds_its_update(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    sent: list[Frame] = []
    site = federation.sites["hospital-a"]

    def overheard(frame: Frame) -> Any:  # noqa: ANN401 - whatever the site says
        answer = site.answer(frame)
        sent.append(answer) if isinstance(answer, Frame) else None
        return answer

    answers: dict[str, Callable[[Frame], Any]] = {name: one.answer for name, one in federation.sites.items()}
    federation.run(ScriptedLine.of(federation.clock, answers | {"hospital-a": overheard}))
    assert {frame.stage for frame in sent} == {
        Stage.OPEN,
        Stage.ADVERTISE,
        Stage.MASKED_INPUT,
        Stage.AGREE,
        Stage.CLOSE,
    }
    uploads = [np.frombuffer(frame.payload, np.uint64) for frame in sent if frame.stage is Stage.MASKED_INPUT]
    assert len(uploads) == 4
    # Every hospital moves each coordinate alike, so an unmasked upload would repeat itself.
    assert all(len(set(upload.tolist())) == len(upload) for upload in uploads)
    assert all("weight" not in frame.header and "words" not in frame.header for frame in sent)


def test_a_restarted_hospital_gets_new_keys_and_the_round_a_second_attempt(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.sites["hospital-b"].restart_before.add((Stage.MASKED_INPUT, 2, 1))
    result = federation.run()
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["attempts"] for record in result["history"]] == [1, 2, 1]


CONTINUING = {"dropout": "continue", "accept_differencing": True, "minimum_sites": 3}


@pytest.mark.parametrize("terms", [{}, CONTINUING], ids=["wait", "continue"])
def test_hospitals_that_restart_together_are_blamed_for_nothing_and_the_round_is_tried_again(
    tmp_path: Path, terms: dict[str, Any]
) -> None:
    federation = Federation(tmp_path, secagg=terms)
    for site in ("hospital-b", "hospital-c"):
        federation.sites[site].restart_before.add((Stage.MASKED_INPUT, 2, 1))
    result = federation.run()
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["attempts"] for record in result["history"]] == [1, 2, 1]
    # They sign with other session keys now, and gave the attempt up under those.
    assert federation.events("faulty") == []


class KilledError(BaseException):
    """As SIGKILL: nothing is tidied up."""


def _run_until_killed(federation: Federation) -> None:
    """The coordinator dies when it reads an answer of hospital-c in round 2."""
    site = federation.sites["hospital-c"]

    def deadly(frame: Frame) -> Any:  # noqa: ANN401 - whatever the site says
        answer = site.answer(frame)
        if (frame.stage, frame.round) == (Stage.MASKED_INPUT, 2):
            raise KilledError
        return answer

    answers: dict[str, Callable[[Frame], Any]] = {name: one.answer for name, one in federation.sites.items()}
    with pytest.raises(KilledError):
        federation.run(ScriptedLine.of(federation.clock, answers | {"hospital-c": deadly}))


def test_a_coordinator_killed_in_mid_round_is_started_again_and_ends_the_study(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    _run_until_killed(federation)
    result = federation.run()
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)
    assert [record["attempts"] for record in result["history"]] == [1, 2, 1]


def test_an_open_attempt_needs_all_its_hospitals_to_be_given_up_and_tried_again(tmp_path: Path) -> None:
    federation = Federation(tmp_path, secagg=CONTINUING, round_deadline_s=5.0)
    _run_until_killed(federation)
    without_d = ScriptedLine.of(federation.clock, {name: one.answer for name, one in federation.sites.items()})
    without_d.sites["hospital-d"].away = ((0.0, float("inf")),)
    # The others trained on this model with it; on a second cohort they would tell its update.
    with pytest.raises(SecureHealthError) as caught:
        federation.run(without_d)
    assert caught.value.code == "coordinator.deadline_missed"
    assert "hospital-d" in caught.value.sentence
    assert federation.run()["rounds"] == 3
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)


def test_a_silent_hospital_pauses_a_study_that_waits_and_nothing_is_summed(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.sites["hospital-d"].silent_at = {Stage.MASKED_INPUT}
    with pytest.raises(SecureHealthError) as caught:
        federation.run()
    assert caught.value.code == "coordinator.deadline_missed"
    assert "hospital-d" in caught.value.sentence
    assert federation.events("round") == []
    federation.sites["hospital-d"].silent_at = set()
    assert federation.run()["rounds"] == 3
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * MEAN, atol=2e-3)


def test_a_study_that_continues_takes_a_third_leg_and_sums_the_rest(tmp_path: Path) -> None:
    terms = {"dropout": "continue", "accept_differencing": True, "minimum_sites": 3}
    federation = Federation(tmp_path, secagg=terms, rounds=1, round_deadline_s=5.0)
    federation.sites["hospital-d"].silent_at = {Stage.MASKED_INPUT}
    result = federation.run()
    assert result["history"][0]["cohort"] == ["hospital-a", "hospital-b", "hospital-c"]
    assert result["history"][0]["legs"] == 4  # keys, masked input, agree, reveal
    rest = [site for site in SITES if site != "hospital-d"]
    expected = sum(STEPS[site] * WEIGHTS[site] for site in rest) / sum(WEIGHTS[site] for site in rest)
    np.testing.assert_allclose(federation.trained(), 1.0 + expected, atol=2e-3)


def test_a_worker_that_breaks_uploads_a_masked_nothing_and_pauses_the_study_there(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    broken = federation.sites["hospital-a"]
    broken.worker.broken = True
    federation.run()
    rest = [site for site in SITES if site != "hospital-a"]
    expected = sum(STEPS[site] * WEIGHTS[site] for site in rest) / sum(WEIGHTS[site] for site in rest)
    np.testing.assert_allclose(federation.trained(), 1.0 + 3 * expected, atol=2e-3)
    assert list(broken.directory.glob("rounds/*/local/paused.json"))
    # The next run of the study does not begin here until somebody has looked.
    federation.directory.result.unlink()
    for checkpoint in federation.directory.checkpoints.iterdir():
        checkpoint.unlink()
    with pytest.raises(SecureHealthError) as caught:
        federation.run()
    assert caught.value.code == "coordinator.refused"
    assert caught.value.details["refusal"] == "declined"


def test_secure_aggregation_without_roster_or_key_is_refused(tmp_path: Path) -> None:
    study_file, model = study_files()
    with pytest.raises(OperatorError, match="roster"):
        CoordinatorDirectory(tmp_path).prepare(study_file, model, CoordinatorSettings())


def test_the_exchange_counts_what_the_legs_cost(tmp_path: Path) -> None:
    federation = Federation(tmp_path, rounds=1)
    federation.run()
    (record,) = [event for event in federation.events("round") if event["kind"] == "train"]
    assert record["bytes_up"] > 0


def test_noise_is_accounted_in_the_result_and_metrics_are_withheld(tmp_path: Path) -> None:
    noise = {"epsilon": 100.0, "delta": 1e-5, "l2_clip": 1.0, "noise_multiplier": 1.0}
    federation = Federation(tmp_path, privacy=noise)
    result = federation.run()
    assert result["privacy"]["rounds"] == 3
    assert 3 < result["privacy"]["epsilon"] < 15
    assert result["final"]["auc"] is None
    assert not np.allclose(federation.trained(), 1.0 + 3 * MEAN, atol=0.01)


def test_a_study_that_would_spend_more_than_it_promises_does_not_start(tmp_path: Path) -> None:
    noise = {"epsilon": 0.5, "delta": 1e-5, "l2_clip": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(OperatorError, match="epsilon"):
        Federation(tmp_path, privacy=noise).run()
