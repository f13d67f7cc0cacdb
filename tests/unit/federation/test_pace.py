from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agent.federation.pace import JITTER, Backoff, PollPace

_seconds = st.floats(0, 1e6)


@given(_seconds, _seconds, st.integers(0, 1 << 32))
def test_a_poll_waits_within_bounds_and_about_a_tenth_of_the_quiet_time(last: float, now: float, seed: int) -> None:
    pace = PollPace(0.04, 2.0, random.Random(seed))
    pace.message_at(last)
    wait = pace.wait_s(now)
    assert 0.04 * (1 - JITTER) <= wait <= 2.0 * (1 + JITTER)
    quiet = now - last
    if 0.4 < quiet < 20:
        assert quiet / 10 * (1 - JITTER) <= wait <= quiet / 10 * (1 + JITTER)


def test_before_the_first_message_polls_are_slow() -> None:
    assert PollPace(0.04, 2.0, random.Random(1)).wait_s(0.0) >= 2.0 * (1 - JITTER)


def test_an_idle_hour_costs_few_polls() -> None:
    pace, now, polls = PollPace(0.04, 2.0, random.Random(1)), 0.0, 0
    pace.message_at(0.0)
    while now < 3600:
        now += pace.wait_s(now)
        polls += 1
    assert polls < 1900


@given(st.integers(1, 5000), st.integers(0, 1 << 32))
def test_backoff_grows_to_its_cap_and_never_beyond(failures: int, seed: int) -> None:
    backoff = Backoff(0.25, 5.0, random.Random(seed))
    waits = [backoff.next_s() for _ in range(failures)]
    assert all(0 < wait <= 5.0 * (1 + JITTER) for wait in waits)
    assert waits[0] <= 0.25 * (1 + JITTER)
    if failures > 6:
        assert waits[-1] >= 5.0 * (1 - JITTER)
    backoff.reset()
    assert backoff.next_s() <= 0.25 * (1 + JITTER)


def test_two_nodes_do_not_fall_into_step() -> None:
    one, two = (Backoff(1.0, 5.0, random.Random(seed)) for seed in (1, 2))
    assert [one.next_s() for _ in range(5)] != [two.next_s() for _ in range(5)]
