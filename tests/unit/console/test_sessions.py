"""Sessions: who counts for how long."""

from __future__ import annotations

import secrets

import pytest

from agent.console.sessions import (
    IDLE_LIMIT_S,
    MAX_KNOWN,
    MAX_PENDING,
    MAX_STRANGERS,
    WHOLE_LIMIT_S,
    Pending,
    Session,
    SessionShelf,
)
from agent.core.box_view import ChallengeView, StewardView
from tests.simulators.clock import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def shelf(clock: SetClock) -> SessionShelf:
    return SessionShelf(clock, secrets.token_bytes)


def test_a_session_ends_when_nobody_uses_it(shelf: SessionShelf, clock: SetClock) -> None:
    session = shelf.begin()
    clock.move(IDLE_LIMIT_S)
    assert shelf.find(session.name) is session
    clock.move(IDLE_LIMIT_S + 1)
    assert shelf.find(session.name) is None


def test_a_session_ends_though_it_is_used(shelf: SessionShelf, clock: SetClock) -> None:
    session = shelf.begin()
    for _ in range(int(WHOLE_LIMIT_S / IDLE_LIMIT_S)):
        clock.move(IDLE_LIMIT_S)
        assert shelf.find(session.name) is session
    clock.move(IDLE_LIMIT_S)
    assert shelf.find(session.name) is None


def test_strangers_never_push_out_a_steward(shelf: SessionShelf) -> None:
    steward = shelf.begin()
    shelf.sign_in(steward, "steward-a")
    strangers = [shelf.begin() for _ in range(MAX_STRANGERS + 5)]
    assert shelf.find(steward.name) is steward
    assert [shelf.find(each.name) is None for each in strangers[:6]] == [True] * 5 + [False]


def test_there_are_only_so_many_stewards(shelf: SessionShelf) -> None:
    sessions = [shelf.begin() for _ in range(MAX_KNOWN + 1)]
    for session in sessions:
        shelf.sign_in(session, "steward-a")
    assert shelf.find(sessions[0].name) is None
    assert shelf.find(sessions[-1].name) is sessions[-1]


def test_only_so_much_waits_for_a_key(shelf: SessionShelf) -> None:
    session = shelf.begin()
    view = StewardView(steward="steward-a", kind="webauthn", key_id="ab" * 32)
    pending = Pending("approve", "study", ChallengeView(challenge="ab", payload="{}", steward=view))
    for sequence in range(MAX_PENDING + 2):
        session.keep(sequence, pending)
    assert list(session.pending) == list(range(2, MAX_PENDING + 2))


def test_a_session_shows_no_secret(shelf: SessionShelf) -> None:
    session: Session = shelf.begin()
    assert session.name not in repr(session)
    assert session.token not in repr(session)
