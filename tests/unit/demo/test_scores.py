"""Scores agree with scikit-learn and admit what they cannot know."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from tests.demo.scores import Scores, mean_scores, score


def test_scores_are_those_of_scikit_learn_ties_included() -> None:
    random = np.random.default_rng(7)
    labels = random.integers(0, 2, 200)
    chance = np.round(np.clip(0.3 * labels + random.random(200) * 0.7, 0.01, 0.99), 1)
    found = score(chance, labels)
    assert found.auc == pytest.approx(roc_auc_score(labels, chance))
    assert found.log_loss == pytest.approx(log_loss(labels, np.clip(chance, 1e-6, 1 - 1e-6)))
    assert found.brier == pytest.approx(brier_score_loss(labels, chance), abs=1e-5)
    assert found.accuracy == pytest.approx(((chance > 0.5) == labels).mean())


def test_one_outcome_has_no_auc_and_does_not_spoil_the_mean() -> None:
    sure = score([1.0, 0.0], [1, 1])
    assert math.isnan(sure.auc)
    assert math.isfinite(sure.log_loss)
    mean = mean_scores([sure, Scores(0.8, 0.4, 0.7, 0.1)])
    assert mean.auc == 0.8
    assert mean.accuracy == pytest.approx(0.6)
    assert sure.as_json()["auc"] is None
