"""Honest cohorts: what comes out is the sum, in two legs, or three where hospitals vanish."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
import pytest

from agent.core.errors import PeerProtocolError
from agent.secagg.codec import Contribution
from agent.secagg.rules import Verdict
from agent.secagg.server import RoundSum
from agent.secagg.stages import NodeState, ServerState
from agent.secagg.terms import Dropout
from tests.simulators.cohort import Cohort, Silence, make_terms, relay

CONTINUE = {"dropout": Dropout.CONTINUE, "accept_differencing": True}


def check_sum(cohort: Cohort, result: RoundSum, inputs: Mapping[str, Contribution], sites: Collection[str]) -> None:
    """The released sum is that of exactly these sites: integers to the last digit, the mean within rounding."""
    chosen = [inputs[site] for site in sites]
    weights = [result.attempt.codec.effective_weight(one.weight) for one in chosen]
    assert set(result.survivors) == set(sites)
    assert result.total.weight == sum(weights)
    assert np.array_equal(result.total.words, np.sum([one.words for one in chosen], axis=0, dtype=np.uint64))
    mean = sum(one.update.astype(np.float64) * weight for one, weight in zip(chosen, weights, strict=True)) / sum(
        weights
    )
    step = cohort.terms.clip / result.attempt.codec.limit * cohort.terms.weight_cap / sum(weights)
    assert np.all(np.abs(result.total.update - mean) <= len(chosen) * step + 1e-6)


@pytest.mark.parametrize("sites", [3, 4, 5, 8, 13, 33])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_whole_cohort_sums_in_two_legs(sites: int, bits: int) -> None:
    cohort = Cohort(make_terms(sites, bits=bits))
    cohort.advertise()
    inputs = cohort.inputs()
    result = cohort.run_round(1, inputs)
    assert (result.legs, result.blamed) == (2, ())
    check_sum(cohort, result, inputs, cohort.terms.sites)


@pytest.mark.parametrize("sites", [4, 5, 8, 13, 33])
def test_hospitals_that_vanish_before_their_upload_are_left_out(sites: int) -> None:
    cohort = Cohort(make_terms(sites, **CONTINUE))
    cohort.advertise()
    inputs = cohort.inputs()
    most = sites - (sites + cohort.terms.colluders) // 2 - 1
    gone = cohort.terms.sites[1 : 1 + most]
    result = cohort.run_round(1, inputs, silence=Silence(upload=gone))
    assert (result.legs, result.blamed) == (3, ())
    check_sum(cohort, result, inputs, set(cohort.terms.sites) - set(gone))


@pytest.mark.parametrize("leg", ["agree", "reveal"])
@pytest.mark.parametrize("sites", [5, 8, 13])
def test_hospitals_that_vanish_after_their_upload_stay_in_the_sum(sites: int, leg: str) -> None:
    cohort = Cohort(make_terms(sites, **CONTINUE))
    cohort.advertise()
    inputs = cohort.inputs()
    silence = {"upload": cohort.terms.sites[:1]}
    if sites > 5:
        silence[leg] = cohort.terms.sites[-1:]
    result = cohort.run_round(1, inputs, silence=Silence(**silence))
    check_sum(cohort, result, inputs, cohort.terms.sites[1:])


def test_a_whole_cohort_survives_silence_in_leg_2() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    inputs = cohort.inputs()
    result = cohort.run_round(1, inputs, silence=Silence(agree=cohort.terms.sites[2:3]))
    check_sum(cohort, result, inputs, cohort.terms.sites)


def test_moments_and_the_last_evaluation_sum_words_alone() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    for round_number in (0, 1, cohort.terms.rounds + 1):
        inputs = cohort.inputs(round_number)
        result = cohort.run_round(round_number, inputs)
        expected = np.sum([one.words for one in inputs.values()], axis=0, dtype=np.uint64)
        assert np.array_equal(result.total.words, expected)


def test_whole_blocks_may_vanish_under_wait() -> None:
    sites = make_terms(9, colluders=1).sites
    blocks = (sites[:3], sites[3:6], sites[6:])
    cohort = Cohort(make_terms(9, colluders=1, minimum_sites=3, blocks=blocks))
    cohort.advertise()
    inputs = cohort.inputs()
    result = cohort.run_round(1, inputs, silence=Silence(upload=blocks[1]))
    assert result.legs == 3
    check_sum(cohort, result, inputs, {*blocks[0], *blocks[2]})


def test_wait_aborts_and_sums_the_same_round_once_the_silent_hospital_is_back() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    inputs = cohort.inputs()
    late = cohort.terms.sites[0]
    first = cohort.server.begin_round(1, cohort.model_bytes(1))
    cohort.upload(first, inputs, silent=[late])
    assert first.verdict is Verdict.ABORT
    with pytest.raises(PeerProtocolError) as caught:
        first.agree_requests()
    assert caught.value.code == "secagg.too_few_survivors"
    cohort.abort(first, silent=[late])
    certificate = first.abort_certificate()
    assert certificate is not None
    assert first.state is ServerState.ABORTED

    cohort.hospitals[late].restart()
    cohort.advertise([late])
    second = cohort.server.begin_round(1, cohort.model_bytes(1), attempt=2, abort=certificate)
    cohort.upload(second, inputs)
    cohort.agree(second)
    check_sum(cohort, second.finish(), inputs, cohort.terms.sites)


def test_two_failed_attempts_end_in_a_clear_state_and_the_third_sums() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    inputs, certificate = cohort.inputs(), None
    for attempt in (1, 2):
        opened = cohort.server.begin_round(1, cohort.model_bytes(1), attempt=attempt, abort=certificate)
        cohort.upload(opened, inputs, silent=cohort.terms.sites[:1])
        cohort.abort(opened)
        certificate = opened.abort_certificate()
        assert opened.state is ServerState.ABORTED
        assert {hospital.session.state for hospital in cohort.hospitals.values()} == {NodeState.READY}
    opened = cohort.server.begin_round(1, cohort.model_bytes(1), attempt=3, abort=certificate)
    cohort.upload(opened, inputs)
    cohort.agree(opened)
    check_sum(cohort, opened.finish(), inputs, cohort.terms.sites)


def test_a_round_that_lost_too_many_shares_names_the_shortage_and_the_next_one_runs() -> None:
    cohort = Cohort(make_terms(3))
    cohort.advertise()
    with pytest.raises(PeerProtocolError) as caught:
        cohort.run_round(1, cohort.inputs(), silence=Silence(agree=cohort.terms.sites[:1]))
    assert caught.value.code == "secagg.too_few_shares"
    cohort.hospitals[cohort.terms.sites[0]].restart()
    cohort.advertise([cohort.terms.sites[0]])
    inputs = cohort.inputs(2)
    check_sum(cohort, cohort.run_round(2, inputs), inputs, cohort.terms.sites)


def test_a_restarted_coordinator_learns_where_the_nodes_stand_and_goes_on() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    cohort.run_round(1, cohort.inputs())
    cohort.server = cohort.new_server(2)
    cohort.advertise()
    assert cohort.server.standings == dict.fromkeys(cohort.terms.sites, (1, 1))
    inputs = cohort.inputs(2)
    check_sum(cohort, cohort.run_round(2, inputs), inputs, cohort.terms.sites)


@pytest.mark.parametrize(("changes", "slots"), [({}, 1), (CONTINUE, 5)])
def test_pairwise_seeds_are_shared_out_only_where_a_part_may_be_summed(changes: dict[str, Any], slots: int) -> None:
    cohort = Cohort(make_terms(5, **changes))
    cohort.advertise()
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    session = cohort.hospitals[cohort.terms.sites[0]].session
    session.accept(relay(opened.masked_input_request()))
    reply = session.masked_input(None).frame.header
    assert len(cast("bytes", reply["shares"])) == 4 * (slots * 32 + 16)


def test_secrets_are_not_shown() -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    cohort.upload(opened, cohort.inputs())
    session = cohort.hospitals[cohort.terms.sites[0]].session
    secrets, key = session._secrets, session._key
    assert (repr(secrets), repr(key)) == ("RoundSecrets(...)", "RunKey(...)")
    assert repr(session) == "NodeSession(study='study', state='uploaded')"
    assert secrets is not None
    for seed in secrets.seeds.values():
        assert repr(seed)[2:-1] not in repr(secrets.own_shares)
        assert repr(seed)[2:-1] not in repr(secrets.masks())
