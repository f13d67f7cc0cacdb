"""A study's model: ONNX bytes in, one flat float32 vector out, and back, bit for bit, by name.

The vector holds every trainable float tensor of the file in order of appearance: the initialisers first (running
statistics of BatchNormalization included), then the weights that linear models of `ai.onnx.ml` keep in attributes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from agent.core.errors import OperatorError
from agent.trust.model_checks import (
    check_container,
    check_dimensions,
    check_flow,
    check_graph,
    check_versions,
    too_large,
)
from agent.trust.study import MAX_PARAMETERS, ModelSpec

FloatVector = npt.NDArray[np.float32]

_CONSTANT_INPUTS = MappingProxyType(
    {
        "CastLike": {1},
        "Clip": {1, 2},
        "Dropout": {1, 2},
        "Equal": {0, 1},
        "Greater": {0, 1},
        "GreaterOrEqual": {0, 1},
        "Less": {0, 1},
        "LessOrEqual": {0, 1},
        "Pad": {2},
        "Pow": {1},
        "Range": {0, 1, 2},
        "Resize": {1, 2},
    }
)
"""Inputs that tune an operator; a float tensor used only there is a constant, whatever its shape."""
_STATISTIC_INPUTS = MappingProxyType({"BatchNormalization": {3, 4}})
"""Inputs that training moves by itself, without gradients: running mean and variance."""
_BIASED_OPERATORS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose second input is a weight and whose third a bias."""
_MAX_VIEWS = 4
"""Operators between a weight and its use that only show it differently; bounded, for a file may chain thousands."""
_ATTRIBUTE_WEIGHTS = MappingProxyType(
    {"LinearClassifier": ("coefficients", "intercepts"), "LinearRegressor": ("coefficients", "intercepts")}
)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in the flat vector and in the file.

    Args:
        name: Name of the initialiser; for a weight in an attribute, `<first output of the node>.<attribute>`.
        shape: Its dimensions.
        offset: Index of its first element in the flat vector.
        statistic: It is a running statistic: no gradient reaches it.
        node: Index of the node that holds it in an attribute; None for an initialiser.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    statistic: bool = False
    node: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def range(self) -> slice:
        """Its part of the flat vector."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A checked model.

    Args:
        graph: The `onnx.GraphProto`; not to be changed.
        opset: Version of the standard operator set.
        slots: What the flat vector is made of.
        parameters: The vector as it stands in the file, shape (m,), float32, read-only.
    """

    graph: GraphProto = field(repr=False)
    opset: int
    slots: tuple[Slot, ...] = field(repr=False)
    parameters: FloatVector = field(repr=False)
    _proto: ModelProto = field(repr=False)

    @property
    def row_shape(self) -> tuple[int | None, ...]:
        """Shape of one row of the model's input, without the batch axis; None where the model leaves it open."""
        dimensions = _inputs(self.graph)[0].type.tensor_type.shape.dim
        return tuple(size.dim_value if size.HasField("dim_value") else None for size in dimensions[1:])

    def with_parameters(self, vector: FloatVector) -> bytes:
        """Return the model file with other values, set to inference (no dropout, running statistics).

        Args:
            vector: Shape (m,), float32; stored bit for bit.

        Raises:
            OperatorError: The vector has another length or type.
        """
        if vector.shape != self.parameters.shape or vector.dtype != np.float32:
            raise OperatorError(
                "model.wrong_vector",
                f"The model has {len(self.parameters)} float32 parameters; {vector.dtype} {vector.shape} was given.",
                next_step="Use the vector of the same model file.",
            )
        proto = ModelProto()
        proto.CopyFrom(self._proto)
        initialisers = {tensor.name: tensor for tensor in proto.graph.initializer}
        for slot in self.slots:
            _store(slot, np.ascontiguousarray(vector[slot.range], dtype="<f4"), proto.graph, initialisers)
        _set_to_inference(proto.graph)
        return bytes(proto.SerializeToString(deterministic=True))


