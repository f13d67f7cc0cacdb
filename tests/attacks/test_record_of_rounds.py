"""Attacks on a box's record of rounds: whoever can write on its disk must not make it answer a round once more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.audit.leaves import BudgetReserved, BudgetSettled, UpdateSent
from agent.core.errors import NetworkError, OperatorError
from agent.core.wire import Frame, Stage
from agent.governance.admission import Receipt
from tests.simulators.gate_scene import SITES, gate_scene
from tests.simulators.governed import write_policy
from tests.simulators.scripted_line import ScriptedLine
from tests.unit.coordinator.test_secure import Federation

VICTIM, OTHER = "hospital-b", "hospital-c"


def _record(federation: Federation, site: str) -> Path:
    (record,) = federation.sites[site].directory.glob("rounds/*/local/attempts.jsonl")
    return record


def _unlock(federation: Federation) -> None:
    """What the box had agreed to in round 1 was never agreed to."""
    record = _record(federation, VICTIM)
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert any(line["lock"] for line in lines)
    record.write_text("".join(json.dumps(line | {"lock": ""}) + "\n" for line in lines))


def _forget_the_first(federation: Federation) -> None:
    """The first attempt never happened."""
    record = _record(federation, VICTIM)
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[1:]))


def _bring_another_box_s(federation: Federation) -> None:
    """A genuine record of the same study, of another hospital's box."""
    shutil.copyfile(_record(federation, OTHER), _record(federation, VICTIM))


def _move_the_model(federation: Federation) -> None:
    """A model lies near another than the one that the box accepted last."""
    model = _record(federation, VICTIM).with_name("model.bin")
    data = bytearray(model.read_bytes())
    data[-1] ^= 0x40
    model.write_bytes(data)


@pytest.mark.parametrize("attack", [_unlock, _forget_the_first, _bring_another_box_s, _move_the_model])
def test_record_of_rounds_rewritten(tmp_path: Path, attack: Callable[[Federation], None]) -> None:
    federation = Federation(tmp_path, round_deadline_s=30.0)
    victim, sent = federation.sites[VICTIM], list[Frame]()

    def answer(frame: Frame) -> Any:  # noqa: ANN401 - whatever the site says
        if (frame.stage, frame.round) == (Stage.MASKED_INPUT, 2) and not sent:
            sent.append(frame)
            attack(federation)
            victim.restart()
        return victim.answer(frame)

    answers: dict[str, Callable[[Frame], Any]] = {site: one.answer for site, one in federation.sites.items()}
    line = ScriptedLine.of(federation.clock, answers | {VICTIM: answer})
    with pytest.raises(NetworkError, match=VICTIM):
        federation.run(line)
    assert [event["round"] for event in federation.events("round")] == [1]


@pytest.mark.parametrize("again", [(2, 1), (1, 1), (1, 9), (0, 1)])
def test_record_of_rounds_put_back_to_an_older_one(tmp_path: Path, again: tuple[int, int]) -> None:
    """The journal cannot tell that it is an older one; the audit log, which the witness watches, has the receipts."""
    scene = gate_scene(tmp_path)
    scene.approve()
    permit = scene.gate.admit(scene.candidate)
    scene.gate.reserve(permit, scene.study)
    for turn in ((1, 1), (2, 1)):
        scene.gate.note_sent(permit, _receipt(turn), scene.study)
    with pytest.raises(OperatorError) as refused:
        scene.gate.note_sent(permit, _receipt(again), scene.study)
    assert refused.value.code == "rounds.put_back"
    for turn in ((2, 2), (3, 1)):
        scene.gate.note_sent(permit, _receipt(turn), scene.study)
    assert len(scene.leaves(UpdateSent)) == 4


def test_round_of_a_run_whose_reservation_was_settled_meanwhile(tmp_path: Path) -> None:
    """One first leg serves many rounds: what was given back in between must be set aside anew, or nothing leaves."""
    scene = gate_scene(tmp_path)
    scene.approve()
    permit = scene.gate.admit(scene.candidate)
    scene.gate.reserve(permit, scene.study)
    scene.gate.note_sent(permit, _receipt((1, 1)), scene.study)
    (reserved,) = scene.leaves(BudgetReserved)
    scene.desk.audit.append(BudgetSettled(at_s=1, reservation=reserved.reservation, epsilon=None, releases=1))
    write_policy(scene.place / "policy.toml", unbounded_releases=2)
    with pytest.raises(OperatorError) as refused:
        scene.gate.note_sent(permit, _receipt((2, 1)), scene.study)
    assert refused.value.code == "permit.budget"
    write_policy(scene.place / "policy.toml", unbounded_releases=4)
    scene.gate.note_sent(permit, _receipt((2, 1)), scene.study)
    assert [leaf.releases for leaf in scene.leaves(BudgetReserved)] == [4, 3]
    assert len(scene.leaves(UpdateSent)) == 2


def _receipt(turn: tuple[int, int]) -> Receipt:
    return Receipt(*turn, bytes(32), SITES, 100, "5a" * 32, last=False)


def test_a_box_whose_record_nobody_touched_goes_on_after_the_same_restart(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    federation.sites[VICTIM].restart_before.add((Stage.MASKED_INPUT, 2, 1))
    assert len(federation.run()["history"]) == 3
