"""Attacks that reopen a round whose sum is out: each further sum of the same inputs wears noise and masks down."""

from __future__ import annotations

import numpy as np
import pytest

from agent.core.wire import Frame, Stage
from agent.secagg.messages import AgreeRequest
from agent.secagg.rules import check_step
from agent.secagg.terms import Dropout, NoiseTerms
from tests.simulators.cohort import Cohort, make_terms
from tests.simulators.malicious_server import refused


def abort_frame(cohort: Cohort, attempt: int, context: bytes) -> Frame:
    header = AgreeRequest(context, abort=True).header()
    return Frame(cohort.terms.study_id, Stage.AGREE, 1, attempt, header)


@pytest.mark.parametrize("privacy", [None, NoiseTerms(1.0, 1.0, 1.0, 1e-5)])
@pytest.mark.parametrize("attempt", [2, 3, 8])
def test_abort_of_an_attempt_that_never_was_reopens_a_summed_round(privacy: NoiseTerms | None, attempt: int) -> None:
    terms = make_terms(4, dropout=Dropout.CONTINUE, privacy=privacy, accept_differencing=privacy is None)
    cohort = Cohort(terms)
    cohort.advertise()
    cohort.run_round(1, cohort.inputs())
    for hospital in cohort.hospitals.values():
        with refused("locked_on_survivors"):
            hospital.session.agree(abort_frame(cohort, attempt, bytes([attempt]) * 32))


def test_abort_of_an_unseen_attempt_forgets_who_took_part() -> None:
    """A round that is still open may be given up, but only its own hospitals may try it again."""
    cohort = Cohort(make_terms(5, dropout=Dropout.CONTINUE, accept_differencing=True))
    cohort.advertise()
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    cohort.upload(opened, cohort.inputs(), ())
    session = cohort.hospitals["site-000"].session
    session.agree(abort_frame(cohort, 2, b"c" * 32))
    record = cohort.hospitals["site-000"].journal.latest_attempt()
    assert record is not None
    assert record.attempt == 2
    assert record.sites == cohort.terms.sites


def test_model_with_a_zero_of_the_other_sign_passes_for_another_model() -> None:
    before = np.zeros(4, dtype=np.float32)
    after = before.copy()
    after[1] = -0.0
    assert (before == after).all()
    with refused("model_step"):
        check_step(make_terms(4), before, after, rounds=0)
    check_step(make_terms(4), before, before.copy(), rounds=0)
