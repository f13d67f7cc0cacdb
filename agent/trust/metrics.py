"""Metric words: what a hospital reports about a round, as small integers that can be summed under masks.

AUC is no sum, so a hospital never reports one: it reports histograms of scores, and the cohort's AUC comes from
their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.trust.study import FieldKind, Study

FRACTION_SCALE = 1 << 20
"""Steps in which a real-valued sum is counted."""
LOSS_CAP = 32.0
"""Greatest loss counted for one row, so that no single row moves a cohort's sum without bound."""

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class MetricWord:
    """One summed number.

    Args:
        name: What it counts, e.g. `evaluated`, `positive_17`.
        scale: Integer steps a unit; 1 for counts.
        bound: Greatest value (in units) that one hospital may report; larger ones are capped at it.
    """

    name: str
    scale: int
    bound: float


@dataclass(frozen=True, slots=True)
class MetricLayout:
    """Order and bounds of the metric words of one kind of round, a function of the study alone."""

    words: tuple[MetricWord, ...]

    def encode(self, values: Mapping[str, float]) -> Words:
        """Turn one hospital's values into words, each capped at its bound; absent names count as 0.

        Returns:
            Shape (len(words),), uint64.
        """
        clipped = (min(max(values.get(word.name, 0.0), 0.0), word.bound) for word in self.words)
        steps = (round(value * word.scale) for value, word in zip(clipped, self.words, strict=True))
        return np.fromiter(steps, dtype=np.uint64, count=len(self.words))

    def decode(self, sums: Words) -> dict[str, float]:
        """Turn the cohort's summed words, shape (len(words),), back into values."""
        return {word.name: int(step) / word.scale for word, step in zip(self.words, sums, strict=True)}


def training_layout(study: Study) -> MetricLayout:
    """Words of rounds 1..rounds + 1: how the model that was received does on the hospital's held-out rows."""
    rows = float(study.secagg.weight_cap)
    bins = study.plan.histogram_bins
    counts = ("trained", "evaluated", "correct", *(f"negative_{k}" for k in range(bins)))
    counts += tuple(f"positive_{k}" for k in range(bins))
    words = [MetricWord(name, 1, rows) for name in counts]
    words += [
        MetricWord("loss", FRACTION_SCALE, rows * LOSS_CAP),
        MetricWord("brier", FRACTION_SCALE, rows),
        MetricWord("clipped", 1, float(study.model.parameters)),
    ]
    return MetricLayout(tuple(words))


def moments_layout(study: Study) -> MetricLayout:
    """Words of round 0: how many training rows, and sums of each number field and its square, scaled into 0..1."""
    rows = float(study.secagg.weight_cap)
    words = [MetricWord("trained", 1, rows)]
    for spec in study.data.features:
        if spec.kind is FieldKind.NUMBER:
            words += [MetricWord(f"{kind}:{spec.name}", FRACTION_SCALE, rows) for kind in ("sum", "squares")]
    return MetricLayout(tuple(words))


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of one number field, in its own unit."""

    mean: float
    deviation: float


def moments_from_sums(study: Study, sums: Mapping[str, float]) -> dict[str, Moments]:
    """Federation-wide moments of every number field, from the summed words of round 0."""
    rows = max(sums["trained"], 1.0)
    result = {}
    for spec in study.data.features:
        if spec.minimum is None or spec.maximum is None or spec.kind is not FieldKind.NUMBER:
            continue
        span = spec.maximum - spec.minimum
        mean = sums[f"sum:{spec.name}"] / rows
        variance = max(sums[f"squares:{spec.name}"] / rows - mean * mean, 0.0)
        result[spec.name] = Moments(spec.minimum + span * mean, max(span * variance**0.5, 1e-6 * span))
    return result


@dataclass(frozen=True, slots=True)
class CohortMetrics:
    """A cohort's metrics of one model; NaN where the cohort's rows cannot say.

    Args:
        evaluated: Held-out rows of the whole cohort.
        loss: Mean loss a row. accuracy: at 0.5. brier: mean squared error of the probability.
        auc: Area under the ROC curve, exact up to ties within one histogram bin.
        calibration: Expected calibration error over ten equal bins of the score.
    """

    evaluated: int
    loss: float
    accuracy: float
    brier: float
    auc: float
    calibration: float


def cohort_metrics(values: Mapping[str, float], *, bins: int) -> CohortMetrics:
    """Compute a cohort's metrics from its summed words."""
    negative = np.array([values[f"negative_{k}"] for k in range(bins)])
    positive = np.array([values[f"positive_{k}"] for k in range(bins)])
    rows = values["evaluated"]
    per_row = (1.0 / rows) if rows else float("nan")
    return CohortMetrics(
        evaluated=int(rows),
        loss=values["loss"] * per_row,
        accuracy=values["correct"] * per_row,
        brier=values["brier"] * per_row,
        auc=histogram_auc(negative, positive),
        calibration=_calibration_error(negative, positive),
    )


def histogram_auc(negative: npt.NDArray[np.float64], positive: npt.NDArray[np.float64]) -> float:
    """AUC from score histograms: the chance that a positive row scores higher, ties (same bin) counting half.

    Args:
        negative: Shape (bins,), counts of negative rows by rising score.
        positive: The same for positive rows.
    """
    pairs = negative.sum() * positive.sum()
    if pairs == 0:
        return float("nan")
    below = np.concatenate(([0.0], np.cumsum(negative)[:-1]))
    return float((positive * (below + negative / 2)).sum() / pairs)


def _calibration_error(negative: npt.NDArray[np.float64], positive: npt.NDArray[np.float64]) -> float:
    total = (negative + positive).sum()
    if total == 0:
        return float("nan")
    centre = (np.arange(len(negative)) + 0.5) / len(negative)
    decile = np.minimum((centre * 10).astype(int), 9)
    gap = np.bincount(decile, weights=positive - (negative + positive) * centre, minlength=10)
    return float(np.abs(gap).sum() / total)
