"""Every operator that a model may use computes what onnxruntime computes, or is refused in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from agent.core.errors import OperatorError
from agent.training.graph import TorchGraph
from agent.training.operators import OPERATORS
from agent.trust import model_checks
from agent.trust.model import parse_model
from tests.unit.training.graphs import Array, onnx_file
from tests.unit.training.test_round_trip import onnx_outputs


def test_exactly_the_allowed_operators_are_implemented() -> None:
    assert set(OPERATORS) == model_checks.OPERATORS | model_checks.ML_OPERATORS


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


W: Array = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
"""A stored weight, so that every file has a parameter."""

UNARY = "Abs Ceil Cos Erf Exp Floor HardSwish Identity Mish Neg Relu Round Sigmoid Sign Sin Softplus Softsign Tanh"
MORE_UNARY = ["Elu", "Selu", "LeakyRelu", "HardSigmoid", "Softmax", "LogSoftmax", "Flatten", "GlobalAveragePool"]
ATTRIBUTED: list[tuple[str, dict[str, Any], dict[str, Array]]] = [
    ("Elu", {"alpha": 0.7}, {}),
    ("LeakyRelu", {"alpha": 0.2}, {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, {}),
    ("Softmax", {"axis": 1}, {}),
    ("Flatten", {"axis": 2}, {}),
    ("Flatten", {"axis": -1}, {}),
    ("Transpose", {"perm": [2, 0, 1]}, {}),
    ("Transpose", {}, {}),
    ("Cast", {"to": TensorProto.FLOAT}, {}),
    ("GlobalMaxPool", {}, {}),
    ("MaxPool", {"kernel_shape": [2], "strides": [2], "pads": [1, 0]}, {}),
    ("MaxPool", {"kernel_shape": [3], "auto_pad": "SAME_UPPER"}, {}),
    ("MaxPool", {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}, {}),
    ("AveragePool", {"kernel_shape": [2], "pads": [1, 1], "count_include_pad": 1}, {}),
    ("AveragePool", {"kernel_shape": [2], "pads": [1, 1]}, {}),
    ("ReduceMean", {"keepdims": 0}, {"axes": ints(1)}),
    ("ReduceSum", {}, {"axes": ints(-1, 1)}),
    ("ReduceMax", {}, {}),
    ("ReduceMin", {"keepdims": 0}, {"axes": ints(2)}),
    ("ReduceMean", {"noop_with_empty_axes": 1}, {}),
    ("Clip", {}, {"low": number(-0.3), "high": number(0.4)}),
    ("Pow", {}, {"exponent": np.array([2.0], np.float32)}),
    ("PRelu", {}, {"slope": np.full((3, 1), 0.3, np.float32)}),
    ("Reshape", {}, {"shape": ints(0, -1)}),
    ("Unsqueeze", {}, {"axes": ints(0, -1)}),
    ("Slice", {}, {"starts": ints(1, 0), "ends": ints(3, -1), "axes": ints(1, 2), "steps": ints(1, 2)}),
    ("Gather", {"axis": 1}, {"indices": np.array([[0, -1], [1, 1]], np.int64)}),
    ("Gather", {"axis": 2}, {"index": np.array(1, np.int64)}),
    ("Expand", {}, {"shape": ints(2, 1, 1, 1)}),
    ("Tile", {}, {"repeats": ints(1, 2, 3)}),
    ("Pad", {}, {"pads": ints(0, 1, 0, 0, 0, 2), "value": number(0.5)}),
    ("Pad", {"mode": "reflect"}, {"pads": ints(0, 0, 1, 0, 0, 2)}),
    ("Pad", {"mode": "edge"}, {"pads": ints(0, 0, 1, 0, 0, 2)}),
    ("Trilu", {"upper": 0}, {"k": np.array(1, np.int64)}),
    ("InstanceNormalization", {}, {"scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)}),
    ("LayerNormalization", {}, {"scale": np.full(4, 0.5, np.float32), "bias": np.ones(4, np.float32)}),
    ("LayerNormalization", {"axis": 1}, {"scale": np.full((3, 4), 0.5, np.float32)}),
    ("Conv", {"pads": [3, 0], "dilations": [2]}, {"w": W, "b": np.ones(2, np.float32)[:2]}),
    ("Conv", {"auto_pad": "SAME_LOWER"}, {"w": W}),
    ("Conv", {"group": 3}, {"w": np.ones((3, 1, 2), np.float32)}),
    ("ConvTranspose", {"strides": [2], "output_padding": [1], "pads": [1, 1]}, {"w": W.reshape(3, 2, 4)}),
    ("Resize", {"mode": "linear"}, {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2], np.float32)}),
    ("MatMul", {}, {"w": W.reshape(4, 6)}),
    ("Max", {}, {"a": number(0.1), "b": np.zeros(4, np.float32)}),
    ("Min", {}, {"a": number(0.1)}),
    ("Sum", {}, {"a": W, "b": np.ones(1, np.float32)}),
    ("Mod", {"fmod": 1}, {"a": number(0.3)}),
    ("Equal", {}, {"a": number(0.3)}),
    ("Greater", {}, {"a": number(0.1)}),
    ("GreaterOrEqual", {}, {"a": number(0.1)}),
    ("Less", {}, {"a": number(0.1)}),
    ("LessOrEqual", {}, {"a": number(0.1)}),
    ("ArgMax", {"axis": 1, "keepdims": 0}, {}),
    *[(name, {}, {"a": W}) for name in ("Add", "Sub", "Mul", "Div")],
    *[(name, {}, {}) for name in [*UNARY.split(), *MORE_UNARY]],
]


def _computed(nodes: list[NodeProto], stored: dict[str, Array], *, kind: int = TensorProto.FLOAT) -> tuple[Any, Any]:
    """Our result and onnxruntime's, for rows of shape (2, 3, 4)."""
    # A weight that reaches the output, so that the file is a model.
    last = [
        helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "one"], ["out"]),
    ]
    data = onnx_file([*nodes, *last], {**stored, "one": np.ones(1, np.float32)}, row=[3, 4], output="out")
    rows = np.linspace(-1.3, 1.9, 24, dtype=np.float32).reshape(2, 3, 4)
    graph = TorchGraph(parse_model(data))
    with torch.no_grad():
        return graph.run(torch.from_numpy(rows)).numpy(), onnx_outputs(data, rows)[0]


