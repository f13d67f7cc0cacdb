"""What a model file may hold: it is code, so every part of it is checked before anything is allocated or run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import MappingProxyType

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from agent.core.errors import OperatorError
from agent.trust.study import MAX_MODEL_BYTES, MAX_PARAMETERS

MAX_NODES = 20_000
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_DIMENSION = 1 << 28
MAX_NAME_CHARACTERS = 1000
MAX_OUTPUTS = 16
MIN_OPSET, MAX_OPSET = 13, 23
MAX_ML_OPSET = 5
ML_DOMAIN = "ai.onnx.ml"

_OPERATOR_NAMES = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos Div Dropout Elu Equal Erf Exp Expand Flatten Floor GRU Gather Gelu Gemm GlobalAveragePool
    GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization LSTM LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mish Mod Mul Neg Not Or PRelu Pad Pow RNN Range
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Size
    Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATOR_NAMES.split())
"""Operators of the standard domain that our own trainer runs; nothing else is accepted."""
ML_OPERATORS = frozenset({"ArrayFeatureExtractor", "LinearClassifier", "LinearRegressor", "Normalizer", "Scaler"})
"""Operators of `ai.onnx.ml` that it runs: what skl2onnx writes for linear models."""
UNTRAINABLE = MappingProxyType(
    {
        "TreeEnsembleClassifier": "decision trees",
        "TreeEnsembleRegressor": "decision trees",
        "TreeEnsemble": "decision trees",
        "SVMClassifier": "a support-vector machine",
        "SVMRegressor": "a support-vector machine",
        "KNeighbors": "nearest neighbours",
    }
)

_ELEMENT_BYTES = MappingProxyType(
    {
        TensorProto.FLOAT: 4,
        TensorProto.DOUBLE: 8,
        TensorProto.INT32: 4,
        TensorProto.INT64: 8,
        TensorProto.BOOL: 1,
        TensorProto.UINT8: 1,
        TensorProto.INT8: 1,
    }
)
_TYPED_FIELDS = MappingProxyType(
    {
        TensorProto.FLOAT: "float_data",
        TensorProto.DOUBLE: "double_data",
        TensorProto.INT32: "int32_data",
        TensorProto.INT64: "int64_data",
        TensorProto.BOOL: "int32_data",
        TensorProto.UINT8: "int32_data",
        TensorProto.INT8: "int32_data",
    }
)
_PLAIN_ATTRIBUTES = frozenset(
    {
        AttributeProto.FLOAT,
        AttributeProto.INT,
        AttributeProto.STRING,
        AttributeProto.TENSOR,
        AttributeProto.FLOATS,
        AttributeProto.INTS,
        AttributeProto.STRINGS,
    }
)
_ARCHIVE_SIGNS = (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")


def check_container(data: bytes) -> None:
    """Refuse, by size and first bytes, what cannot be an ONNX file.

    Raises:
        OperatorError: It is empty, too large, or a `.pt`, `.pt2` or pickle file, whose loaders run code.
    """
    if not 0 < len(data) <= MAX_MODEL_BYTES:
        raise too_large("the file", len(data), MAX_MODEL_BYTES)
    if data.startswith(_ARCHIVE_SIGNS):
        raise OperatorError(
            "model.archive",
            "The model is a PyTorch or pickle archive (.pt, .pt2, .pkl); reading one can run foreign code.",
            next_step="Export the model as ONNX and submit that file.",
        )


def check_versions(model: ModelProto) -> int:
    """Return the standard operator set's version.

    Raises:
        OperatorError: Another domain than `ai.onnx` and `ai.onnx.ml` is imported, or a version outside ours.
    """
    standard = 0
    for item in model.opset_import:
        if item.domain in {"", "ai.onnx"}:
            standard = max(standard, item.version)
        elif item.domain != ML_DOMAIN:
            raise foreign_domain(item.domain)
        elif item.version > MAX_ML_OPSET:
            raise _bad_version(ML_DOMAIN, item.version)
    if standard == 0 and all(node.domain == ML_DOMAIN for node in model.graph.node):
        return MIN_OPSET
    if not MIN_OPSET <= standard <= MAX_OPSET:
        raise _bad_version("ai.onnx", standard)
    return standard


def check_graph(model: ModelProto) -> None:
    """Check everything in the file but how values flow.

    Raises:
        OperatorError: External data, functions, foreign operators, control flow, sparse or string tensors, or sizes
            beyond our bounds; nothing was allocated.
    """
    graph = model.graph
    if model.functions or model.training_info:
        raise foreign_functions()
    if graph.sparse_initializer:
        raise _bad_tensor("sparse", "is stored as a sparse tensor")
    if not 0 < len(graph.node) <= MAX_NODES:
        raise too_large("the number of operators", len(graph.node), MAX_NODES)
    for node in graph.node:
        check_operator(node)
    check_tensors(_all_tensors(graph))


def check_operator(node: NodeProto) -> None:
    """Raise unless `node` is an operator that our trainer runs, with plain attributes only."""
    allowed = {"": OPERATORS, "ai.onnx": OPERATORS, ML_DOMAIN: ML_OPERATORS}.get(node.domain)
    if allowed is None:
        raise foreign_domain(node.domain)
    if node.op_type in UNTRAINABLE:
        raise OperatorError(
            "model.untrainable",
            f"The model is made of {UNTRAINABLE[node.op_type]} ({node.op_type}); gradient steps cannot train it.",
            next_step="Submit a linear model or a neural network instead.",
        )
    if node.op_type not in allowed:
        raise OperatorError(
            "model.operator",
            f"The model uses the operator {node.op_type[:80]!r}, which this software does not run.",
            next_step="Rebuild the model from the supported operators; control flow and ZipMap are never among them.",
        )
    for attribute in node.attribute:
        if attribute.type not in _PLAIN_ATTRIBUTES or attribute.ref_attr_name:
            raise OperatorError(
                "model.attribute",
                f"The operator {node.op_type} carries the attribute {attribute.name[:80]!r}, not a plain value.",
                next_step="Export the model without subgraphs, sparse constants and functions.",
            )


def _all_tensors(graph: GraphProto) -> Iterable[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


def check_tensors(tensors: Iterable[TensorProto]) -> None:
    """Raise unless every tensor lies in the file itself, whole, and all of them within the bound on elements."""
    total = 0
    for number, tensor in enumerate(tensors, start=1):
        total += check_tensor(tensor)
        if total > MAX_PARAMETERS:
            raise too_large("the number of stored values", total, MAX_PARAMETERS)
        if number > MAX_TENSORS:
            raise too_large("the number of stored tensors", number, MAX_TENSORS)


def check_tensor(tensor: TensorProto) -> int:
    """Return how many elements `tensor` holds, having compared what it claims with what is there.

    Raises:
        OperatorError: Its data lie outside the file, its type is not ours, or dimensions and bytes disagree.
    """
    name = tensor.name[:80]
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        raise external_data(name)
    if tensor.data_type not in _ELEMENT_BYTES or tensor.HasField("segment"):
        raise _bad_tensor(name, "has an element type other than float32, float64, integer or truth value")
    count = check_dimensions(tensor.dims, what=f"tensor {name!r}")
    stored = len(getattr(tensor, _TYPED_FIELDS[tensor.data_type]))
    expected = count * _ELEMENT_BYTES[tensor.data_type]
    whole = stored == 0 and len(tensor.raw_data) == expected if tensor.HasField("raw_data") else stored == count
    if not whole:
        raise _bad_tensor(name, "claims other dimensions than it has values for")
    return count


def check_dimensions(dimensions: Iterable[int], *, what: str) -> int:
    """Return the product of `dimensions`, each and all within our bounds; Python's integers cannot overflow."""
    sizes = list(dimensions)
    if len(sizes) > MAX_RANK or any(not 0 <= size <= MAX_DIMENSION for size in sizes):
        raise too_large(f"a dimension of {what}", max(sizes, default=0), MAX_DIMENSION)
    count = math.prod(sizes)
    if count > MAX_PARAMETERS:
        raise too_large(what, count, MAX_PARAMETERS)
    return count


