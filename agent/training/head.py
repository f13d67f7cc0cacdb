"""From a model's output to chances and losses, whether the graph ends in logits, a sigmoid, a softmax or neither.

A last sigmoid or softmax is taken off for training and its logarithm taken exactly: a loss computed from rounded
probabilities stops learning where it is wrong and sure of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto

import torch
from onnx import GraphProto, NodeProto
from torch.nn import functional

from agent.core.errors import OperatorError
from agent.training.graph import output_name
from agent.training.operators import Tensor

LEAST_CHANCE = 1e-7
_SHAPE_ONLY = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


class Ending(Enum):
    """What the numbers that the trainer sees are."""

    RAW = auto()  # logits, or a regression's values
    SIGMOID = auto()  # logits, whose sigmoid the file takes
    SOFTMAX = auto()  # logits, whose softmax the file takes
    CHANCES = auto()  # probabilities, made in some other way


@dataclass(frozen=True, slots=True)
class Head:
    """How a model's output is read.

    Args:
        ending: What its numbers are, with the activation in `bypass` taken off.
        bypass: First output of that activation's node, if any.
    """

    ending: Ending
    bypass: frozenset[str] = frozenset()

    def log_chances(self, output: Tensor, rows: int) -> Tensor:
        """Logarithms of each class's chance, shape (rows, classes); one column of output means two classes.

        Args:
            output: What the model gave, with the activation taken off.
            rows: How many rows are judged; for a map of pixels, each pixel is one.

        Raises:
            OperatorError: The output has another form.
        """
        if output.numel() == rows:
            return self._of_one_column(output.reshape(-1))
        if output.dim() != 2 or output.shape[0] != rows or output.shape[1] < 2:
            raise _bad_output(output)
        if self.ending in {Ending.RAW, Ending.SOFTMAX}:
            return torch.log_softmax(output, dim=1)
        chances = torch.sigmoid(output) if self.ending is Ending.SIGMOID else output
        chances = chances.clamp(LEAST_CHANCE, 1.0)
        return torch.log(chances / chances.sum(dim=1, keepdim=True))

    def values(self, output: Tensor, rows: int) -> Tensor:
        """The output as the file gives it, one number a row, shape (rows,).

        Raises:
            OperatorError: It is not one number a row.
        """
        if output.numel() != rows:
            raise _bad_output(output)
        flat = output.reshape(-1)
        return torch.sigmoid(flat) if self.ending is Ending.SIGMOID else flat

    def _of_one_column(self, flat: Tensor) -> Tensor:
        if self.ending is Ending.SOFTMAX:
            raise _bad_output(flat)
        if self.ending is Ending.CHANCES:
            positive = flat.clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
            return torch.log(torch.stack((1 - positive, positive), dim=1))
        return torch.stack((functional.logsigmoid(-flat), functional.logsigmoid(flat)), dim=1)


def find_head(graph: GraphProto) -> Head:
    """Find out how the graph ends."""
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    node = makers.get(output_name(graph))
    straight = True
    while node is not None and node.op_type in _SHAPE_ONLY and uses[node.input[0]] == 1:
        straight = straight and node.op_type in {"Cast", "Identity"}
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "Sigmoid":
        return Head(Ending.SIGMOID, frozenset(node.output[:1]))
    if node is not None and node.op_type == "Softmax" and straight and _axis(node) in {-1, 1}:
        return Head(Ending.SOFTMAX, frozenset(node.output[:1]))
    return Head(Ending.CHANCES if _makes_chances(output_name(graph), makers) else Ending.RAW)


def _axis(node: NodeProto) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), -1)


def _makes_chances(name: str, makers: dict[str, NodeProto]) -> bool:
    """Whether a value consists of probabilities, as scikit-learn's converters make them: (1 - p, p), or normalised."""
    node = makers.get(name)
    if node is None:
        return False
    if node.op_type in {"Sigmoid", "Softmax"}:
        return True
    if node.op_type == "LinearClassifier":
        transform = next((item.s for item in node.attribute if item.name == "post_transform"), b"NONE")
        return transform in {b"LOGISTIC", b"SOFTMAX"}
    if node.op_type in _SHAPE_ONLY or node.op_type == "Normalizer":
        return _makes_chances(node.input[0], makers)
    if node.op_type == "Concat":
        return all(_makes_chances(part, makers) for part in node.input)
    return node.op_type == "Sub" and _makes_chances(node.input[1], makers)


def _bad_output(output: Tensor) -> OperatorError:
    return OperatorError(
        "model.output",
        f"The model's output has the shape {tuple(output.shape)}, which does not suit the study's loss.",
        next_step="Let the model give one number a row, or one a class.",
    )
