"""Attacks on differential privacy: noise that is not there, sensitivity that rounding stretches, words that tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import OperatorError
from agent.secagg.accounting import ORDERS, skellam_divergence, spent_privacy
from agent.secagg.codec import Contribution, codec_for
from agent.secagg.noise import add_skellam, noise_for, rounded_sensitivity, skellam_masses
from agent.secagg.rules import agreement_threshold
from agent.secagg.terms import Dropout, NoiseTerms
from tests.simulators.cohort import Cohort, SeededRandomness, Silence, make_terms

NOISE = NoiseTerms(l2_clip=0.5, noise_multiplier=1.0, epsilon=10.0, delta=1e-5)


def test_noise_of_the_honest_survivors_alone_reaches_what_is_accounted() -> None:
    """Five hospitals, one vanished, one colludes and adds none: T - c parts are left, and they suffice."""
    terms = make_terms(5, parameters=4000, privacy=NOISE, dropout=Dropout.CONTINUE)
    cohort = Cohort(terms)
    cohort.advertise()
    zeros = {site: Contribution(np.zeros(4000, np.float32), 1, np.zeros(3, np.uint64)) for site in terms.sites}
    result = cohort.run_round(1, zeros, silence=Silence(upload=["site-004"]))
    codec = result.attempt.codec
    assert codec.noise is not None
    per_hospital = codec.noise.variance
    needed = (NOISE.noise_multiplier * codec.noise.sensitivity) ** 2
    assert per_hospital * (result.attempt.threshold - terms.colluders) == pytest.approx(needed)
    steps = result.total.update.astype(np.float64) * 4 * codec.limit / terms.clip
    assert np.var(steps) == pytest.approx(4 * per_hospital, rel=0.1)
    assert abs(steps.mean()) < 5 * math.sqrt(4 * per_hospital / 4000)


def test_a_failed_hospital_adds_its_noise_all_the_same() -> None:
    terms = make_terms(4, parameters=4000, privacy=NOISE)
    codec = codec_for(terms, round_number=1, cohort=4, threshold=3)
    assert codec.noise is not None
    nothing = codec.encode(None, key=SeededRandomness(1)(32), check_key=bytes(32))
    steps = codec.decode(nothing, survivors=1).update.astype(np.float64) * codec.limit / terms.clip
    assert np.var(steps) == pytest.approx(codec.noise.variance, rel=0.1)


def test_weights_metric_words_and_clip_counts_are_withheld() -> None:
    cohort = Cohort(make_terms(4, privacy=NOISE))
    cohort.advertise()
    for round_number in (0, 1, cohort.terms.rounds + 1):
        total = cohort.run_round(round_number, cohort.inputs(round_number)).total
        assert (total.weight, total.clipped) == (4, 0)
        assert not total.words.any()


@given(st.integers(1, 400), st.floats(1e-3, 2.0), st.integers(8, 16), st.integers(0))
def test_sensitivity_holds_after_rounding(length: int, l2_clip: float, bits: int, seed: int) -> None:
    """A vector made of halves is the worst for stochastic rounding; its integers still stay within the bound."""
    noise = noise_for(NoiseTerms(l2_clip, 1e-6, 1.0, 1e-5), length=length, scale=2.0 ** (bits - 1), honest=2)
    assert noise is not None
    update = np.random.default_rng(seed).choice([-1, 1], length).astype(np.float32) * np.float32(0.5 / 2 ** (bits - 1))
    integers = noise._round(update * np.float32(2.0 ** (bits - 1)), SeededRandomness(seed)(32))
    assert math.sqrt(float(np.dot(integers.astype(np.float64), integers))) <= noise.sensitivity


def test_a_huge_update_is_clipped_to_the_sensitivity() -> None:
    noise = noise_for(NoiseTerms(1.0, 1e-6, 1.0, 1e-5), length=300, scale=1000.0, honest=2)
    assert noise is not None
    integers = noise.integers(np.full(300, 9.0, np.float32), 1000.0, key=bytes(32))
    assert np.linalg.norm(integers) <= noise.sensitivity + 300
    assert np.linalg.norm(integers) == pytest.approx(1000.0, rel=0.05)


def test_rounded_sensitivity_is_that_of_kairouz_et_al() -> None:
    assert rounded_sensitivity(100.0, 0) == pytest.approx(100.0, rel=0.01)
    assert rounded_sensitivity(0.0, 400) == pytest.approx(math.sqrt(100 + 10), rel=1e-9)
    assert rounded_sensitivity(3.0, 1) <= 4.0


def test_masses_are_those_of_the_skellam_distribution() -> None:
    """e^-4 I_k(4), A&S table 9.11: e^-x I_0(x) and e^-x I_1(x) at x = 4."""
    masses = skellam_masses(4.0, 60)
    assert float(masses[0]) == pytest.approx(0.20700192122, abs=1e-10)
    assert float(masses[1]) == pytest.approx(0.17875083950, abs=1e-10)
    assert float(masses[0] + 2 * masses[1:].sum()) == pytest.approx(1.0, abs=1e-15)
    variance = 2 * sum(float(mass) * k * k for k, mass in enumerate(masses))
    assert variance == pytest.approx(4.0, abs=1e-9)


@pytest.mark.parametrize("variance", [0.05, 4.0, 1e4])
def test_drawn_noise_fits_its_masses(variance: float) -> None:
    count = 200_000
    drawn = np.zeros(count, np.int32)
    bound = math.ceil(12 * math.sqrt(variance)) + 1
    add_skellam(drawn, variance, bound, key=SeededRandomness(variance)(32))
    assert np.mean(drawn) == pytest.approx(0, abs=5 * math.sqrt(variance / count))
    assert np.var(drawn) == pytest.approx(variance, rel=0.03)
    masses = skellam_masses(variance, bound)
    for k in range(4):
        expected = float(masses[k])
        spread = 5 * math.sqrt(expected * (1 - expected) / count) + 1e-9
        assert np.mean(drawn == k) == pytest.approx(expected, abs=spread)
        assert np.mean(drawn == -k) == pytest.approx(expected, abs=spread)


@pytest.mark.parametrize("order", [2, 5, 17])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("variance", [4.0, 30.0])
def test_the_divergence_bound_lies_above_the_exact_divergence(order: int, shift: int, variance: float) -> None:
    bound = math.ceil(30 * math.sqrt(variance)) + 40
    half = skellam_masses(variance, bound)
    masses = np.concatenate([half[::-1], half[1:]])
    p, q = masses[shift:], masses[:-shift]
    exact = float(np.log(np.sum(p**order / q ** (order - 1)))) / (order - 1)
    claimed = skellam_divergence(order, l1=shift, l2=shift, variance=variance)
    assert exact <= claimed
    assert claimed < 4 * exact


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    quiet = make_terms(4, privacy=NOISE)
    loud = make_terms(4, privacy=NoiseTerms(0.5, 4.0, 10.0, 1e-5))
    costs = [spent_privacy(quiet, rounds=rounds).epsilon for rounds in (0, 1, 3, 5)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0
    assert spent_privacy(loud, rounds=5).epsilon < costs[-1] / 3


def test_one_round_costs_about_what_the_gaussian_of_the_same_multiplier_costs() -> None:
    spent = spent_privacy(make_terms(4, privacy=NoiseTerms(0.5, 1.0, 10.0, 1e-5)), rounds=1)
    # Balle and Wang 2018: the Gaussian mechanism with multiplier 1 and delta 1e-5 has epsilon 4.38; RDP adds some.
    assert 4.3 < spent.epsilon < 5.2
    assert max(ORDERS) >= 64


def test_a_study_without_noise_counts_as_unbounded() -> None:
    with pytest.raises(OperatorError) as raised:
        spent_privacy(make_terms(4), rounds=1)
    assert raised.value.code == "secagg.no_noise"


def test_noise_that_does_not_fit_the_integers_is_refused() -> None:
    terms = make_terms(4, clip=1e-3, bits=24, privacy=NoiseTerms(1e3, 10.0, 1.0, 1e-5))
    with pytest.raises(OperatorError) as raised:
        codec_for(terms, round_number=1, cohort=4, threshold=agreement_threshold(4, 1))
    assert raised.value.code == "secagg.noise_too_large"
