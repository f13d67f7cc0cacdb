"""What the federation is compared with: each hospital alone, and everybody's records in one place.

Both are logistic regressions whose L2 penalty is chosen by five-fold cross-validation on training rows: the best that a
hospital can do by itself with this kind of model, not an under-trained opponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tests.demo.scores import Scores, score
from tests.demo.summary import Compared

Floats = npt.NDArray[np.float64]
FOLDS = 5
PENALTIES = np.logspace(-3, 2, 11)
"""Inverse strengths of the L2 penalty to choose from."""


@dataclass(frozen=True, slots=True)
class HospitalRows:
    """A hospital's rows as model inputs.

    Args:
        train_x: Shape (n, d). train_y: Shape (n,), 0 or 1.
        test_x: Shape (k, d), held out. test_y: Shape (k,).
    """

    train_x: Floats
    train_y: Floats
    test_x: Floats
    test_y: Floats


class Predictor(Protocol):
    """Anything that turns inputs into probabilities."""

    def __call__(self, inputs: Floats, /) -> Floats:
        """Shape (n, d) in, shape (n,) out."""
        ...


@dataclass(frozen=True, slots=True)
class BaseRate:
    """All that rows of one outcome can teach: how common it is (Laplace's rule of succession)."""

    rate: float

    def __call__(self, inputs: Floats, /) -> Floats:
        """The same for everybody."""
        return np.full(len(inputs), self.rate)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The three ways, hospital by hospital and over all rows.

    Args:
        sites: By site.
        together: All held-out rows; "alone" scores each by its own hospital's model.
        notes: Site -> what a reader must know about its own model.
    """

    sites: Mapping[str, Compared]
    together: Compared
    notes: Mapping[str, str]


def fit_baseline(inputs: Floats, labels: Floats) -> Predictor:
    """Fit a cross-validated logistic regression; with fewer than two rows of an outcome, the base rate.

    Args:
        inputs: Shape (n, d).
        labels: Shape (n,), 0 or 1.
    """
    rarer = int(min(labels.sum(), len(labels) - labels.sum()))
    if rarer < 2:
        return BaseRate((float(labels.sum()) + 1) / (len(labels) + 2))
    # Loaded here: it takes a second that the start of the demonstration need not wait for.
    from sklearn.linear_model import LogisticRegressionCV  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold  # noqa: PLC0415

    folds = StratifiedKFold(min(FOLDS, rarer), shuffle=True, random_state=0)
    model = LogisticRegressionCV(
        Cs=PENALTIES,
        cv=folds,
        scoring="neg_log_loss",
        max_iter=200,
        solver="newton-cholesky",
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    model.fit(inputs, labels)
    return lambda rows: np.asarray(model.predict_proba(rows)[:, 1])


def compare(rows: Mapping[str, HospitalRows], federated: Predictor) -> Comparison:
    """Score the three ways on the held-out rows.

    Args:
        rows: Site -> its rows.
        federated: The federation's model.
    """
    pooled = fit_baseline(_stack(rows, "train_x"), _stack(rows, "train_y"))
    alone = {site: fit_baseline(item.train_x, item.train_y) for site, item in rows.items()}
    chances = {
        site: tuple(model(item.test_x) for model in (alone[site], federated, pooled)) for site, item in rows.items()
    }
    sites = {site: _compared(chances[site], item.test_y) for site, item in rows.items()}
    together = tuple(np.concatenate([chances[site][way] for site in rows]) for way in range(3))
    notes = {site: _note(rows[site]) for site, model in alone.items() if isinstance(model, BaseRate)}
    return Comparison(sites, _compared(together, _stack(rows, "test_y")), notes)


def _stack(rows: Mapping[str, HospitalRows], name: str) -> Floats:
    return np.concatenate([getattr(item, name) for item in rows.values()])


def _compared(chances: Sequence[Floats], labels: Floats) -> Compared:
    scores: list[Scores] = [score(chance, labels) for chance in chances]
    return Compared(*scores)


def _note(rows: HospitalRows) -> str:
    positives, total = int(rows.train_y.sum()), len(rows.train_y)
    return (
        f"{positives} of {total} training patients are positive, too few of the other outcome to cross-validate "
        "a model; alone, it states its base rate."
    )
