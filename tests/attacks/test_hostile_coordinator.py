"""A coordinator that asks for more than a study allows, or tries to learn from what a hospital refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.core.wire import Frame, Refusal, Stage
from agent.federation.faults import RefusedError
from agent.federation.rounds import Rounds
from tests.simulators.hospital import STUDY_ID
from tests.simulators.house import House
from tests.simulators.trainer import played_opener

ONES = np.ones(10, dtype="<f4").tobytes()
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


@pytest.mark.parametrize("study_id", ["other-study", "", "..", "../studies/played-study", "a/b", "A", "x" * 63])
def test_a_study_that_was_not_given_here_is_unknown(house: House, study_id: str) -> None:
    house.install()
    refusal, _ = _refused(house.rounds(), Frame(study_id, Stage.OPEN, header={"study_digest": "0" * 64}))
    assert refusal is Refusal.UNKNOWN_STUDY
    assert house.workers == []


def test_every_cause_that_may_depend_on_data_is_the_same_word(house: House) -> None:
    house.install()
    house.opener = played_opener(fits=False)
    assert _refused(house.rounds(), _train()) == (Refusal.DECLINED, "data.played")
    (house.directory / "catalog.toml").write_text("")
    assert _refused(house.rounds(), _train()) == (Refusal.DECLINED, "study.no_dataset")
    (house.directory / "studies" / STUDY_ID / "model.onnx").write_bytes(b"another model")
    assert _refused(house.rounds(), _train()) == (Refusal.DECLINED, "study.wrong_model")
    (house.directory / "studies" / STUDY_ID / "model.onnx").unlink()
    assert _refused(house.rounds(), _train()) == (Refusal.DECLINED, "study.wrong_model")


def test_round_one_starts_from_the_studys_own_model_only(house: House) -> None:
    house.install()
    rounds = house.rounds()
    changed = np.ones(10, dtype="<f4")
    changed[3] = np.nextafter(np.float32(1), np.float32(2))
    assert _refused(rounds, _train(1, changed.tobytes()))[0] is Refusal.PROTOCOL
    assert house.workers[0].calls == []
    rounds.answer(_train(2, changed.tobytes()))


@pytest.mark.parametrize(
    "payload",
    [b"", ONES[:-1], ONES + b"\0", np.full(10, np.nan, "<f4").tobytes(), np.full(10, np.inf, "<f4").tobytes()],
    ids=["none", "short", "long", "nan", "infinite"],
)
def test_a_model_of_another_form_is_refused(house: House, payload: bytes) -> None:
    house.install()
    assert _refused(house.rounds(), _train(2, payload))[0] is Refusal.PROTOCOL


def test_without_permission_nothing_unprotected_leaves(house: House) -> None:
    house.install()
    house.allowed = False
    assert _refused(house.rounds(), _train()) == (Refusal.NOT_PERMITTED, "rounds.plain_not_allowed")
    assert house.workers[0].calls == []


def test_moments_that_change_during_a_run_are_refused(house: House) -> None:
    house.install(data=FEDERATED)
    rounds = house.rounds()
    rounds.answer(_train(moments={"age": [60.0, 10.0]}))
    assert _refused(rounds, _train(2, moments={"age": [60.0, 0.001]}))[0] is Refusal.PROTOCOL
    rounds.answer(Frame(STUDY_ID, Stage.CLOSE))
    rounds.answer(_train(moments={"age": [50.0, 10.0]}))
