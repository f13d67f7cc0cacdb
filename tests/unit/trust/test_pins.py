"""What never runs backwards."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.core.errors import OperatorError, PeerProtocolError
from agent.trust.pins import TIMESTAMP_AGE_S, Moment, Pins, parse_pins

KEYS, OTHERS = "ab" * 32, "cd" * 32


def seen(*moments: tuple[int, int], keys: str = KEYS) -> Pins:
    pins = Pins()
    for version, issued_s in moments:
        pins = pins.with_online(keys, Moment(version=version, issued_s=issued_s), version)
    return pins


@pytest.mark.parametrize("moment", [(4, 100), (5, 99)])
def test_neither_version_nor_time_runs_backwards(moment: tuple[int, int]) -> None:
    with pytest.raises(PeerProtocolError) as failure:
        seen((5, 100), moment)
    assert failure.value.code == "trust.rolled_back"


def test_snapshot_does_not_run_backwards() -> None:
    with pytest.raises(PeerProtocolError):
        seen((5, 100)).with_online(KEYS, Moment(version=6, issued_s=100), 4)


def test_new_keys_begin_anew() -> None:
    pins = seen((5, 100)).with_online(OTHERS, Moment(version=1, issued_s=1), 1)
    assert pins.oldest_timestamp(KEYS) == 0
    assert pins.with_online(KEYS, Moment(version=1, issued_s=1), 1).online is not None
    assert pins.with_role("sites", KEYS, 9).with_role("sites", OTHERS, 1).roles["sites"].version == 1


def test_role_does_not_run_backwards() -> None:
    with pytest.raises(PeerProtocolError):
        Pins().with_role("sites", KEYS, 2).with_role("sites", KEYS, 1)


def test_nothing_is_old_before_two_days_were_seen() -> None:
    assert seen((1, 1000), (2, 1000 + TIMESTAMP_AGE_S - 1)).oldest_timestamp(KEYS) == 0
    assert seen((1, 1000), (2, 1000 + TIMESTAMP_AGE_S)).oldest_timestamp(KEYS) == 1


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 7200)), min_size=1, max_size=400))
def test_oldest_timestamp_is_one_that_was_old_enough(steps: list[tuple[int, int]]) -> None:
    """However often the repository is published, few moments are kept, and only old timestamps fall."""
    pins, version, issued_s = Pins(), 0, 1_800_000_000
    issued: dict[int, int] = {0: 0}
    for step, pause_s in steps:
        version, issued_s = version + step, issued_s + pause_s
        issued[version] = issued_s
        pins = pins.with_online(KEYS, Moment(version=version, issued_s=issued_s), version)
    assert issued[pins.oldest_timestamp(KEYS)] <= issued_s - TIMESTAMP_AGE_S
    assert pins.online is not None
    assert len(pins.online.seen) <= TIMESTAMP_AGE_S // 1800 + 2
    assert parse_pins(pins.encode()) == pins


@given(st.binary(max_size=200))
@example(b"{}")
def test_strange_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(OperatorError) as failure:
        parse_pins(data)
    assert failure.value.code == "trust.bad_pins"
