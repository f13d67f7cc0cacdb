"""Are federated models as good as pooled ones, and better than what a hospital can do alone? Over five seeds.

The boxes' own trainer does the training, without Flower in between: what travels is the same, and this is quicker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

from agent.training.trainer import Trainer
from agent.trust.model import parse_model
from agent.trust.study import Study
from tests.bench.table import Row, at_least, at_most
from tests.demo.baselines import Comparison, HospitalRows, compare, fit_baseline
from tests.demo.cohorts import COHORTS, Cohort
from tests.demo.scores import Scores, mean_scores, rank_auc
from tests.demo.scoring import onnx_predictor, read_rows
from tests.demo.summary import METHODS

SEEDS = (42, 43, 44, 45, 46)
ROUNDS = 20
PUBLISHED_FEDAVG = 0.748
"""Accuracy of FedAvg on heart's pooled test rows (Ogier du Terrail et al., 2022)."""
LEAST_GAIN = 0.035
MOST_GAP = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed's comparison.

    Args:
        comparison: Every hospital and all rows.
        rows: What was trained on.
        study: How.
    """

    comparison: Comparison
    rows: Mapping[str, HospitalRows]
    study: Study

    def mean(self, method: str) -> Scores:
        """Mean over the hospitals."""
        return mean_scores(scores.by(method) for scores in self.comparison.sites.values())

    @property
    def gain(self) -> float:
        """Mean AUC federated, less mean AUC alone."""
        return self.mean("federated").auc - self.mean("alone").auc

    @property
    def gap(self) -> float:
        """Mean AUC pooled, less mean AUC federated."""
        return self.mean("pooled").auc - self.mean("federated").auc


def rows() -> Iterator[Row]:
    """Heart, in two ways of standardising, then unseen hospitals, then stroke."""
    torch.set_num_threads(1)  # tiny matrices: more threads only get in each other's way
    heart = COHORTS["heart"]()
    yield from _heart_rows("heart", heart, [run_seed(heart, seed) for seed in SEEDS])
    published = [run_seed(heart, seed, standardise="local") for seed in SEEDS]
    worst = min(outcome.comparison.together.federated.accuracy for outcome in published)
    yield at_least("heart, standardised by centre: accuracy, all patients, worst seed", worst, "", PUBLISHED_FEDAVG)
    yield from _unseen_rows(heart)
    stroke = COHORTS["stroke"]()
    yield from _stroke_rows([run_seed(stroke, seed, split_seed=seed) for seed in SEEDS])


def run_seed(cohort: Cohort, seed: int, *, standardise: str | None = None, split_seed: int | None = None) -> Outcome:
    """Train the federation, and score all three ways on the same rows.

    Args:
        cohort: The data set.
        seed: Of the training.
        standardise: Replaces the study's way, if given.
        split_seed: Replaces the study's hold-out seed, if given.
    """
    study, model = make_study(cohort, seed, standardise=standardise, split_seed=split_seed)
    hospital_rows = read_rows(cohort, cohort.hospitals, study)
    trained = federate(study, model, hospital_rows)
    return Outcome(compare(hospital_rows, onnx_predictor(trained)), hospital_rows, study)


def make_study(
    cohort: Cohort, seed: int, *, standardise: str | None = None, split_seed: int | None = None
) -> tuple[Study, bytes]:
    """The cohort's study with other seeds."""
    changes = {"standardise": standardise, "holdout_seed": split_seed}
    data = cohort.data.model_copy(update={name: value for name, value in changes.items() if value is not None})
    model = cohort.model(cohort.data.width)
    study = cohort.study(cohort.hospitals, model, rounds=ROUNDS, now=datetime.now(UTC))
    return study.model_copy(update={"data": data, "plan": study.plan.model_copy(update={"seed": seed})}), model


