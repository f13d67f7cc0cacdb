"""Attacks on record privacy: rows that hide in others, shout, break numbers, or show in what is told besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from agent.core.errors import OperatorError
from agent.training.client import TrainingWorker
from agent.training.privacy import UNITS, whole_units
from agent.training.trainer import Trainer
from agent.trust.metrics import training_layout
from agent.trust.model import parse_model
from agent.trust.study import DataRequirement
from tests.unit.data.tables import requirement, table
from tests.unit.training.graphs import onnx_file
from tests.unit.training.studies import Case, plan_of, write_case
from tests.unit.training.test_privacy import TERMS, private_trainer, rows_of


def steps_of(trainer: Trainer, inputs: np.ndarray, targets: np.ndarray, norm: float = 1.0) -> list[int]:
    """The sum over all rows before noise, in units, as Python's whole numbers."""
    batch = trainer.batch(inputs, targets)
    packed = torch.cat((batch.inputs.reshape(len(inputs), -1), batch.targets.reshape(-1, 1)), dim=1)
    assert trainer._by_row is not None
    return [int(value) for value in trainer._by_row.bounded_sum(trainer.graph.vector, packed, norm).tolist()]


@given(st.integers(1, 300), st.floats(1e-6, 1e6), st.floats(1e-30, 1e30), st.integers(0, 1 << 32))
def test_a_row_whose_gradient_is_huge(length: int, norm: float, size: float, seed: int) -> None:
    """The bound holds for the whole numbers that are summed, computed without rounding."""
    gradient = np.random.default_rng(seed).normal(size=length).astype(np.float32) * np.float32(size)
    units = whole_units(torch.from_numpy(gradient).unsqueeze(0), norm)
    assert sum(int(value) ** 2 for value in units[0].tolist()) <= UNITS**2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_breaks_the_numbers(value: float) -> None:
    """Otherwise one row could turn the whole update into something that everybody sees."""
    gradients = torch.tensor([[value, 1.0], [0.5, 0.0], [0.0, 0.0]])
    units = whole_units(gradients, 1.0)
    assert not units[0].any()
    assert units[1, 0] > 0.49 * UNITS


def mixing() -> bytes:
    """A model that judges each row by the mean of all rows, which one row can move as far as it likes."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["mixed"]),
        helper.make_node("Gemm", ["mixed", "weight", "bias"], ["z"]),
    ]
    stored = {"weight": np.full((5, 1), 0.1, np.float32), "bias": np.zeros(1, np.float32)}
    return onnx_file(nodes, stored, row=(5,), output="z", opset=13)


def test_a_model_that_mixes_rows() -> None:
    """Each row runs through the model by itself, whatever the graph does: one row moves the sum by its bound."""
    trainer = private_trainer(mixing())
    inputs, targets = rows_of(20)
    loud = inputs.copy()
    loud[0] = 1e4
    before, after = steps_of(trainer, inputs, targets), steps_of(trainer, loud, targets)
    without = steps_of(trainer, inputs[1:], targets[1:])
    for other in (before, after):
        assert sum((a - b) ** 2 for a, b in zip(other, without, strict=True)) <= UNITS**2


def test_a_model_that_keeps_statistics_of_rows() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "spread"], ["y"]),
        helper.make_node("Gemm", ["y", "weight"], ["z"]),
    ]
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    stored = {"scale": ones, "shift": zeros, "mean": zeros, "spread": ones, "weight": np.ones((5, 1), np.float32)}
    model = parse_model(onnx_file(nodes, stored, row=(5,), output="z"))
    with pytest.raises(OperatorError) as refused:
        Trainer(model, plan_of(), record=TERMS)
    assert refused.value.code == "model.statistics_of_rows"


PRIVATE = {"epsilon": 10, "delta": 1e-5, "noise_multiplier": 1.0, "max_gradient_norm": 1.0}


def private_case(folder: Path, rows: int) -> Case:
    data = DataRequirement.model_validate(requirement().model_dump() | {"standardise": "none", "missing": "drop-row"})
    return write_case(folder, data=data, plan=plan_of(record_privacy=PRIVATE, steps=20), rows=table(rows=rows))


@pytest.mark.slow
def test_rows_that_show_in_counts_scores_or_weights(tmp_path: Path) -> None:
    """The shut-in worker trains, and tells nothing but the update."""
    case = private_case(tmp_path, rows=60)
    with TrainingWorker.start(case.study, case.model, case.dataset, device="cpu") as worker:
        start = worker.initial_parameters
        first, second = (worker.train(start, round_number=1) for _ in range(2))
        scores = worker.evaluate(start).metrics
    assert first.update.any()
    assert not np.array_equal(first.update, second.update)
    assert first.weight == case.study.secagg.weight_cap > 60
    assert set(first.metrics) == set(scores) == {word.name for word in training_layout(case.study).words}
    assert not any(first.metrics.values())
    assert not any(scores.values())
