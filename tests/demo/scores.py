"""How good a model is on rows that it never saw: AUC and log-loss first, accuracy and Brier score beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
PROBABILITY_FLOOR = 1e-6
"""Probabilities are kept this far from 0 and 1, so that one sure and wrong answer costs 13.8 and not infinity."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on one set of rows.

    Args:
        auc: Area under the ROC curve; NaN where the rows hold one outcome only.
        log_loss: Mean negative log-likelihood a row, in nats.
        accuracy: Share of rows on the right side of 0.5.
        brier: Mean squared error of the probability.
    """

    auc: float
    log_loss: float
    accuracy: float
    brier: float

    def as_json(self) -> dict[str, float | None]:
        """By name; None for NaN."""
        values = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


def score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> Scores:
    """Score probabilities, shape (rows,), against labels of 0 and 1, shape (rows,)."""
    chance = np.clip(np.asarray(probabilities, dtype=np.float64), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    truth = np.asarray(labels, dtype=np.float64)
    likelihood = np.where(truth > 0.5, chance, 1 - chance)
    return Scores(
        auc=rank_auc(chance, truth),
        log_loss=float(-np.log(likelihood).mean()),
        accuracy=float(((chance > 0.5) == (truth > 0.5)).mean()),
        brier=float(((chance - truth) ** 2).mean()),
    )


def rank_auc(chance: Floats, truth: Floats) -> float:
    """AUC as the chance that a positive row outranks a negative one, ties counting half (Mann-Whitney U)."""
    negative, positive = np.sort(chance[truth < 0.5]), chance[truth > 0.5]
    if not len(negative) or not len(positive):
        return math.nan
    below = np.searchsorted(negative, positive, side="left") + np.searchsorted(negative, positive, side="right")
    return float(below.sum() / 2 / len(negative) / len(positive))


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """Plain mean over centres, each counting the same; an AUC that a centre cannot have is left out of its mean."""
    table = np.array([[item.auc, item.log_loss, item.accuracy, item.brier] for item in scores])
    aucs = table[~np.isnan(table[:, 0]), 0]
    auc = float(aucs.mean()) if len(aucs) else math.nan
    return Scores(auc, *(float(value) for value in table[:, 1:].mean(axis=0)))
