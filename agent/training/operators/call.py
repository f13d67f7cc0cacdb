"""What an operator's implementation gets: its node's attributes, and whether the model is being trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch

from agent.core.errors import OperatorError

Tensor: TypeAlias = torch.Tensor
Result: TypeAlias = Tensor | tuple[Tensor, ...]
Operator = Callable[..., Result]
"""Called with a `Call` and the node's inputs in order, None for an absent one."""

MAX_ELEMENTS = 1 << 28
"""Elements that an operator may make at will; others cannot make more than their inputs hold."""


@dataclass(slots=True)
class Call:
    """One node.

    Args:
        name: Operator.
        attributes: Its attributes, as Python values.
        outputs: How many outputs somebody uses, counted from the first.
        opset: Version of the standard operator set.
        training: Whether dropout drops and batch statistics are used.
    """

    name: str
    attributes: Mapping[str, object] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18
    training: bool = False

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(cast("int", self.attributes.get(name, default)))

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(cast("float", self.attributes.get(name, default)))

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        value = self.attributes.get(name, default)
        return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """A list of integers; `default` where the attribute is absent."""
        value = self.attributes.get(name, default)
        return None if value is None else [int(item) for item in cast("Sequence[int]", value)]

    def unsupported(self, what: str) -> OperatorError:
        """The error for a form of the operator that we do not run."""
        return OperatorError(
            "model.unsupported_form",
            f"The model uses {self.name} with {what}, which this software does not run.",
            next_step="Rebuild that layer in its common form and export the model again.",
        )


def integers_of(tensor: Tensor | None) -> list[int] | None:
    """A small integer tensor as a list; None stays None."""
    return None if tensor is None else [int(item) for item in tensor.reshape(-1).tolist()]


def check_elements(call: Call, shape: Sequence[int]) -> None:
    """Refuse to make a tensor beyond our bound.

    Raises:
        OperatorError: The product of `shape` is too large.
    """
    count = 1
    for size in shape:
        count *= max(int(size), 0)
    if count > MAX_ELEMENTS:
        raise call.unsupported(f"a result of {count} values")


def together(*tensors: Any) -> tuple[Any, ...]:  # noqa: ANN401 - torch has no types here
    """Bring tensors to one device: small constants live on the CPU, the rest may be on a GPU."""
    device = next((item.device for item in tensors if item is not None and item.device.type != "cpu"), None)
    if device is None:
        return tensors
    return tuple(item if item is None else item.to(device) for item in tensors)
