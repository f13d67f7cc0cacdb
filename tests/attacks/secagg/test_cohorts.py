"""Attacks on who takes part: too few, split blocks, the same model on two cohorts, differencing between rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.core.errors import OperatorError
from agent.secagg.messages import Answer
from agent.secagg.node import NodeSession
from agent.secagg.terms import Dropout, NoiseTerms
from tests.simulators.cohort import Cohort, Silence, make_terms, relay
from tests.simulators.malicious_server import MaliciousServer, refused

VICTIM = "site-000"


def accept(server: MaliciousServer, *sites: str, **changes: object) -> None:
    opened = server.open(sites=sites, **changes)  # type: ignore[arg-type]
    server.cohort.hospitals[VICTIM].session.accept(relay(opened.frame))


def test_cohort_of_two(lenient: MaliciousServer) -> None:
    with refused("cohort_too_small") as error:
        accept(lenient, VICTIM, "site-001")
    assert error[0].details == {"size": 2, "minimum": 3}


def test_cohort_of_the_victim_and_its_colluders() -> None:
    server = MaliciousServer.over(Cohort(make_terms(7, dropout=Dropout.CONTINUE, accept_differencing=True)))
    assert server.cohort.terms.colluders == 2
    with refused("cohort_too_small"):
        accept(server, VICTIM, "site-005", "site-006")


def test_cohort_without_the_victim(lenient: MaliciousServer) -> None:
    with refused("own_bundle_missing"):
        accept(lenient, "site-001", "site-002", "site-003")


def test_minimum_raised_by_the_local_permit(lenient: MaliciousServer) -> None:
    session = lenient.cohort.hospitals[VICTIM].session
    strict = NodeSession(
        identity=session._identity,
        terms=session._terms,
        roster=session._roster,
        coordinator=session._coordinator,
        journal=session._journal,
        initial_model=session._initial_model,
        randomness=session._randomness,
        permit_minimum=5,
    )
    lenient.cohort.hospitals[VICTIM].session = strict
    lenient.advertise([VICTIM])
    with refused("cohort_too_small"):
        accept(lenient, *lenient.sites[:4])
    opened = lenient.open()
    lenient.upload_all(opened)
    # The others would agree to four survivors; this one gives the attempt up.
    assert lenient.agree(VICTIM, opened, lenient.sites[:4]).answer is Answer.ABORTED


def test_a_field_too_small_cannot_be_asked_for(server: MaliciousServer) -> None:
    """Quantisation, lanes, threshold and clip are no fields of any message: a request that carries one is refused."""
    frame = server.open().frame
    for name in ("bits", "clip", "threshold", "modulus", "target_range", "minimum"):
        with refused("malformed"):
            wider = replace(frame, header={**frame.header, name: 1})
            server.cohort.hospitals[VICTIM].session.accept(relay(wider))


def test_second_cohort_on_one_model(lenient: MaliciousServer) -> None:
    lenient.upload(VICTIM, lenient.open(1))
    with refused("second_cohort"):
        accept(lenient, *lenient.sites[:4], round_number=2)


def test_second_cohort_on_an_earlier_model(lenient: MaliciousServer) -> None:
    """A, then B, then A again with others: the journal remembers every model, not the last."""
    moved = np.full(lenient.cohort.terms.parameters, 0.5, np.float32)
    lenient.upload(VICTIM, lenient.open(1))
    lenient.upload(VICTIM, lenient.open(2, model=moved))
    with refused("second_cohort"):
        accept(lenient, *lenient.sites[:4], round_number=3)
    lenient.upload(VICTIM, lenient.open(3))


def test_differencing_between_rounds_by_leaving_one_hospital_out(server: MaliciousServer) -> None:
    """Rule 1: all in one round, all but one in the next on a model moved by 1e-6."""
    server.upload_all(server.open(1))
    nearly = np.full(server.cohort.terms.parameters, 1e-6, np.float32)
    with refused("broken_block"):
        accept(server, *server.sites[:3], round_number=2, model=nearly)


def test_differencing_between_rounds_by_dropping_one_upload(server: MaliciousServer) -> None:
    """The same with a full cohort whose last upload is called lost: nodes give the attempt up instead."""
    opened = server.open(1)
    server.upload_all(opened)
    for site in server.sites[:3]:
        reply = server.agree(site, opened, server.sites[:3])
        assert reply.answer is Answer.ABORTED
        assert reply.revelation is None


def test_differencing_is_what_continue_without_noise_costs() -> None:
    """What the steward accepts: two honest rounds give the hospital that was missing once, nearly exactly."""
    cohort = Cohort(make_terms(4, dropout=Dropout.CONTINUE, accept_differencing=True, bits=16))
    cohort.advertise()
    inputs = cohort.inputs()
    whole = cohort.run_round(1, inputs)
    moved = np.full(cohort.terms.parameters, 1e-6, np.float32)
    part = cohort.run_round(2, inputs, silence=Silence(upload=["site-003"]), model=moved)
    weight = whole.total.weight - part.total.weight
    stolen = (whole.total.update * whole.total.weight - part.total.update * part.total.weight) / weight
    truth = inputs["site-003"].update
    assert weight == inputs["site-003"].weight
    assert np.dot(stolen, truth) / np.linalg.norm(stolen) / np.linalg.norm(truth) > 0.99


@pytest.mark.parametrize("accepted", [False, True])
def test_continue_needs_noise_or_the_stewards_acceptance(accepted: bool) -> None:
    if accepted:
        make_terms(4, dropout=Dropout.CONTINUE, accept_differencing=True)
        make_terms(4, dropout=Dropout.CONTINUE, privacy=NoiseTerms(1.0, 1.0, 1.0, 1e-5))
    else:
        with pytest.raises(OperatorError, match="differencing"):
            make_terms(4, dropout=Dropout.CONTINUE)


@pytest.mark.parametrize(
    "changes",
    [
        {"colluders": 0},
        {"minimum_sites": 2},
        {"blocks": (("site-000", "site-001"), ("site-002", "site-003"))},
        {"blocks": (("site-000", "site-001", "site-002"),)},
        {"sites": ("site-001", "site-000", "site-002")},
        {"sites": ("site-000", "site-000", "site-001")},
        {"minimum_sites": 5},
        {"bits": 30},
        {"clip": float("nan")},
        {"study_digest": b""},
        {"privacy": NoiseTerms(1.0, 0.0, 1.0, 1e-5)},
    ],
)
def test_terms_that_would_loosen_the_rules_cannot_be_built(changes: dict[str, object]) -> None:
    with pytest.raises(OperatorError) as raised:
        make_terms(4, **changes)
    assert raised.value.code == "secagg.bad_terms"


def test_cohorts_are_unions_of_whole_blocks_under_wait() -> None:
    sites = make_terms(9).sites
    blocks = (sites[:3], sites[3:6], sites[6:])
    server = MaliciousServer.over(Cohort(make_terms(9, colluders=1, minimum_sites=3, blocks=blocks)))
    accept(server, *blocks[0], *blocks[2])
    for chosen in (sites[:8], sites[1:], (*blocks[0], sites[4])):
        if VICTIM in chosen:
            with refused("broken_block"):
                accept(server, *chosen)
