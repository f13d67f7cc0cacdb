"""What the shared-out noise is worth: the (epsilon, delta) that a study's releases have cost.

Source: Agarwal, Kairouz, Liu, "The Skellam mechanism", NeurIPS 2021, theorem 3.5 (Renyi divergence of the multivariate
mechanism); composition and conversion by Google's dp-accounting, the optional extra `privacy`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.core.errors import OperatorError
from agent.secagg.codec import codec_for
from agent.secagg.rules import agreement_threshold
from agent.secagg.terms import Terms

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Integer orders: the bound is stated for them."""
SAMPLING_ERROR = 2.0**-45
"""Total variation of one draw from the exact distribution; see `noise.add_skellam`."""


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """A hospital-level guarantee, for adding or removing one hospital's whole data set.

    Args:
        epsilon: Achieved over all rounds.
        delta: The study's; the error of drawing noise is taken out of it first.
        rounds: Releases counted.
    """

    epsilon: float
    delta: float
    rounds: int


def spent_privacy(terms: Terms, *, rounds: int) -> PrivacySpent:
    """Account the training rounds released so far; other rounds release nothing under noise.

    The honest cohort's noise has the same variance for every cohort that may be summed, so cohorts need not be known.

    Args:
        terms: The study's, with noise.
        rounds: Training rounds released.

    Raises:
        OperatorError: The study has no noise, or the extra `privacy` is not installed.
    """
    if terms.privacy is None:
        raise OperatorError(
            "secagg.no_noise", "The study adds no noise, so its cost is unbounded.", next_step="Count it as unbounded."
        )
    if not rounds:
        return PrivacySpent(0.0, terms.privacy.delta, 0)
    delta = terms.privacy.delta - rounds * terms.parameters * len(terms.sites) * SAMPLING_ERROR
    if delta <= 0:
        return PrivacySpent(math.inf, terms.privacy.delta, rounds)
    sensitivity, variance = _released_noise(terms)
    l1 = min(sensitivity**2, sensitivity * math.sqrt(terms.parameters))
    costs = [rounds * skellam_divergence(order, l1=l1, l2=sensitivity, variance=variance) for order in ORDERS]
    return PrivacySpent(_convert(costs, delta), terms.privacy.delta, rounds)


def skellam_divergence(order: int, *, l1: float, l2: float, variance: float) -> float:
    """Renyi divergence of an integer order between sums with and without one hospital, under Skellam noise.

    Args:
        order: alpha, at least 2.
        l1: Sensitivity in the L1 norm.
        l2: Sensitivity in the L2 norm.
        variance: Of the noise in each coordinate.
    """
    gaussian = order * l2**2 / (2 * variance)
    excess = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + min(excess, 3 * l1 / (2 * variance))


def _released_noise(terms: Terms) -> tuple[float, float]:
    """Sensitivity of a sum, and variance of the noise that honest hospitals add to it together."""
    size = len(terms.sites)
    threshold = agreement_threshold(size, terms.colluders)
    noise = codec_for(terms, round_number=1, cohort=size, threshold=threshold).noise
    if noise is None:
        raise AssertionError("terms with privacy have noise")
    return noise.sensitivity, noise.variance * (threshold - terms.colluders)


def _convert(costs: list[float], delta: float) -> float:
    try:
        from dp_accounting.rdp import compute_epsilon  # noqa: PLC0415 - optional library
    except ImportError as error:
        raise OperatorError(
            "secagg.accounting_missing",
            "The library that accounts for noise is not installed.",
            next_step="Install the extra `privacy` of this package.",
        ) from error
    epsilon, _ = compute_epsilon(list(ORDERS), costs, delta)
    return float(epsilon)
