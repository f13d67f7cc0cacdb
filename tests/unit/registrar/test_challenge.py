"""The state machine of an enrolment: one table, and what each state has a use for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.attestation.credential import Credential
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.ids import SiteID
from agent.enrolment import messages
from agent.statements.roots import EvidenceClass, KeyKind
from provisioning.authority.appraisal import Subject, Terms
from provisioning.registrar.challenge import (
    FINAL,
    TRANSITIONS,
    Enrolment,
    Event,
    Occasion,
    Refusal,
    SiteTalk,
    State,
    ask,
    endorse,
    finish,
    give_credential,
    refuse,
    take_activation,
    take_evidence,
    take_site_answer,
    take_site_evidence,
)

OPEN = Enrolment("one", "00" * 8, SiteID("a"), Subject(KeyKind.TPM, b"k", b"e", b"n"), b"l", bytes(32), 0)
OCCASION = Occasion("00" * 32, "11" * 32, Terms((), frozenset(KeyKind), EvidenceClass.NONE, is_test=True), 0)
CREDENTIAL = Credential(b"blob", b"seed")
NO = Refusal("No.", "Ask.")


def zeros(count: int) -> bytes:
    return bytes(count)


MOVES: dict[Event, Callable[[Enrolment], Enrolment]] = {
    Event.EXCHANGE: lambda known: ask(known, "22" * 32, b"n" * 32),
    Event.SHOW: lambda known: take_site_evidence(known, b"evidence", b"p" * 32),
    Event.CREDENTIAL: lambda known: give_credential(known, CREDENTIAL),
    Event.ANSWER: lambda known: take_site_answer(known, b"a" * 32),
    Event.ENDORSE: endorse,
    Event.REGISTER: lambda known: finish(known, "7"),
    Event.REFUSE: lambda known: refuse(known, NO),
}


def test_states_are_those_that_boxes_know() -> None:
    assert [state.value for state in State] == [state.value for state in messages.State]


def test_every_state_can_be_reached_and_left_unless_it_is_the_last() -> None:
    reached = {State.OPEN}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached == set(State)
    assert {before for before, _ in TRANSITIONS} == set(State) - FINAL


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", MOVES)
def test_a_move_is_made_where_the_table_has_it_and_nowhere_else(state: State, event: Event) -> None:
    known = replace(OPEN, state=state)
    after = TRANSITIONS.get((state, event))
    if after is None:
        with pytest.raises(OperatorError):
            MOVES[event](known)
    else:
        assert MOVES[event](known).state is after


@pytest.mark.parametrize("event", [event for event in MOVES if event not in {Event.ENDORSE, Event.REGISTER}])
def test_a_move_twice_is_one(event: Event) -> None:
    (before, *_) = [state for (state, known), _ in TRANSITIONS.items() if known is event]
    once = MOVES[event](replace(OPEN, state=before))
    assert MOVES[event](once) == once


@pytest.mark.parametrize("state", sorted(set(State) - {State.OPEN, State.CHALLENGED, State.REFUSED}))
def test_what_comes_late_for_the_registrar_changes_nothing(state: State) -> None:
    known = replace(OPEN, state=state)
    assert take_evidence(known, b"anything", OCCASION, random_bytes=zeros) == known
    assert take_activation(known, b"anything", OCCASION) == known


def test_evidence_whose_answer_was_lost_gets_the_same_credential() -> None:
    known = replace(OPEN, state=State.CHALLENGED, evidence=b"evidence", secret=bytes(32), credential=CREDENTIAL)
    assert take_evidence(known, b"evidence", OCCASION, random_bytes=zeros) == known


def test_evidence_that_is_none_leaves_all_as_it_was() -> None:
    for state in (State.OPEN, State.CHALLENGED):
        with pytest.raises(SecureHealthError):
            take_evidence(replace(OPEN, state=state), b"nonsense", OCCASION, random_bytes=zeros)


def test_a_new_asking_forgets_what_was_answered_to_the_one_before() -> None:
    talk = SiteTalk("33" * 32, b"o" * 32, b"shown", b"p" * 32, CREDENTIAL, b"a" * 32)
    after = ask(replace(OPEN, state=State.ANSWERED, talk=talk), "22" * 32, b"n" * 32)
    assert after.talk == SiteTalk("22" * 32, b"n" * 32)


def test_a_refused_box_is_told_why_whatever_it_sends() -> None:
    refused = refuse(replace(OPEN, state=State.EVIDENCED, evidence=b"e", secret=b"s"), NO)
    assert (refused.evidence, refused.secret, refused.talk) == (b"", b"", SiteTalk())
    late: tuple[Callable[[], Enrolment], ...] = (
        lambda: take_evidence(refused, b"evidence", OCCASION, random_bytes=zeros),
        lambda: take_activation(refused, b"answer", OCCASION),
        lambda: take_site_evidence(refused, b"evidence", b"proof"),
    )
    for send in late:
        with pytest.raises(OperatorError) as caught:
            send()
        assert (caught.value.code, caught.value.sentence) == ("enrol.refused", NO.sentence)