def check_flow(graph: GraphProto) -> None:
    """Check that every value is made once, before it is used, and that the outputs are among them.

    Raises:
        OperatorError: A cycle, a value that nobody makes, one made twice, or a name beyond our bound.
    """
    known = {tensor.name for tensor in graph.initializer}
    if len(known) != len(graph.initializer):
        raise _bad_flow("two stored tensors have one name")
    known.update(item.name for item in graph.input)
    for node in graph.node:
        if missing := [name for name in node.input if name and name not in known]:
            raise _bad_flow(f"{node.op_type} uses {missing[0][:80]!r} before anything has made it")
        for name in node.output:
            if name and (name in known or len(name) > MAX_NAME_CHARACTERS):
                raise _bad_flow(f"{name[:80]!r} is made twice, or its name is too long")
            known.add(name)
    if not 0 < len(graph.output) <= MAX_OUTPUTS or any(item.name not in known for item in graph.output):
        raise _bad_flow("an output is missing, or nothing makes it")


def too_large(what: str, size: int, limit: int) -> OperatorError:
    """The error for anything beyond a bound."""
    return OperatorError(
        "model.too_large",
        f"The model was refused: {what} is {size}, and at most {limit} (and at least 1) is accepted.",
        next_step="Submit a smaller model.",
    )


def external_data(name: str) -> OperatorError:
    """The error for weights that lie in another file."""
    return OperatorError(
        "model.external_data",
        f"The model keeps the values of {name!r} outside its own file; such a model could read any file here.",
        next_step="Export it again with all weights inside (external_data=False).",
    )


def foreign_domain(domain: str) -> OperatorError:
    """The error for operators that no standard defines."""
    return OperatorError(
        "model.custom_domain",
        f"The model uses operators of the domain {domain[:80]!r}, which no standard defines.",
        next_step="Rebuild it from standard ONNX operators.",
    )


def foreign_functions() -> OperatorError:
    """The error for models that define operators of their own."""
    return OperatorError(
        "model.functions",
        "The model brings functions or a training program of its own; only plain graphs are accepted.",
        next_step="Inline its functions (onnx.inliner) and export it again.",
    )


def _bad_version(domain: str, version: int) -> OperatorError:
    return OperatorError(
        "model.opset",
        f"The model uses version {version} of the operator set {domain}; {MIN_OPSET} to {MAX_OPSET} are understood.",
        next_step="Export it again with opset 18.",
    )


def _bad_tensor(name: str, what: str) -> OperatorError:
    return OperatorError(
        "model.tensor",
        f"The model's tensor {name!r} {what}.",
        next_step="Export the model again, with float32 weights.",
    )


def _bad_flow(what: str) -> OperatorError:
    return OperatorError(
        "model.graph",
        f"The model's graph is broken: {what}.",
        next_step="Export the model again; onnx.checker names the operator at fault.",
    )
