from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import PeerProtocolError
from agent.secagg import refusals, rules
from agent.secagg.rules import ABORT_LOCK, OPEN_LOCK, Verdict
from agent.secagg.stages import NODE_TRANSITIONS, SERVER_TRANSITIONS, NodeState, ServerState, advance
from agent.secagg.stages import NodeEvent as Event
from agent.secagg.terms import Dropout, default_colluders
from tests.simulators.cohort import make_terms


@pytest.mark.parametrize(
    ("sites", "colluders", "threshold"),
    [(3, 1, 3), (4, 1, 3), (5, 1, 4), (7, 2, 5), (10, 3, 7), (16, 5, 11), (32, 10, 22), (64, 21, 43), (100, 33, 67)],
)
def test_thresholds_of_usual_cohorts(sites: int, colluders: int, threshold: int) -> None:
    assert default_colluders(sites) == colluders
    assert rules.agreement_threshold(sites, colluders) == threshold


@given(st.integers(3, 255), st.data())
def test_no_two_disjoint_decisions_reach_the_threshold(sites: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(1, sites - 2))
    threshold = rules.agreement_threshold(sites, colluders)
    assert threshold <= sites
    assert 2 * (threshold - colluders) > sites - colluders
    assert threshold > colluders


def test_verdicts_under_wait_and_continue() -> None:
    waiting, going = make_terms(5), make_terms(5, dropout=Dropout.CONTINUE, accept_differencing=True)
    sites = waiting.sites
    assert rules.judge_survivors(waiting, sites, sites) is Verdict.COMPLETE
    assert rules.judge_survivors(waiting, sites, sites[:4]) is Verdict.ABORT
    assert rules.judge_survivors(going, sites, sites[:4]) is Verdict.AGREE
    assert rules.judge_survivors(going, sites, sites[:3]) is Verdict.ABORT


@given(st.sets(st.integers(0, 8)), st.sets(st.integers(0, 8)))
def test_whole_blocks_differ_by_whole_blocks(first: set[int], second: set[int]) -> None:
    names = make_terms(9).sites
    blocks = (names[:3], names[3:6], names[6:])
    terms = make_terms(9, colluders=1, minimum_sites=3, blocks=blocks)
    one, other = ({names[index] for index in chosen} for chosen in (first, second))
    if rules.is_whole_blocks(terms, one) and rules.is_whole_blocks(terms, other):
        assert len(one ^ other) in {0, 3, 6, 9}


def test_the_first_decision_stands() -> None:
    survivors = b"s" * 32
    assert rules.settle_lock(OPEN_LOCK, survivors) == survivors
    assert rules.settle_lock(OPEN_LOCK, ABORT_LOCK) == rules.settle_lock(ABORT_LOCK, ABORT_LOCK) == ABORT_LOCK
    for lock, wanted in (
        (survivors, survivors),
        (survivors, ABORT_LOCK),
        (ABORT_LOCK, survivors),
        (survivors, b"t" * 32),
    ):
        with pytest.raises(PeerProtocolError):
            rules.settle_lock(lock, wanted)


def test_turns_only_go_forward() -> None:
    rules.check_turn(None, (1, 1))
    rules.check_turn((1, 1), (1, 2))
    rules.check_turn((1, 5), (2, 1))
    rules.check_turn((1, 1), (1, 1), same_attempt=True)
    for last, wanted in (((1, 1), (1, 1)), ((2, 1), (1, 9)), ((1, 2), (1, 1))):
        with pytest.raises(PeerProtocolError, match="already used"):
            rules.check_turn(last, wanted)
    with pytest.raises(PeerProtocolError):
        rules.check_turn((1, 2), (1, 1), same_attempt=True)


@given(st.floats(-3, 3, width=32), st.integers(0, 4), st.integers(1, 200_000))
def test_steps_are_measured_in_both_norms(step: float, rounds: int, length: int) -> None:
    terms = make_terms(4, max_step_l2=50.0, max_step_linf=1.0)
    before = np.zeros(length, np.float32)
    after = before.copy()
    after[-1] = step
    # Where the model may not move, bytes are compared: a zero of the other sign is another model.
    if abs(step) <= rounds and (rounds or not np.signbit(step)):
        rules.check_step(terms, before, after, rounds=rounds)
    else:
        with pytest.raises(PeerProtocolError):
            rules.check_step(terms, before, after, rounds=rounds)


def test_every_state_is_reached_and_left() -> None:
    for table, states, start in (
        (NODE_TRANSITIONS, set(NodeState), NodeState.FRESH),
        (SERVER_TRANSITIONS, set(ServerState), ServerState.COLLECTING),
    ):
        reached = {start}
        for _ in states:
            reached |= {after for (before, _), after in table.items() if before in reached}
        assert reached == states
    # No state of a node is a trap: a new run is always possible.
    assert all((state, Event.ADVERTISE) in NODE_TRANSITIONS for state in NodeState)


def test_what_the_table_lacks_is_refused() -> None:
    with pytest.raises(PeerProtocolError) as raised:
        advance(NODE_TRANSITIONS, NodeState.FRESH, Event.REVEAL)
    assert raised.value.code == "secagg.out_of_turn"
    assert raised.value.details == {"state": "fresh", "event": "reveal"}


def test_each_refusal_has_a_code_of_its_own() -> None:
    arguments: dict[str, object] = {"str": "site-000", "int": 3, "SecureHealthError | None": None}
    codes = {}
    for name, make in vars(refusals).items():
        if callable(make) and getattr(make, "__module__", "") == refusals.__name__:
            kinds = [kind for key, kind in make.__annotations__.items() if key != "return"]
            error = make(*(arguments[kind] for kind in kinds))
            assert error.code == f"secagg.{name}"
            assert error.next_step.endswith(".")
            codes[error.code] = error
    assert len(codes) >= 40
