"""Every model, from every exporter, in and out again: weights bit for bit, outputs as onnxruntime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from agent.training.graph import TorchGraph
from agent.trust.model import ModelFile, parse_model
from tests.unit.training.graphs import onnx_file
from tests.unit.training.zoo import EXPORTERS, ZOO, exported, module_of, rows_of

CASES = [
    pytest.param(name, exporter, marks=[pytest.mark.slow] if exporter == "dynamo" or name == "resnet18" else [])
    for name in ZOO
    for exporter in EXPORTERS
]


def onnx_outputs(data: bytes, rows: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {session.get_inputs()[0].name: rows}))


def _moved(model: ModelFile) -> np.ndarray[Any, Any]:
    """Other weights, as training would leave them (variances stay positive)."""
    noise = np.random.default_rng(3).normal(0, 0.02, len(model.parameters)).astype(np.float32)
    moved = model.parameters + noise
    for slot in model.slots:
        if slot.statistic:
            moved[slot.range] = np.abs(moved[slot.range])
    return moved


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_weights_return_bit_for_bit(name: str, exporter: str) -> None:
    model = parse_model(exported(name, exporter))
    weights = _moved(model)
    weights[:3] = np.array([np.float32(-0.0), np.finfo(np.float32).tiny / 2, np.float32(1) / 3])
    written = model.with_parameters(weights)
    again = parse_model(written)
    assert again.parameters.tobytes() == weights.tobytes()
    assert again.slots == model.slots
    assert again.with_parameters(again.parameters) == written


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_outputs_are_onnxruntimes(name: str, exporter: str) -> None:
    model = parse_model(exported(name, exporter))
    weights, rows = _moved(model), rows_of(name, 3)
    expected = onnx_outputs(model.with_parameters(weights), rows.numpy())[0]
    graph = TorchGraph(model)
    graph.load(weights)
    with torch.no_grad():
        outputs = graph.run(rows).numpy()
    assert outputs == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ZOO))
def test_an_export_holds_the_models_whole_state_under_its_own_names(name: str) -> None:
    model = parse_model(exported(name, "dynamo"))
    state = module_of(name).state_dict()
    assert len(model.parameters) == ZOO[name].parameters
    for slot in model.slots:
        assert model.parameters[slot.range].tobytes() == state[slot.name].numpy().tobytes()
        assert slot.statistic == ("running" in slot.name)


def test_equal_tensors_that_an_exporter_merged_are_given_back_to_each_use() -> None:
    # A fresh bias and a fresh running mean are both zeros: the exporter stores them once.
    model = parse_model(exported("mlp-norm-dropout", "torchscript"))
    assert len(model.parameters) == ZOO["mlp-norm-dropout"].parameters
    assert sum(slot.statistic for slot in model.slots) == 2


@pytest.mark.parametrize(("second", "vectors"), [("w2", 2), ("w1", 1)])
def test_a_bias_is_given_back_to_each_layer_but_stays_with_a_layer_used_twice(second: str, vectors: int) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w1", "b"], ["h"]), helper.make_node("Gemm", ["h", second, "b"], ["y"])]
    weights = {name: np.eye(3, dtype=np.float32) for name in {"w1", second}}
    model = parse_model(onnx_file(nodes, {**weights, "b": np.zeros(3, np.float32)}, row=[3], output="y"))
    assert sum(slot.shape == (3,) for slot in model.slots) == vectors
    assert len(parse_model(model.with_parameters(model.parameters)).slots) == len(model.slots)


def test_a_training_mode_export_leaves_in_inference_mode() -> None:
    model = parse_model(exported("mlp-norm-dropout", "torchscript-training"))
    written = model.with_parameters(model.parameters)
    rows = rows_of("mlp-norm-dropout", 8)
    first, second = (onnx_outputs(written, rows.numpy())[0] for _ in range(2))
    with torch.no_grad():
        expected = TorchGraph(model).run(rows).numpy()
    assert first.tobytes() == second.tobytes()
    assert first == pytest.approx(expected, abs=1e-5)
