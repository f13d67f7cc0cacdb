"""The models that the demonstration trains, as ONNX files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


def logistic_regression(inputs: int) -> bytes:
    """Logistic regression with all weights zero: rows of `inputs` numbers in, one probability a row out.

    Args:
        inputs: Width of a row.

    Returns:
        An ONNX file with `inputs + 1` parameters: `weight` (inputs, 1) and `bias` (1,).
    """
    weight = numpy_helper.from_array(np.zeros((inputs, 1), dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.zeros(1, dtype=np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["z"]), helper.make_node("Sigmoid", ["z"], ["p"])],
        "logistic-regression",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["rows", 1])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