def parse_model(data: bytes) -> ModelFile:
    """Parse and check an ONNX file.

    Args:
        data: The file's bytes.

    Raises:
        OperatorError: The file is no ONNX model, or one that a box refuses to run or cannot train; each reason has a
            code of its own (`model.*`).
    """
    check_container(data)
    try:
        proto = ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise OperatorError(
            "model.unreadable",
            "The model file is not a readable ONNX file.",
            next_step="Export the model as ONNX and submit that file.",
        ) from error
    opset = check_versions(proto)
    check_graph(proto)
    check_flow(proto.graph)
    _check_interface(proto.graph)
    _untie(proto.graph)
    check_flow(proto.graph)
    slots = tuple(_slots(proto.graph))
    return ModelFile(proto.graph, opset, slots, _gather(proto.graph, slots), proto)


def verify_model(data: bytes, spec: ModelSpec) -> ModelFile:
    """Parse `data` after verifying that it is the very file that the study names.

    Raises:
        OperatorError: Size, SHA-256 or number of parameters differ from the study's, or `parse_model` refuses it.
    """
    if len(data) != spec.size_bytes or hashlib.sha256(data).hexdigest() != spec.digest:
        raise OperatorError(
            "model.wrong_digest",
            "The model file is not the one that the study names: its size or SHA-256 differs.",
            next_step="Fetch the study's model again; nothing was read from this file.",
        )
    model = parse_model(data)
    if len(model.parameters) != spec.parameters:
        raise OperatorError(
            "model.wrong_size",
            f"The model has {len(model.parameters)} parameters, and the study states {spec.parameters}.",
            next_step="Ask the study's requester to correct the study file.",
        )
    return model


def _check_interface(graph: GraphProto) -> None:
    """A study's model has one float32 input, rows first, of bounded size."""
    inputs = _inputs(graph)
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise OperatorError(
            "model.input",
            f"The model has {len(inputs)} inputs; exactly one float32 tensor, one row a case, is supported.",
            next_step="Concatenate the inputs into one float32 tensor and export the model again.",
        )
    dimensions = inputs[0].type.tensor_type.shape.dim
    check_dimensions((size.dim_value for size in dimensions if size.HasField("dim_value")), what="the model's input")


def _inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The graph's inputs proper: files before IR version 4 list initialisers among them."""
    stored = {tensor.name for tensor in graph.initializer}
    return [item for item in graph.input if item.name not in stored]