@pytest.mark.parametrize(("name", "attributes", "stored"), ATTRIBUTED)
def test_operator(name: str, attributes: dict[str, Any], stored: dict[str, Array]) -> None:
    ours, theirs = _computed([helper.make_node(name, ["x", *stored], ["y"], **attributes)], stored)
    assert ours.shape == theirs.shape
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        # Values that only make sense together: shapes, masks, parts.
        [helper.make_node("Shape", ["x"], ["s"], start=1), helper.make_node("ConstantOfShape", ["s"], ["y"])],
        [helper.make_node("Size", ["x"], ["y"])],
        [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"])],
        [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])],
        [helper.make_node("Reciprocal", ["x"], ["y"])],
        [
            helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2),
            helper.make_node("Sub", ["a", "b"], ["y"]),
        ],
        [helper.make_node("Unsqueeze", ["x", "zero"], ["u"]), helper.make_node("Squeeze", ["u", "zero"], ["y"])],
        [helper.make_node("Concat", ["x", "x"], ["y"], axis=-1)],
        [helper.make_node("Range", ["n0", "n5", "n1"], ["y"])],
        [helper.make_node("CastLike", ["zero", "x"], ["y"])],
        [helper.make_node("Dropout", ["x"], ["y"])],
        [
            helper.make_node("Less", ["x", "half"], ["a"]),
            helper.make_node("Not", ["a"], ["b"]),
            helper.make_node("Or", ["a", "b"], ["c"]),
            helper.make_node("And", ["a", "c"], ["d"]),
            helper.make_node("Where", ["d", "x", "half"], ["y"]),
        ],
        [
            helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0]),
            helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        [
            helper.make_node("Constant", [], ["c"], value_ints=[3, 2]),
            helper.make_node("Constant", [], ["d"], value_int=2),
            helper.make_node("Div", ["c", "d"], ["e"]),
            helper.make_node("Mod", ["e", "d"], ["y"]),
        ],
    ],
    ids=lambda nodes: "-".join(node.op_type for node in nodes),
)
def test_operators_together(nodes: list[NodeProto]) -> None:
    stored: dict[str, Array] = {
        "zero": ints(0),
        "half": number(0.5),
        "n0": np.array(0, np.int64),
        "n5": np.array(5, np.int64),
        "n1": np.array(1, np.int64),
    }
    used = {name for node in nodes for name in node.input}
    ours, theirs = _computed(nodes, {name: value for name, value in stored.items() if name in used})
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "attributes", "stored", "words"),
    [
        (
            "Resize",
            {"mode": "nearest"},
            {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2], np.float32)},
            "nearest",
        ),
        ("Slice", {}, {"s": ints(3), "e": ints(0), "a": ints(2), "t": ints(-1)}, "negative step"),
        (
            "GRU",
            {"hidden_size": 2},
            {"w": np.ones((1, 6, 4), np.float32), "r": np.ones((1, 6, 2), np.float32)},
            "reset",
        ),
        (
            "LSTM",
            {"hidden_size": 1, "direction": "reverse"},
            {"w": np.ones((1, 4, 4), np.float32), "r": np.ones((1, 4, 1), np.float32)},
            "reverse",
        ),
        (
            "RNN",
            {"hidden_size": 1, "activations": ["Relu"]},
            {"w": np.ones((1, 1, 4), np.float32), "r": np.ones((1, 1, 1), np.float32)},
            "activations",
        ),
        ("MaxPool", {"kernel_shape": [2], "pads": [2, 2]}, {}, "half"),
        ("ConvTranspose", {"pads": [1, 0]}, {"w": np.ones((3, 1, 2), np.float32)}, "two sides"),
    ],
)
def test_an_unusual_form_is_refused_in_words(
    name: str, attributes: dict[str, Any], stored: dict[str, Array], words: str
) -> None:
    with pytest.raises(OperatorError, match=words) as caught:
        _computed([helper.make_node(name, ["x", *stored], ["y"], **attributes)], stored)
    assert caught.value.code == "model.unsupported_form"


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("ConstantOfShape", ["huge"], ["y"])],
        [helper.make_node("Expand", ["x", "huge"], ["y"])],
        [helper.make_node("Tile", ["x", "huge3"], ["y"])],
        [helper.make_node("Pad", ["x", "huge6"], ["y"])],
        [helper.make_node("Range", ["n0", "big", "n1"], ["y"])],
        [helper.make_node("Resize", ["x", "", "", "huge3"], ["y"], mode="linear")],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_an_operator_that_would_make_a_huge_tensor_is_stopped_before(nodes: list[NodeProto]) -> None:
    big = 1 << 40
    stored: dict[str, Array] = {
        "huge": ints(big, 1, 1, 1),
        "huge3": ints(big, 3, 4),
        "huge6": ints(0, 0, 0, big, 0, 0),
        "n0": np.array(0, np.int64),
        "big": np.array(big, np.int64),
        "n1": np.array(1, np.int64),
    }
    used = {name for node in nodes for name in node.input}
    data = onnx_file(
        [
            *nodes,
            helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "w"], ["o"]),
        ],
        {**{name: value for name, value in stored.items() if name in used}, "w": np.ones(1, np.float32)},
        row=[3, 4],
        output="o",
    )
    with pytest.raises(OperatorError, match="values"):
        TorchGraph(parse_model(data)).run(torch.zeros(2, 3, 4))
