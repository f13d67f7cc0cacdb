"""Model files that try to run code, read other files, or exhaust memory."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from agent.core.errors import OperatorError
from agent.trust import model_checks
from agent.trust.model import parse_model, verify_model
from agent.trust.study import ModelSpec


def _model(width: int = 3) -> ModelProto:
    """A logistic model, as anyone would write it."""
    weight = onnx.numpy_helper.from_array(np.ones((width, 1), np.float32), "weight")
    bias = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["z"]), helper.make_node("Sigmoid", ["z"], ["p"])],
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [weight, bias],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _refused(model: ModelProto | bytes) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(OperatorError) as caught:
        parse_model(data)
    return caught.value.code


def test_the_honest_model_passes() -> None:
    assert parse_model(_model().SerializeToString()).parameters.tolist() == [1, 1, 1, 0]


def test_external_data_cannot_read_another_file() -> None:
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/shadow"
    assert _refused(model) == "model.external_data"


def test_external_data_hidden_in_an_attribute() -> None:
    model = _model()
    secret = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    entry = secret.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=secret))
    assert _refused(model) == "model.external_data"


def test_external_data_without_the_flag() -> None:
    model = _model()
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    assert _refused(model) == "model.external_data"


def test_custom_operator_domain() -> None:
    model = _model()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    assert _refused(model) == "model.custom_domain"


def test_custom_operator_without_an_import() -> None:
    model = _model()
    model.graph.node[1].domain = "com.microsoft"
    assert _refused(model) == "model.custom_domain"


def test_function_that_redefines_a_standard_operator() -> None:
    model = _model()
    body = [helper.make_node("Identity", ["a"], ["b"])]
    function = helper.make_function("", "Sigmoid", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    model.functions.append(function)
    assert _refused(model) == "model.functions"


@pytest.mark.parametrize("name", ["Loop", "If", "Scan", "SequenceMap", "StringNormalizer", "RandomNormal", "ZipMap"])
def test_operator_outside_the_allowlist(name: str) -> None:
    model = _model()
    model.graph.node[1].op_type = name
    assert _refused(model) == "model.operator"


def test_subgraph_in_an_attribute() -> None:
    model = _model()
    model.graph.node[1].attribute.append(helper.make_attribute("body", model.graph))
    assert _refused(model) == "model.attribute"


@pytest.mark.parametrize("name", ["TreeEnsembleClassifier", "TreeEnsembleRegressor", "SVMClassifier"])
def test_tree_and_vector_machines_are_refused_by_name(name: str) -> None:
    model = _model()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    node = model.graph.node[1]
    node.op_type, node.domain = name, "ai.onnx.ml"
    with pytest.raises(OperatorError, match=name) as caught:
        parse_model(model.SerializeToString())
    assert caught.value.code == "model.untrainable"


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 20, 1 << 20], [1 << 62, 1 << 62], [-1], [2] * 9])
def test_dimensions_that_would_exhaust_memory(dims: list[int]) -> None:
    model = _model()
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    assert _refused(model) == "model.too_large"


def test_dimensions_beyond_the_bytes_that_are_there() -> None:
    model = _model()
    model.graph.initializer[0].dims[0] = 1000
    assert _refused(model) == "model.tensor"


def test_sparse_tensor_of_a_huge_shape() -> None:
    model = _model()
    values = onnx.numpy_helper.from_array(np.ones(1, np.float32), "values")
    indices = onnx.numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 50]))
    assert _refused(model) == "model.tensor"


def test_identity_nodes_do_not_multiply_weights_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.trust.model.MAX_PARAMETERS", 100)
    model = _model(width=30)
    for number in range(10):
        model.graph.node.insert(0, helper.make_node("Identity", ["weight"], [f"copy{number}"]))
    assert _refused(model) == "model.too_large"


def test_too_many_operators() -> None:
    model = _model()
    extra = [helper.make_node("Relu", ["x"], [f"r{number}"]) for number in range(model_checks.MAX_NODES)]
    model.graph.node.extend(extra)
    assert _refused(model) == "model.too_large"


def test_cyclic_graph() -> None:
    model = _model()
    model.graph.node[0].input[0] = "p"
    assert _refused(model) == "model.graph"


def test_value_made_twice() -> None:
    model = _model()
    model.graph.node[1].output[0] = "z"
    assert _refused(model) == "model.graph"


def test_two_tensors_of_one_name() -> None:
    model = _model()
    model.graph.initializer.append(model.graph.initializer[0])
    assert _refused(model) == "model.graph"


def _saved_pickle() -> bytes:
    return pickle.dumps({"weight": [1.0]})


def _saved_archive() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", _saved_pickle())
    return stream.getvalue()


@pytest.mark.parametrize("make", [_saved_pickle, _saved_archive])
def test_pickles_and_pt2_archives(make: Callable[[], bytes]) -> None:
    assert _refused(make()) == "model.archive"


def test_model_exchanged_after_the_study_was_signed() -> None:
    data = _model().SerializeToString()
    spec = ModelSpec(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data), parameters=4)
    assert len(verify_model(data, spec).parameters) == 4
    other = _model()
    other.producer_name = "x"
    with pytest.raises(OperatorError) as caught:
        verify_model(other.SerializeToString(), spec)
    assert caught.value.code == "model.wrong_digest"


def test_study_that_states_another_number_of_parameters() -> None:
    data = _model().SerializeToString()
    spec = ModelSpec(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data), parameters=5)
    with pytest.raises(OperatorError) as caught:
        verify_model(data, spec)
    assert caught.value.code == "model.wrong_size"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_in_plain_words(data: bytes) -> None:
    with pytest.raises(OperatorError, match=r"[A-Z].*\."):
        parse_model(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_model_is_parsed_or_refused_but_never_crashes(data: st.DataObject) -> None:
    good = bytearray(_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = parse_model(bytes(good))
    except OperatorError:
        return
    assert np.isfinite(model.parameters).all()