def federate(study: Study, model: bytes, hospital_rows: Mapping[str, HospitalRows]) -> bytes:
    """FedAvg over the hospitals; returns the trained ONNX file."""
    parsed = parse_model(model)
    trainer = Trainer(parsed, study.plan)
    batches = [
        trainer.batch(item.train_x.astype(np.float32), item.train_y.astype(np.float32))
        for item in hospital_rows.values()
    ]
    weights = np.array([min(len(batch), study.secagg.weight_cap) for batch in batches], dtype=np.float32)
    vector = parsed.parameters.copy()  # torch wants to see a writable array
    for number in range(1, study.rounds + 1):
        updates = np.stack([trainer.train(vector, batch, round_number=number) for batch in batches])
        vector = vector + weights @ updates / weights.sum()
    return parsed.with_parameters(vector)


def _heart_rows(name: str, cohort: Cohort, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    worst = min(outcome.comparison.together.federated.accuracy for outcome in outcomes)
    yield at_least(f"{name}: accuracy, all patients, worst seed", worst, "", PUBLISHED_FEDAVG)
    for what, read in (("AUC", _auc), ("log-loss", _log_loss), ("accuracy", _accuracy)):
        yield from _compared_rows(
            f"{name}: {what}, all patients",
            what,
            [_by_method(outcome.comparison.together.by, read) for outcome in outcomes],
        )
    for hospital in cohort.hospitals:
        for what, read in (("AUC", _auc), ("accuracy", _accuracy)):
            values = [_by_method(outcome.comparison.sites[hospital.site].by, read) for outcome in outcomes]
            yield from _compared_rows(f"{name}: {what}, {hospital.name}", what, values)


def _stroke_rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    yield at_least("stroke: AUC gained over alone, worst seed", min(item.gain for item in outcomes), "", LEAST_GAIN)
    yield at_most("stroke: AUC short of pooled, worst seed", max(item.gap for item in outcomes), "", MOST_GAP)
    for what, read in (("AUC", _auc), ("log-loss", _log_loss), ("accuracy", _accuracy)):
        yield from _compared_rows(
            f"stroke: {what}, mean of hospitals", what, [_by_method(outcome.mean, read) for outcome in outcomes]
        )
    share = np.mean([_share_that_gains(outcome.comparison) for outcome in outcomes])
    yield Row("stroke: hospitals whose AUC gains", 100 * float(share), "%", better="higher")


def _unseen_rows(cohort: Cohort) -> Iterator[Row]:
    """A hospital that was never in training: the others' federation against the best of their own models."""
    study, model = make_study(cohort, SEEDS[0])
    everybody = read_rows(cohort, cohort.hospitals, study)
    for hospital in cohort.hospitals:
        unseen = everybody[hospital.site]
        others = {site: item for site, item in everybody.items() if site != hospital.site}
        inputs = np.concatenate([unseen.train_x, unseen.test_x])
        labels = np.concatenate([unseen.train_y, unseen.test_y])
        federated = rank_auc(onnx_predictor(federate(study, model, others))(inputs), labels)
        single = max(rank_auc(fit_baseline(item.train_x, item.train_y)(inputs), labels) for item in others.values())
        yield Row(
            f"heart: AUC in {hospital.name}, never in training",
            federated,
            "",
            None,
            single,
            "best single",
            better="higher",
        )


def _compared_rows(name: str, what: str, values: Sequence[Mapping[str, float]]) -> Iterator[Row]:
    """Means over the seeds: federated beside alone, and beside pooled."""
    alone, federated, pooled = (float(np.mean([value[method] for value in values])) for method in METHODS)
    better = "lower" if what == "log-loss" else "higher"
    yield Row(name, federated, "", None, alone, "alone", better=better)  # type: ignore[arg-type]
    yield Row(name, federated, "", None, pooled, "pooled", better=better)  # type: ignore[arg-type]


def _by_method(scores: Callable[[str], Scores], read: Callable[[Scores], float]) -> dict[str, float]:
    return {method: read(scores(method)) for method in METHODS}


def _share_that_gains(comparison: Comparison) -> float:
    pairs = [(scores.alone.auc, scores.federated.auc) for scores in comparison.sites.values()]
    return float(np.mean([federated > alone for alone, federated in pairs]))


def _auc(scores: Scores) -> float:
    return scores.auc


def _log_loss(scores: Scores) -> float:
    return scores.log_loss


def _accuracy(scores: Scores) -> float:
    return scores.accuracy
