"""Random cohorts, drops, orders, restarts: a round ends in the exact sum or in a refusal, never in a wrong sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from agent.core.errors import PeerProtocolError
from agent.secagg.rules import Verdict
from agent.secagg.server import RoundSum, ServerRound
from agent.secagg.terms import Dropout, Terms, default_colluders
from tests.simulators.cohort import Cohort, make_terms, relay


@st.composite
def studies(draw: st.DrawFn) -> Terms:
    """Any study of 3 to 9 hospitals."""
    count = draw(st.sampled_from([3, 4, 5, 6, 7, 8, 9]))
    colluders = draw(st.sampled_from([1, 1, 1, default_colluders(count), count - 2]))
    names = make_terms(count).sites
    blocks: tuple[tuple[str, ...], ...] = ()
    if draw(st.booleans()) and count >= 2 * (colluders + 2):
        cut = draw(st.integers(colluders + 2, count - colluders - 2))
        blocks = (names[:cut], names[cut:])
    return make_terms(
        count,
        colluders=colluders,
        minimum_sites=draw(st.sampled_from([colluders + 2, colluders + 2, count])),
        bits=draw(st.integers(8, 24)),
        clip=draw(st.sampled_from([0.1, 1.0, 37.5])),
        parameters=draw(st.integers(1, 70)),
        words=draw(st.integers(0, 4)),
        dropout=draw(st.sampled_from(list(Dropout))),
        accept_differencing=True,
        blocks=blocks,
    )


class Driver:
    """Delivers, delays and loses messages as drawn."""

    def __init__(self, cohort: Cohort, data: st.DataObject) -> None:
        self.cohort = cohort
        self.draw = data.draw

    def shuffled(self, sites: tuple[str, ...], label: str) -> list[str]:
        """An order, and the first so many of it."""
        order = self.draw(st.permutations(sites), label=f"order {label}")
        lost = self.draw(
            st.sampled_from([0, 0, 1, 2, len(sites)] if label != "upload" else [0, 1, 2]), label=f"lost {label}"
        )
        return order[: max(0, len(order) - lost)]

    def upload(self, opened: ServerRound) -> None:
        """Leg 1."""
        inputs = self.cohort.inputs(opened.attempt.round_number)
        for site in self.shuffled(opened.attempt.cohort, "upload"):
            session = self.cohort.hospitals[site].session
            session.accept(relay(opened.masked_input_request()))
            opened.receive_masked_input(site, relay(session.masked_input(inputs[site]).frame))

    def agree(self, opened: ServerRound) -> None:
        """Leg 2."""
        requests = opened.agree_requests()
        for site in self.shuffled(opened.uploaded, "agree"):
            opened.receive_agreement(site, relay(self.cohort.hospitals[site].session.agree(relay(requests[site]))))

    def reveal(self, opened: ServerRound) -> None:
        """Leg 3, by those that agreed."""
        request = relay(opened.reveal_request())
        for site in self.shuffled(opened.uploaded, "reveal"):
            try:
                reply = self.cohort.hospitals[site].session.reveal(request)
            except PeerProtocolError:
                continue
            opened.receive_reveal(site, relay(reply))

    def attempt(self, opened: ServerRound) -> RoundSum | None:
        """One attempt: a sum, or None where it was given up."""
        self.upload(opened)
        if opened.verdict is Verdict.ABORT:
            request = relay(opened.abort_request())
            for site in self.shuffled(opened.attempt.cohort, "abort"):
                opened.receive_agreement(site, relay(self.cohort.hospitals[site].session.agree(request)))
            event("aborted" if opened.abort_certificate() else "abort not certain")
            return None
        self.agree(opened)
        if opened.needs_reveal:
            self.reveal(opened)
        return opened.finish()


def check_exact(cohort: Cohort, result: RoundSum) -> None:
    """Words and weight are exact; each coordinate of the mean is within the survivors' rounding."""
    inputs = cohort.inputs(result.attempt.round_number)
    chosen = [inputs[site] for site in result.survivors]
    codec = result.attempt.codec
    weights = np.array([codec.effective_weight(one.weight) for one in chosen])
    assert result.total.weight == weights.sum()
    expected = np.sum([one.words for one in chosen], axis=0, dtype=np.uint64)
    assert np.array_equal(result.total.words, expected)
    mean = sum(one.update.astype(np.float64) * weight for one, weight in zip(chosen, weights, strict=True))
    step = codec.clip / codec.limit * codec.weight_cap / weights.sum()
    assert np.all(np.abs(result.total.update - mean / weights.sum()) <= len(chosen) * step * 1.001 + 1e-5 * codec.clip)


@pytest.mark.slow
@given(studies(), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_round_ends_in_the_exact_sum_or_a_refusal(terms: Terms, data: st.DataObject) -> None:
    cohort = Cohort(terms)
    cohort.advertise()
    driver = Driver(cohort, data)
    certificate, attempt, round_number = None, 1, 1
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        for site in data.draw(st.sets(st.sampled_from(terms.sites), max_size=2), label="restarts"):
            cohort.hospitals[site].restart()
            cohort.advertise([site])
        try:
            opened = cohort.server.begin_round(
                round_number, cohort.model_bytes(round_number), attempt=attempt, abort=certificate
            )
            result = driver.attempt(opened)
        except PeerProtocolError as error:
            event(error.code)
            too_much_was_lost = {"secagg.too_few_shares", "secagg.too_few_agreements", "secagg.cohort_too_small"}
            assert error.code in too_much_was_lost  # noqa: PT017 - each refusal must be one that the loss explains
            result, certificate = None, None
        else:
            certificate = opened.abort_certificate()
        if result is not None:
            event(f"{result.legs} legs")
            check_exact(cohort, result)
        attempt = attempt + 1 if certificate else 1
        round_number += not certificate
        if not terms.has_round(round_number):
            return
