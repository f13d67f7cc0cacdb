"""What noise is worth: the (epsilon, delta) that a study's releases have cost, for a hospital or for a record.

Each release costs a curve: its Renyi divergence at every order of `ORDERS`. Curves of releases add up, also of ones
that were chosen after seeing earlier ones; epsilons do not (Mironov, "Renyi differential privacy", 2017, prop. 1).

Source: Agarwal, Kairouz, Liu, "The Skellam mechanism", NeurIPS 2021, theorem 3.5 (Renyi divergence of the multivariate
mechanism); Mironov, Talwar, Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019, section 3.3
(integer orders); Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", arXiv 2004.00010v4,
proposition 12 (from a curve to epsilon). The tests hold all of it against Google's dp-accounting, which is not loaded
here: it would take an idle agent half as much memory again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agent.core.errors import OperatorError
from agent.secagg.codec import codec_for
from agent.secagg.rules import agreement_threshold
from agent.secagg.terms import RecordTerms, Terms

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Integer orders: the bound is stated for them."""
SAMPLING_ERROR = 2.0**-45
"""Total variation of one draw from the exact distribution; see `noise.add_skellam`."""


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """A guarantee for adding or removing one hospital's whole data set, or for one record.

    Args:
        epsilon: Achieved over all rounds.
        delta: The study's; the error of drawing noise is taken out of it first.
        rounds: Releases counted.
    """

    epsilon: float
    delta: float
    rounds: int


@dataclass(frozen=True, slots=True)
class ReleaseCost:
    """What one training round costs.

    Args:
        curve: Shape (len(ORDERS),), Renyi divergence at each order.
        slack: What drawing noise inexactly takes out of delta.
    """

    curve: tuple[float, ...]
    slack: float = 0.0


def spent_privacy(terms: Terms, *, rounds: int) -> PrivacySpent:
    """Account the training rounds released so far, for a hospital; other rounds release nothing under noise.

    The honest cohort's noise has the same variance for every cohort that may be summed, so cohorts need not be known.

    Args:
        terms: The study's, with noise.
        rounds: Training rounds released.

    Raises:
        OperatorError: The study has no noise.
    """
    if terms.privacy is None:
        raise OperatorError(
            "secagg.no_noise", "The study adds no noise, so its cost is unbounded.", next_step="Count it as unbounded."
        )
    return _spent(hospital_cost(terms), terms.privacy.delta, rounds)


def spent_record_privacy(terms: RecordTerms, *, rounds: int) -> PrivacySpent:
    """Account the training rounds released so far, for one record of one hospital.

    Args:
        terms: The study's.
        rounds: Training rounds released.
    """
    return _spent(record_cost(terms), terms.delta, rounds)


def hospital_cost(terms: Terms) -> ReleaseCost:
    """What one training round costs a hospital, under the cohort's shared-out noise.

    Args:
        terms: The study's, with noise.
    """
    sensitivity, variance = _released_noise(terms)
    l1 = min(sensitivity**2, sensitivity * math.sqrt(terms.parameters))
    curve = tuple(skellam_divergence(order, l1=l1, l2=sensitivity, variance=variance) for order in ORDERS)
    return ReleaseCost(curve, terms.parameters * len(terms.sites) * SAMPLING_ERROR)


def record_cost(terms: RecordTerms) -> ReleaseCost:
    """What one training round costs a record: so many steps of the sampled Gaussian mechanism."""
    return ReleaseCost(
        tuple(
            terms.steps * sampled_gaussian_divergence(order, rate=terms.rate, multiplier=terms.noise_multiplier)
            for order in ORDERS
        )
    )


def compute_epsilon(curve: Sequence[float], delta: float) -> float:
    """Turn a curve, shape (len(ORDERS),), into epsilon at `delta`; infinite where nothing of delta is left.

    Raises:
        ValueError: The curve has another length.
    """
    if not any(curve):
        return 0.0
    if delta <= 0 or not all(map(math.isfinite, curve)):
        return math.inf
    bounds = (_bound_epsilon(order, value, delta) for order, value in zip(ORDERS, curve, strict=True))
    return max(0.0, min(bounds))


def skellam_divergence(order: int, *, l1: float, l2: float, variance: float) -> float:
    """Renyi divergence of an integer order between sums with and without one hospital, under Skellam noise.

    Args:
        order: alpha, at least 2.
        l1: Sensitivity in the L1 norm.
        l2: Sensitivity in the L2 norm.
        variance: Of the noise in each coordinate.
    """
    if not (variance**2):
        return math.inf  # too little noise for a float to hold bounds nothing
    gaussian = order * l2**2 / (2 * variance)
    excess = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + min(excess, 3 * l1 / (2 * variance))


def sampled_gaussian_divergence(order: int, *, rate: float, multiplier: float) -> float:
    """Renyi divergence of an integer order of one step that takes each record by chance and adds Gaussian noise.

    Args:
        order: alpha, at least 2.
        rate: q, the chance of each record, 0 < q <= 1.
        multiplier: sigma, noise over the bound on one record.
    """
    if not (multiplier**2):
        return math.inf
    if rate == 1:
        return order / (2 * multiplier**2)
    logs = [
        _log_binomial(order, k)
        + (order - k) * math.log1p(-rate)
        + k * math.log(rate)
        + k * (k - 1) / (2 * multiplier**2)
        for k in range(order + 1)
    ]
    top = max(logs)
    if math.isinf(top):
        return top
    return max(0.0, (top + math.log(math.fsum(math.exp(item - top) for item in logs))) / (order - 1))


def _spent(cost: ReleaseCost, delta: float, rounds: int) -> PrivacySpent:
    epsilon = compute_epsilon([rounds * value for value in cost.curve], delta - rounds * cost.slack)
    return PrivacySpent(epsilon, delta, rounds)


def _bound_epsilon(order: int, divergence: float, delta: float) -> float:
    """Epsilon as far as one order tells."""
    if delta**2 + math.expm1(-divergence) > 0:
        return 0.0  # delta bounds the total variation by itself: Bretagnolle, Huber, 1978, TV <= sqrt(1 - exp(-KL))
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _released_noise(terms: Terms) -> tuple[float, float]:
    """Sensitivity of a sum, and variance of the noise that honest hospitals add to it together."""
    size = len(terms.sites)
    threshold = agreement_threshold(size, terms.colluders)
    noise = codec_for(terms, round_number=1, cohort=size, threshold=threshold).noise
    if noise is None:
        raise AssertionError("terms with privacy have noise")
    return noise.sensitivity, noise.variance * (threshold - terms.colluders)
