"""Shared-out integer noise: each hospital adds a part, the honest cohort's parts together give differential privacy.

Source: N. Agarwal, P. Kairouz, Z. Liu, "The Skellam mechanism for differentially private federated learning", NeurIPS
2021 (noise, closed under sums); P. Kairouz, Z. Liu, T. Steinke, "The distributed discrete Gaussian mechanism", ICML
2021 (conditional rounding, so that the sensitivity holds after rounding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from agent.core.errors import OperatorError
from agent.secagg.masking import CHUNK_WORDS, KeyStream
from agent.secagg.terms import NoiseTerms
from agent.secagg.transcript import expand_key

TAIL_DEVIATIONS = 12
"""Noise of one hospital is bounded at so many standard deviations: beyond lies less than 2^-100."""
MAX_NOISE = 1 << 24
"""Greatest noise of one hospital: a table of its tail stays small, a lane of 100 hospitals below 33 bits."""
_ROUNDING_ATTEMPTS = 16
_ROUNDING_SURPRISE = 0.5  # -log of the chance beta that one rounding exceeds its bound

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of one hospital in one round.

    Args:
        l2_steps: Euclidean clip of an update, in quantisation steps.
        sensitivity: Euclidean bound on the integers of one hospital after rounding.
        variance: Of this hospital's part.
        bound: Greatest magnitude of this hospital's noise.
    """

    l2_steps: float
    sensitivity: float
    variance: float
    bound: int

    @property
    def layout(self) -> tuple[int, ...]:
        """What fixes the noise, in millionths, for the round's context."""
        return (round(self.sensitivity * 1e6), round(self.variance * 1e6))

    def integers(self, update: Floats, scale: float, *, key: bytes) -> Integers:
        """Clip `update` (finite, shape (m,)) to the L2 bound, round it within the sensitivity, add noise.

        Args:
            update: Bounded coordinate by coordinate already.
            scale: Integer steps a unit.
            key: 32 fresh uniform bytes.

        Returns:
            Shape (m,), int32.
        """
        norm = float(np.linalg.norm(update.astype(np.float64))) * scale
        shrink = min(1.0, self.l2_steps / norm) if norm else 1.0
        integers = self._round(update * np.float32(scale * shrink), key)
        add_skellam(integers, self.variance, self.bound, key=expand_key(key, "noise"))
        return integers

    def _round(self, steps: Floats, key: bytes) -> Integers:
        limit = self.sensitivity**2
        for attempt in range(_ROUNDING_ATTEMPTS):
            integers = _round_stochastically(steps, expand_key(key, "rounding", attempt))
            if _squared_norm(integers) <= limit:
                return integers
        # Towards zero never lengthens a vector, so the bound holds by itself.
        return np.trunc(steps).astype(np.int32)


def noise_for(terms: NoiseTerms | None, *, length: int, scale: float, honest: int) -> Noise | None:
    """The noise of a round, or None where the study has none.

    Args:
        terms: The study's.
        length: m; 0 where the round has no vector.
        scale: Integer steps a unit of the update.
        honest: Hospitals whose noise can be counted on: T - c.

    Raises:
        OperatorError: The noise does not fit the integers.
    """
    if terms is None:
        return None
    l2_steps = terms.l2_clip * scale
    sensitivity = rounded_sensitivity(l2_steps, length)
    variance = (terms.noise_multiplier * sensitivity) ** 2 / honest
    bound = math.ceil(TAIL_DEVIATIONS * math.sqrt(variance)) + 1
    if bound > MAX_NOISE:
        raise OperatorError(
            "secagg.noise_too_large",
            "The study's noise does not fit the integers that are summed.",
            next_step="Ask the study's requester for fewer quantisation bits, or a smaller clip on the whole update.",
            bound=bound,
            limit=MAX_NOISE,
        )
    return Noise(l2_steps, sensitivity, variance, bound)


def rounded_sensitivity(l2_steps: float, length: int) -> float:
    """L2 bound after stochastic rounding of `length` coordinates clipped to `l2_steps`: Kairouz et al., theorem 1."""
    worst = (l2_steps + math.sqrt(length)) ** 2
    likely = l2_steps**2 + length / 4 + math.sqrt(2 * _ROUNDING_SURPRISE) * (l2_steps + math.sqrt(length) / 2)
    return math.sqrt(min(worst, likely))


def add_skellam(target: Integers, variance: float, bound: int, *, key: bytes) -> None:
    """Add independent Skellam noise of mean 0 to each element of `target`, in place.

    The difference of two Poisson variables of mean variance / 2, drawn by inversion: 63 bits of a key stream choose the
    magnitude from a table of tail probabilities, one chooses the sign. Each draw is within 2^-45 of the exact
    distribution in total variation.

    Args:
        target: Shape (m,), int32.
        variance: Of each draw.
        bound: Magnitudes beyond it (chance below 2^-100) count as it.
        key: 32 fresh uniform bytes.
    """
    tails = _tail_table(variance, bound)
    stream = KeyStream(key)
    for low in range(0, len(target), CHUNK_WORDS):
        part = target[low : low + CHUNK_WORDS]
        words = stream.next_words(len(part))
        sign = 1 - 2 * (words & np.uint64(1)).astype(np.int32)
        # tails falls; the magnitude is the number of thresholds above the draw.
        magnitude = len(tails) - np.searchsorted(tails[::-1], words >> np.uint64(1), side="right")
        part += sign * magnitude.astype(np.int32)


@lru_cache(maxsize=4)
def _tail_table(variance: float, bound: int) -> npt.NDArray[np.uint64]:
    """`table[k]` = P(|X| > k) in units of 2^-63, for k = 0..bound - 1."""
    masses = skellam_masses(variance, bound)
    tails = 2 * np.cumsum(masses[::-1])[::-1][1:]
    return np.asarray(np.floor(tails * np.longdouble(2.0**63)), np.uint64)


def skellam_masses(variance: float, bound: int) -> npt.NDArray[np.longdouble]:
    """P(X = k) for k = 0..bound: e^-v I_k(v), by Miller's backward recurrence (accurate in the far tail)."""
    start = bound + 32 + math.ceil(3 * math.sqrt(variance))
    ratios = np.zeros(start + 1, np.longdouble)
    spread = np.longdouble(variance)
    ratio = spread / np.longdouble(start + math.hypot(start, variance))
    for order in range(start, 0, -1):
        # I_{k-1} - I_{k+1} = (2k / v) I_k, as a recurrence for r_k = I_k / I_{k-1}.
        ratio = 1 / (2 * order / spread + ratio)
        ratios[order] = ratio
    masses = np.cumprod(np.concatenate((np.ones(1, np.longdouble), ratios[1 : bound + 1])))
    return np.asarray(masses / (masses[0] + 2 * masses[1:].sum()), np.longdouble)


def _round_stochastically(steps: Floats, key: bytes) -> Integers:
    """floor(v + r), r uniform in 0..1 with 24 bits; shape (m,), int32."""
    out = np.empty(len(steps), np.int32)
    stream = KeyStream(key)
    for low in range(0, len(steps), CHUNK_WORDS):
        part = steps[low : low + CHUNK_WORDS].astype(np.float64)
        dither = stream.next_words(-(-len(part) // 2)).view(np.uint32)[: len(part)]
        out[low : low + CHUNK_WORDS] = np.floor(part + dither * 2.0**-32)
    return out


def _squared_norm(integers: Integers) -> float:
    real = integers.astype(np.float64)
    return float(real @ real)
