"""Attacks on rounds and attempts: replays, restarts, abort certificates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.wire import Frame, Stage
from agent.secagg.messages import AbortCertificate, Answer
from agent.secagg.stages import NodeState
from tests.simulators.cohort import relay
from tests.simulators.malicious_server import MaliciousServer, Opened, refused

VICTIM = "site-000"
COLLUDER = "site-003"


def accept(server: MaliciousServer, opened: Opened, site: str = VICTIM) -> None:
    server.cohort.hospitals[site].session.accept(relay(opened.frame))


def certificate(server: MaliciousServer, opened: Opened, *sites: str) -> AbortCertificate:
    """Aborts of real nodes, and of the colluder where it is named."""
    made = opened.attempt
    signatures = {}
    for site in sites:
        if site == COLLUDER:
            signatures[site] = server.abort_as(site, opened)
        else:
            signatures[site] = server.abort(site, made.round_number, made.attempt, made.context).signature
    return AbortCertificate(made.context, signatures)


def test_round_replayed(server: MaliciousServer) -> None:
    opened = server.open()
    server.upload(VICTIM, opened)
    with refused("used_round"):
        accept(server, opened)


def test_round_replayed_across_a_restart(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open())
    server.cohort.hospitals[VICTIM].restart()
    server.advertise([VICTIM])
    with refused("used_round"):
        accept(server, server.open())


def test_round_replayed_in_a_new_run(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open())
    server.advertise(run=2)
    with refused("used_round"):
        accept(server, server.open())


def test_earlier_round_asked_for_again(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open(2))
    with refused("used_round"):
        accept(server, server.open(1))


@pytest.mark.parametrize("round_number", [7, 1000])
def test_rounds_beyond_the_study(server: MaliciousServer, round_number: int) -> None:
    with refused("unknown_round"):
        accept(server, server.open(round_number))


def test_round_zero_where_the_study_has_none(server: MaliciousServer) -> None:
    terms = replace(server.cohort.terms, moment_words=0)
    server.cohort.hospitals[VICTIM].session._terms = terms
    with refused("unknown_round"):
        accept(server, server.open(0))


def test_second_attempt_without_proof(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open())
    with refused("abort_missing"):
        accept(server, server.open(attempt=2))


def test_second_attempt_with_too_few_aborts(server: MaliciousServer) -> None:
    opened = server.open()
    server.upload_all(opened)
    proof = certificate(server, opened, VICTIM, COLLUDER)
    with refused("abort_missing"):
        accept(server, server.open(attempt=2, abort=proof))


def test_second_attempt_with_copied_aborts(server: MaliciousServer) -> None:
    opened = server.open()
    server.upload_all(opened)
    proof = certificate(server, opened, VICTIM, COLLUDER)
    copied = AbortCertificate(proof.context, {**proof.signatures, "site-001": proof.signatures[COLLUDER]})
    with refused("bad_abort") as error:
        accept(server, server.open(attempt=2, abort=copied))
    assert error[0].details["peer"] == "site-001"


def test_second_attempt_with_aborts_of_strangers(server: MaliciousServer) -> None:
    opened = server.open()
    server.upload_all(opened)
    proof = certificate(server, opened, VICTIM, COLLUDER)
    padded = AbortCertificate(proof.context, {**proof.signatures, "site-999": b"signature"})
    with refused("bad_abort"):
        accept(server, server.open(attempt=2, abort=padded))


def test_second_attempt_with_aborts_of_another_attempt(server: MaliciousServer) -> None:
    """Aborts of attempt 1 do not open attempt 3."""
    opened = server.open()
    server.upload_all(opened)
    proof = certificate(server, opened, VICTIM, "site-001", COLLUDER)
    with refused("bad_abort"):
        accept(server, server.open(attempt=3, abort=proof))


def test_second_attempt_with_aborts_of_a_context_that_the_victim_never_saw(server: MaliciousServer) -> None:
    """The cohort was split: the victim's own attempt is not the one that was given up."""
    seen, other = server.open(configuration=b"one"), server.open(configuration=b"two")
    server.upload(VICTIM, seen)
    for site in ("site-001", "site-002"):
        server.upload(site, other)
    proof = certificate(server, other, "site-001", "site-002", COLLUDER)
    with refused("foreign_context"):
        accept(server, server.open(attempt=2, abort=proof))


def test_second_attempt_with_another_cohort(lenient: MaliciousServer) -> None:
    opened = lenient.open()
    lenient.upload_all(opened)
    proof = certificate(lenient, opened, VICTIM, "site-001", "site-002", COLLUDER)
    with refused("other_sites"):
        accept(lenient, lenient.open(attempt=2, sites=lenient.sites[:4], abort=proof))


def test_an_attempt_given_up_unseen_cannot_be_joined(server: MaliciousServer) -> None:
    opened = server.open()
    assert server.abort(VICTIM, 1, 1, opened.attempt.context).answer is Answer.ABORTED
    with refused("used_round"):
        accept(server, opened)


def test_an_attempt_given_up_while_training_is_not_uploaded(server: MaliciousServer) -> None:
    opened = server.open()
    session = server.cohort.hospitals[VICTIM].session
    session.accept(relay(opened.frame))
    server.abort(VICTIM, 1, 1, opened.attempt.context)
    with refused("out_of_turn"):
        session.masked_input(None)


def test_an_abort_of_another_context_is_not_signed(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open())
    with refused("foreign_context"):
        server.abort(VICTIM, 1, 1, b"c" * 32)
    assert server.cohort.hospitals[VICTIM].session.state is NodeState.UPLOADED


def test_an_abort_of_a_spent_round_is_not_signed(server: MaliciousServer) -> None:
    server.upload(VICTIM, server.open(2))
    with refused("used_round"):
        server.abort(VICTIM, 1, 1, b"c" * 32)


def test_an_abort_without_context_of_an_attempt_never_seen_is_not_signed(server: MaliciousServer) -> None:
    with refused("foreign_context"):
        server.abort(VICTIM, 1, 1, b"")


def test_an_abort_is_signed_again_for_a_lost_reply(server: MaliciousServer) -> None:
    opened = server.open()
    server.upload(VICTIM, opened)
    first = server.abort(VICTIM, 1, 1, opened.attempt.context)
    server.cohort.hospitals[VICTIM].restart()
    again = server.abort(VICTIM, 1, 1, b"")
    assert (again.answer, again.context) == (Answer.ABORTED, first.context)


def test_a_round_skipped_burns_the_open_one(server: MaliciousServer) -> None:
    """Secrets of the round before are gone as soon as the next is accepted."""
    opened = server.open(1)
    server.upload_all(opened)
    accept(server, server.open(2))
    with refused("out_of_turn"):
        server.agree(VICTIM, opened)


def test_messages_for_another_study(server: MaliciousServer) -> None:
    session = server.cohort.hospitals[VICTIM].session
    frame = replace(server.open().frame, study="other")
    with refused("foreign_study"):
        session.accept(relay(frame))


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage is not Stage.MASKED_INPUT])
def test_messages_at_the_wrong_door(server: MaliciousServer, stage: Stage) -> None:
    with refused("out_of_turn"):
        server.cohort.hospitals[VICTIM].session.accept(relay(Frame("study", stage)))


def test_leg_1_before_leg_0(server: MaliciousServer) -> None:
    server.cohort.hospitals[VICTIM].restart()
    with refused("out_of_turn"):
        accept(server, server.open())
