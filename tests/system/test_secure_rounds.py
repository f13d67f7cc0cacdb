"""Secure studies from end to end: real agents, a real SuperLink, a real coordinator, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from provisioning.coordinator.fab import has_ended
from tests.simulators.secure_consortium import SecureConsortium
from tests.simulators.superlink import RunningSuperLink, wait_until
from tests.simulators.swtpm import SwtpmMaker

pytestmark = pytest.mark.slow

QUANTISATION = 2e-3
"""What three rounds of 14-bit updates and fixed-point weights may be off."""


def _check_trained(consortium: SecureConsortium, *, rounds: int = 3) -> None:
    np.testing.assert_allclose(consortium.trained, 1.0 + rounds * consortium.mean, atol=QUANTISATION)


def test_a_study_ends_at_the_weighted_mean_and_only_masked_updates_left(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with SecureConsortium.found(superlink, tmp_path) as consortium:
        consortium.start()
        consortium.launch()
        consortium.wait_for("finished")
        _check_trained(consortium)
        result = consortium.result
        assert result["aggregation"] == "secure"
        assert [record["cohort"] for record in result["history"]] == [list(consortium.sites)] * 3
        assert [record["attempts"] for record in result["history"]] == [1, 1, 1]
        assert result["final"]["evaluated"] == 400
        for box in consortium.boxes.values():
            assert len(box.events("masked_input_sent")) == 4
            assert not box.events("message_refused")


def test_boxes_with_tpms_take_part_beside_software_ones(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with (
        SwtpmMaker() as maker,
        maker.make("a") as first,
        maker.make("b") as second,
        SecureConsortium.found(superlink, tmp_path, key_uris={"a": first.uri, "b": second.uri}) as consortium,
    ):
        consortium.start()
        consortium.launch()
        consortium.wait_for("finished")
        _check_trained(consortium)
        assert [consortium.box(letter).kind.value for letter in "abc"] == ["tpm", "tpm", "software"]


def test_a_box_killed_in_mid_round_costs_an_attempt_and_nothing_else(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with SecureConsortium.found(superlink, tmp_path) as consortium:
        consortium.start(training_s=1.0)
        consortium.launch()
        consortium.wait_for_work("b", "masked-input 2")
        consortium.box("b").kill()
        consortium.box("b").start()
        consortium.wait_for("finished")
        _check_trained(consortium)
        history = consortium.result["history"]
        assert [record["attempts"] for record in history] == [1, 2, 1]
        assert all(record["cohort"] == list(consortium.sites) for record in history)
        assert not consortium.events("faulty")  # its new session key is no lie


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_coordinator_gone_in_mid_round_is_started_again_and_ends_the_study(
    superlink: RunningSuperLink, tmp_path: Path, how: str
) -> None:
    with SecureConsortium.found(superlink, tmp_path) as consortium:
        consortium.start(training_s=1.0)
        consortium.launch()
        consortium.wait_for_work("c", "masked-input 2")
        if how == "killed":
            consortium.kill_coordinator()
        else:
            consortium.stop_coordinator()
        consortium.launch()
        consortium.wait_for("finished")
        _check_trained(consortium)
        assert [event["round"] for event in consortium.events("started")] == [1, 2]
        assert [record["attempts"] for record in consortium.result["history"]] == [1, 2, 1]


def test_a_hospital_that_stays_away_pauses_the_study_until_it_is_back(
    superlink: RunningSuperLink, tmp_path: Path
) -> None:
    with SecureConsortium.found(superlink, tmp_path, round_deadline_s=6.0) as consortium:
        consortium.start(training_s=0.5)
        consortium.launch()
        consortium.wait_for_work("d", "masked-input 2")
        consortium.box("d").kill()
        (event,) = consortium.wait_for("paused")
        assert event["code"] == "coordinator.deadline_missed"
        assert consortium.box("d").site in event["sentence"]
        assert [event["round"] for event in consortium.events("round")] == [1]
        connection, run_id = superlink.connection, consortium.run_id
        wait_until(lambda: has_ended(connection, run_id) is not None, limit_s=30, what="the run ends")
        assert consortium.box("d").site in (has_ended(connection, run_id) or "")

        consortium.box("d").start()
        consortium.box("d").wait_for_link()
        consortium.launch()
        consortium.wait_for("finished")
        _check_trained(consortium)
