"""Studies on small tables, complete with model file and data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.data.catalog import Dataset
from agent.trust.model import parse_model
from agent.trust.study import DataRequirement, ModelSpec, SecureAggregationTerms, Study, TrainingPlan
from tests.unit.data.tables import dataset, requirement, table
from tests.unit.training.graphs import logistic

WIDTH = 5


@dataclass(frozen=True, slots=True)
class Case:
    """What a hospital needs to take part."""

    study: Study
    model: Path
    dataset: Dataset


def plan_of(**changes: object) -> TrainingPlan:
    """A plan that learns quickly, with `changes`."""
    values: dict[str, object] = {"learning_rate": 0.1, "batch_size": 8, "steps": 30}
    if "epochs" in changes:
        values.pop("steps")
    return TrainingPlan.model_validate(values | changes)


def study_of(
    model: bytes,
    *,
    data: DataRequirement | None = None,
    plan: TrainingPlan | None = None,
    terms: SecureAggregationTerms | None = None,
) -> Study:
    """A study of one hospital."""
    return Study(
        id="practice",
        title="Practice",
        purpose="To be tested.",
        requester="Nobody",
        sites=("north",),
        rounds=5,
        expires=datetime(2100, 1, 1, tzinfo=UTC),
        model=ModelSpec(
            digest=hashlib.sha256(model).hexdigest(),
            size_bytes=len(model),
            parameters=len(parse_model(model).parameters),
        ),
        data=data or requirement(),
        plan=plan or plan_of(),
        secagg=terms or SecureAggregationTerms(),
    )


def write_case(
    folder: Path,
    *,
    model: bytes | None = None,
    rows: bytes | None = None,
    data: DataRequirement | None = None,
    plan: TrainingPlan | None = None,
    terms: SecureAggregationTerms | None = None,
) -> Case:
    """Write a model and a table into `folder`."""
    model = logistic(WIDTH) if model is None else model
    (folder / "model.onnx").write_bytes(model)
    (folder / "ward-3.csv").write_bytes(table(rows=120) if rows is None else rows)
    study = study_of(model, data=data, plan=plan, terms=terms)
    return Case(study, folder / "model.onnx", dataset(source=folder / "ward-3.csv"))
