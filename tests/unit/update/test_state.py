"""The steps that there are, and no others; a state that somebody else wrote is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agent.core.errors import OperatorError
from agent.update.state import TRANSITIONS, Event, Phase, SlotName, State, encode_state, parse_state

SECRET = bytes(32)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_a_step_is_in_the_table_or_refused(phase: Phase, event: Event) -> None:
    state = State(1, 0, SlotName.A, phase)
    if (phase, event) in TRANSITIONS:
        outcome = TRANSITIONS[phase, event]
        after = state.after(event)
        assert (after.phase, after.good) == (outcome.phase, SlotName.B if outcome.flips else SlotName.A)
    else:
        with pytest.raises(OperatorError) as caught:
            state.after(event)
        assert caught.value.code == "update.wrong_step"


def test_only_a_trial_runs_from_the_other_slot() -> None:
    assert {phase: State(1, 0, SlotName.A, phase).active for phase in Phase} == {
        Phase.STEADY: SlotName.A,
        Phase.STAGED: SlotName.A,
        Phase.TRIAL: SlotName.B,
    }


def test_a_state_comes_back_as_it_was() -> None:
    state = State(7, 3, SlotName.B, Phase.TRIAL, 2, ("agent", "key"), "02:00-05:00", "1.5.0")
    assert parse_state(encode_state(state, SECRET), SECRET) == state


@pytest.mark.parametrize("change", [{"floor": 0}, {"good": "a"}, {"phase": "steady"}, {"generation": 8}, {"more": 1}])
def test_an_altered_state_is_refused(change: dict[str, object]) -> None:
    fields = json.loads(encode_state(State(7, 3, SlotName.B, Phase.TRIAL), SECRET))
    fields["state"] |= change
    with pytest.raises(ValueError, match="somebody else wrote it"):
        parse_state(json.dumps(fields).encode(), SECRET)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"[" * 3000, b" " * 5000])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is|Expecting"):
        parse_state(data, SECRET)


def test_another_secret_s_state_is_refused() -> None:
    state = dataclasses.replace(State(7, 3, SlotName.B), floor=0)
    with pytest.raises(ValueError, match="somebody else wrote it"):
        parse_state(encode_state(state, b"x" * 32), SECRET)
