"""What is kept of a repository, as one file."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import OperatorError
from agent.trust.pins import Moment, Pins
from agent.trust.store import StoredState, parse_state

FILES = st.dictionaries(st.text(max_size=8), st.binary(max_size=20), max_size=3)
PINS = Pins().with_online("ab" * 32, Moment(version=3, issued_s=9), 2)
STATES = st.builds(
    StoredState,
    roots=st.lists(st.binary(max_size=20), max_size=3).map(tuple),
    timestamp=st.binary(max_size=20),
    snapshot=st.binary(max_size=20),
    targets=st.binary(max_size=20),
    roles=FILES,
    records=FILES,
    pins=st.sampled_from([Pins(), PINS]),
)


@given(STATES)
def test_round_trip(state: StoredState) -> None:
    assert parse_state(state.encode()) == state


@given(STATES, st.data())
def test_damage_is_found_or_harmless(state: StoredState, data: st.DataObject) -> None:
    """No damage makes it anything but a state or a refusal; whether a state is true, signatures tell."""
    encoded = bytearray(state.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(OperatorError):
        assert parse_state(bytes(encoded)) != state


@given(STATES, st.integers(min_value=1))
def test_cut_off_state_is_refused(state: StoredState, cut: int) -> None:
    encoded = state.encode()
    with pytest.raises(OperatorError) as failure:
        parse_state(encoded[: -min(cut, len(encoded))])
    assert failure.value.code == "trust.bad_state"
