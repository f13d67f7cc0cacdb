"""Small ONNX files, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def onnx_file(
    nodes: Sequence[NodeProto],
    stored: dict[str, Array],
    *,
    row: Sequence[int | str],
    output: str,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> bytes:
    """A file with one input `x` of rows and one output.

    Args:
        nodes: The graph.
        stored: Initialisers.
        row: Shape of a row.
        output: Name of the output.
        opset: Version of the operators.
        kind: Element type of the output.
    """
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *row])],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def logistic(width: int, *, ending: str = "Sigmoid", columns: int = 1) -> bytes:
    """A linear model, zero at first, with some last activation (or `Identity`)."""
    nodes = [helper.make_node("Gemm", ["x", "weight", "bias"], ["z"]), helper.make_node(ending, ["z"], ["p"])]
    stored: dict[str, Array] = {
        "weight": np.zeros((width, columns), np.float32),
        "bias": np.zeros(columns, np.float32),
    }
    return onnx_file(nodes, stored, row=[width], output="p")


def wide(parameters: int, *, width: int) -> bytes:
    """A two-layer model of exactly `parameters` float parameters; they must suit `width` inputs."""
    hidden, rest = divmod(parameters - 1, width + 2)
    dice = np.random.default_rng(0)
    stored: dict[str, Array] = {
        "w1": dice.normal(0, 0.1, (width, hidden)).astype(np.float32),
        "b1": np.zeros(hidden, np.float32),
        "w2": dice.normal(0, 0.1, (hidden, 1)).astype(np.float32),
        "b2": np.zeros(1, np.float32),
        "spare": np.zeros(rest, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("ReduceSum", ["spare"], ["s"], keepdims=0),
        helper.make_node("Add", ["z", "s"], ["y"]),
    ]
    return onnx_file(nodes, stored, row=[width], output="y")


def laden(parameters: int, *, width: int) -> bytes:
    """A linear model that carries many parameters and computes little with them."""
    stored: dict[str, Array] = {
        "weight": np.zeros((width, 1), np.float32),
        "bias": np.zeros(1, np.float32),
        "load": np.zeros(parameters - width - 1, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["z"]),
        helper.make_node("ReduceMean", ["load"], ["mean"], keepdims=0),
        helper.make_node("Add", ["z", "mean"], ["y"]),
    ]
    return onnx_file(nodes, stored, row=[width], output="y")
