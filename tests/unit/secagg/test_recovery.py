"""A coordinator that lost everything proves that the attempt it left behind is dead, and sums the same round."""

from __future__ import annotations

import numpy as np

from agent.secagg.recovery import LostAttempt
from tests.simulators.cohort import Cohort, make_terms, relay
from tests.simulators.malicious_server import refused


def left_behind() -> Cohort:
    """All uploaded to attempt 1 of round 1; then the coordinator restarted."""
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    cohort.upload(cohort.server.begin_round(1, cohort.model_bytes(1)), cohort.inputs())
    cohort.server = cohort.new_server(2)
    cohort.advertise()
    return cohort


def collect(cohort: Cohort, lost: LostAttempt, count: int) -> None:
    for site in cohort.terms.sites[:count]:
        lost.receive(site, relay(cohort.hospitals[site].session.agree(relay(lost.request()))))


def test_a_restarted_coordinator_repeats_the_round() -> None:
    cohort = left_behind()
    assert set(cohort.server.standings.values()) == {(1, 1)}
    lost = cohort.server.lost_attempt(1, 1)
    collect(cohort, lost, 3)
    certificate = lost.certificate()
    assert certificate is not None
    opened = cohort.server.begin_round(1, cohort.model_bytes(1), attempt=2, abort=certificate)
    inputs = cohort.inputs()
    cohort.upload(opened, inputs)
    cohort.agree(opened)
    words = opened.finish().total.words
    assert np.array_equal(words, np.sum([one.words for one in inputs.values()], axis=0, dtype=np.uint64))


def test_too_few_aborts_prove_nothing() -> None:
    cohort = left_behind()
    lost = cohort.server.lost_attempt(1, 1)
    collect(cohort, lost, 2)
    assert lost.certificate() is None


def test_an_abort_in_another_s_name_is_not_counted() -> None:
    cohort = left_behind()
    lost = cohort.server.lost_attempt(1, 1)
    frame = relay(cohort.hospitals["site-000"].session.agree(relay(lost.request())))
    for site in ("site-001", "site-999"):
        with refused("bad_abort"):
            lost.receive(site, frame)


def test_hospitals_that_agreed_do_not_give_the_attempt_up() -> None:
    cohort = Cohort(make_terms(3))
    cohort.advertise()
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    cohort.upload(opened, cohort.inputs())
    cohort.agree(opened, silent=["site-002"])
    cohort.server = cohort.new_server(2)
    cohort.advertise()
    request = relay(cohort.server.lost_attempt(1, 1).request())
    with refused("locked_on_survivors"):
        cohort.hospitals["site-000"].session.agree(request)
    cohort.hospitals["site-002"].session.agree(request)