def _untie(graph: GraphProto) -> None:
    """Give each use of a merged tensor a copy of its own.

    Exporters merge tensors that happen to be equal, such as fresh zero biases, or a bias with a running mean: through
    Identity nodes, or by naming one tensor in several places. What the model's author tied stays tied: a matrix in
    several places, or a layer that is used repeatedly, bias and all.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    total = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    for name, source in _merged_uses(graph, stored):
        total += math.prod(stored[source].dims)
        if total > MAX_PARAMETERS:
            raise too_large("the number of stored values", total, MAX_PARAMETERS)
        tensor = graph.initializer.add()
        tensor.CopyFrom(stored[source])
        tensor.name = name
        stored[name] = tensor
    kept = [node for node in graph.node if not (node.op_type == "Identity" and node.output[0] in stored)]
    del graph.node[:]
    graph.node.extend(kept)


def _merged_uses(graph: GraphProto, stored: dict[str, TensorProto]) -> Iterator[tuple[str, str]]:
    """Yield (name of the copy, name of its source), having pointed each repeated use at its copy."""
    outputs = {item.name for item in graph.output}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored and node.output[0] not in outputs:
            yield node.output[0], node.input[0]
    makers = {name: node for node in graph.node for name in node.output}
    owners: dict[str, object] = {}
    copies: dict[tuple[str, object], str] = {}
    for number, node in enumerate(graph.node):
        for position, owner in _vector_uses(number, node, makers):
            name = node.input[position]
            if name not in stored or owners.setdefault(name, owner) == owner:
                continue
            if (name, owner) not in copies:
                copies[name, owner] = f"{name}@{number}.{position}"
                yield copies[name, owner], name
            node.input[position] = copies[name, owner]


def _vector_uses(number: int, node: NodeProto, makers: dict[str, NodeProto]) -> Iterator[tuple[int, object]]:
    """Yield the positions at which `node` uses a vector that an exporter may have merged, each with its owner.

    A bias belongs to its layer's weight; scale, bias and statistics of a BatchNormalization each stand alone.
    """
    if node.op_type in _BIASED_OPERATORS and len(node.input) > 2:
        weight = node.input[1]
        for _ in range(_MAX_VIEWS):
            if weight in makers and makers[weight].op_type in {"Cast", "Transpose"}:
                weight = makers[weight].input[0]
        yield 2, weight
    elif node.op_type == "BatchNormalization":
        yield from ((position, (number, position)) for position in range(1, len(node.input)))


def _is_constant_use(node: NodeProto, position: int) -> bool:
    return node.op_type == "Identity" or position in _CONSTANT_INPUTS.get(node.op_type, ())


def _slots(graph: GraphProto) -> Iterator[Slot]:
    weights, statistics = _weight_names(graph)
    offset = 0
    for tensor in graph.initializer:
        if tensor.name in weights and _is_trainable(tensor):
            slot = Slot(tensor.name, tuple(tensor.dims), offset, tensor.name in statistics)
            offset += slot.size
            yield slot
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.name in _ATTRIBUTE_WEIGHTS.get(node.op_type, ()):
                yield Slot(f"{node.output[0]}.{attribute.name}", (len(attribute.floats),), offset, node=number)
                offset += len(attribute.floats)
    if offset == 0:
        raise OperatorError(
            "model.no_parameters",
            "The model has no float32 weights to train.",
            next_step="Export the model with its weights as float32 initialisers.",
        )


def _weight_names(graph: GraphProto) -> tuple[set[str], set[str]]:
    """Names used as weights, and among them those of running statistics."""
    uses: Counter[str] = Counter()
    statistics = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            uses[name] += not _is_constant_use(node, position)
            if position in _STATISTIC_INPUTS.get(node.op_type, ()):
                statistics.add(name)
    return set(+uses), statistics


def _is_trainable(tensor: TensorProto) -> bool:
    """Whether a float tensor is a weight: a scalar (rank 0) or one with infinities, such as a mask, is a constant."""
    if tensor.data_type == TensorProto.DOUBLE and tensor.dims:
        raise OperatorError(
            "model.double",
            f"The model's tensor {tensor.name[:80]!r} has float64 weights; studies train float32.",
            next_step="Convert the model to float32 and export it again.",
        )
    floats = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 0 and math.prod(tensor.dims) > 0
    return floats and bool(np.isfinite(onnx.numpy_helper.to_array(tensor)).all())


def _gather(graph: GraphProto, slots: tuple[Slot, ...]) -> FloatVector:
    initialisers = {tensor.name: tensor for tensor in graph.initializer}
    vector = np.empty(slots[-1].range.stop, dtype=np.float32)
    for slot in slots:
        if slot.node is None:
            vector[slot.range] = onnx.numpy_helper.to_array(initialisers[slot.name]).reshape(-1)
        else:
            vector[slot.range] = _attribute(graph.node[slot.node], slot).floats
    if not np.isfinite(vector).all():
        raise OperatorError(
            "model.not_finite",
            "The model holds weights that are infinite or not a number.",
            next_step="Train or initialise the model again before submitting it.",
        )
    vector.flags.writeable = False
    return vector


def _store(slot: Slot, values: FloatVector, graph: GraphProto, initialisers: dict[str, TensorProto]) -> None:
    if slot.node is not None:
        _attribute(graph.node[slot.node], slot).floats[:] = values.tolist()
        return
    tensor = initialisers[slot.name]
    tensor.ClearField("float_data")
    tensor.raw_data = values.tobytes()


def _attribute(node: NodeProto, slot: Slot) -> AttributeProto:
    return next(item for item in node.attribute if slot.name == f"{node.output[0]}.{item.name}")


def _set_to_inference(graph: GraphProto) -> None:
    """Undo a training-mode export: such a model would answer differently each time."""
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
            kept = [item for item in node.attribute if item.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)
        elif node.op_type == "Dropout":
            del node.input[2:]
