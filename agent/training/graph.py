"""An ONNX graph run by torch: its parameters are the file's own, by name, and views of one flat vector.

Copying a model in or out is one copy of that vector, and an optimiser's step a few operations on it, however many
layers there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from agent.core.errors import OperatorError
from agent.training.operators import OPERATORS, Call, Operator, Tensor
from agent.training.operators.shapes import tensor_of
from agent.trust.model import ModelFile, Slot


@dataclass(frozen=True, slots=True)
class _Step:
    """One node, ready to run.

    Args:
        operator: Its implementation.
        call: Its attributes.
        inputs: Names of its inputs; empty where one is absent.
        outputs: Names of its outputs.
        finished: Names that no later step needs.
    """

    operator: Operator
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    finished: tuple[str, ...] = ()


class TorchGraph:
    """A model that torch can run and train.

    Attributes:
        vector: All parameters, shape (m,), float32.
        gradient: Their gradients after a backward pass, shape (m,); 0 for running statistics.
        trainable: Shape (m,), 1 for weights and 0 for running statistics; None where there are no statistics.
        parameters: Views of `vector`, by name.
    """

    def __init__(self, model: ModelFile, *, device: str = "cpu", bypass: frozenset[str] = frozenset()) -> None:
        """Prepare to run `model`.

        Args:
            model: The checked file.
            device: `cpu` or `cuda`.
            bypass: First outputs of nodes to leave out, their input taken instead (a last activation).
        """
        graph = model.graph
        self.device = torch.device(device)
        self.vector: Tensor = torch.from_numpy(model.parameters.copy()).to(self.device)
        self.gradient: Tensor = torch.zeros_like(self.vector)
        self.trainable = self._trainable(model.slots)
        self.parameters: dict[str, Tensor] = {}
        self._slots = tuple(model.slots)
        for slot in model.slots:
            self._bind(slot)
        self._constants = self._load_constants(graph)
        stored = {tensor.name for tensor in graph.initializer}
        self.input = next(item.name for item in graph.input if item.name not in stored)
        self.output = output_name(graph)
        self._steps = self._fold(_plan(model, self.output, bypass))

    def load(self, parameters: npt.NDArray[np.float32]) -> None:
        """Set all parameters, shape (m,)."""
        with torch.no_grad():
            # torch warns about read-only arrays, as the ones of a model file are.
            self.vector.copy_(torch.from_numpy(np.require(parameters, requirements="W")))

    def set_training(self, training: bool) -> None:
        """Switch dropout and batch statistics on or off."""
        for step in self._steps:
            step.call.training = training

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Parameters by name, as views of a vector like `self.vector`."""
        return {slot.name: vector[slot.range].view(slot.shape) for slot in self._slots}

    def run(self, rows: Tensor, parameters: Mapping[str, Tensor] = MappingProxyType({})) -> Tensor:
        """Compute the output for `rows`, shape (rows, ...) as the model's input.

        Args:
            rows: The rows.
            parameters: By name; those absent are the graph's own.

        Raises:
            OperatorError: The model cannot be computed for rows of this form.
        """
        values: dict[str, Tensor] = {self.input: rows, **parameters}
        for step in self._steps:
            self._compute(step, values)
            for name in step.finished:
                values.pop(name, None)
        return self._value(self.output, values)

    def _compute(self, step: _Step, values: dict[str, Tensor]) -> None:
        inputs = [self._value(name, values) if name else None for name in step.inputs]
        try:
            result = step.operator(step.call, *inputs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
                raise
            raise _cannot_run(step.call.name) from error
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip(step.outputs, results, strict=False))

    def _value(self, name: str, values: dict[str, Tensor]) -> Tensor:
        found = values.get(name)
        if found is None:
            found = self.parameters.get(name)
        return self._constants[name] if found is None else found

    def _bind(self, slot: Slot) -> None:
        view = self.vector[slot.range].view(slot.shape)
        if not slot.statistic:
            view.requires_grad_()
            # Autograd adds to a gradient that is already there, in place: into our flat vector.
            view.grad = self.gradient[slot.range].view(slot.shape)
        self.parameters[slot.name] = view

    def _trainable(self, slots: Iterable[Slot]) -> Tensor | None:
        mask = torch.ones_like(self.vector)
        statistics = [slot for slot in slots if slot.statistic]
        for slot in statistics:
            mask[slot.range] = 0
        return mask if statistics else None

    def _load_constants(self, graph: GraphProto) -> dict[str, Tensor]:
        """Floats go to the device; integers stay on the CPU, where shapes are computed."""
        constants = {}
        for tensor in graph.initializer:
            if tensor.name not in self.parameters:
                value = tensor_of(onnx.numpy_helper.to_array(tensor))
                constants[tensor.name] = value.to(self.device) if value.is_floating_point() else value
        return constants

    def _fold(self, steps: list[_Step]) -> list[_Step]:
        """Compute once what depends on constants alone."""
        left = []
        for step in steps:
            if all(not name or name in self._constants for name in step.inputs) and step.call.name != "Dropout":
                with torch.no_grad():
                    self._compute(step, self._constants)
            else:
                left.append(step)
        return _with_lifetimes(left, self.output)


def output_name(graph: GraphProto) -> str:
    """The output that is trained: the first float tensor (a classifier's first output may be its labels)."""
    floats = [item.name for item in graph.output if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    return str(floats[0] if floats else graph.output[-1].name)


def _plan(model: ModelFile, output: str, bypass: frozenset[str]) -> list[_Step]:
    """The nodes that the output needs, in order, each with its implementation."""
    needed = {output}
    uses: Counter[str] = Counter([output])
    steps: list[_Step] = []
    for number, node in reversed(list(enumerate(model.graph.node))):
        if needed.isdisjoint(node.output):
            continue
        needed.update(name for name in node.input if name)
        uses.update(node.input)
        steps.append(_step(model, number, node, uses, bypassed=node.output[0] in bypass))
    return steps[::-1]


def _step(model: ModelFile, number: int, node: NodeProto, uses: Counter[str], *, bypassed: bool) -> _Step:
    weights = tuple(slot.name for slot in model.slots if slot.node == number)
    used = [position for position, name in enumerate(node.output, start=1) if uses[name]]
    attributes = {item.name: _attribute_value(item) for item in node.attribute}
    call = Call(node.op_type, attributes, max(used, default=1), model.opset)
    operator = OPERATORS["Identity" if bypassed else node.op_type]
    inputs = tuple(node.input)[:1] if bypassed else (*node.input, *weights)
    return _Step(operator, call, inputs, tuple(node.output))


def _attribute_value(attribute: AttributeProto) -> object:
    if attribute.type == AttributeProto.TENSOR:
        return onnx.numpy_helper.to_array(attribute.t)
    return onnx.helper.get_attribute_value(attribute)


def _with_lifetimes(steps: list[_Step], output: str) -> list[_Step]:
    """Note after which step each value can be let go."""
    seen = {output}
    result = []
    for step in reversed(steps):
        last = {name for name in (*step.inputs, *step.outputs) if name and name not in seen}
        seen.update(last)
        result.append(_Step(step.operator, step.call, step.inputs, step.outputs, tuple(last)))
    return result[::-1]


def _cannot_run(name: str) -> OperatorError:
    return OperatorError(
        "model.does_not_run",
        f"The model cannot be computed: its operator {name} fails on rows of the study's form.",
        next_step="Compare the model's input with the study's fields, and try the file with onnxruntime.",
    )
