"""SGD, Adam and AdamW on one flat vector, step for step as torch.optim takes them.

torch's own optimisers load its compiler at their first step, a second and more in every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from agent.training.operators import Tensor
from agent.trust.study import TrainingPlan

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimiser:
    """Moves a vector against its gradient; holds the state of one round."""

    def __init__(self, plan: TrainingPlan, vector: Tensor, trainable: Tensor | None) -> None:
        """Prepare.

        Args:
            plan: Which optimiser, learning rate, momentum, weight decay and proximal term.
            vector: The parameters, shape (m,); moved in place.
            trainable: Shape (m,), 0 where neither decay nor the proximal term may act; None: nowhere.
        """
        self._plan = plan
        self._vector = vector
        self._trainable = trainable
        self._start = vector.clone() if plan.proximal else None
        self._steps = 0
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def step(self, gradient: Tensor) -> None:
        """Take one step; `gradient`, shape (m,), is spent."""
        self._steps += 1
        if self._start is not None:
            # FedProx (Li et al., 2020): a pull towards the model received.
            self._add(gradient, self._vector - self._start, self._plan.proximal)
        if self._plan.weight_decay and self._plan.optimiser != "adamw":
            self._add(gradient, self._vector, self._plan.weight_decay)
        _RULES[self._plan.optimiser](self, gradient)

    def _add(self, target: Tensor, term: Tensor, factor: float) -> None:
        if self._trainable is None:
            target.add_(term, alpha=factor)
        else:
            target.addcmul_(term, self._trainable, value=factor)

    def _sgd(self, gradient: Tensor) -> None:
        if self._plan.momentum:
            if self._first is None:
                self._first = gradient.clone()
            else:
                self._first.mul_(self._plan.momentum).add_(gradient)
            gradient = self._first
        self._vector.add_(gradient, alpha=-self._plan.learning_rate)

    def _adam(self, gradient: Tensor) -> None:
        """Kingma and Ba, 2015, algorithm 1."""
        if self._first is None or self._second is None:
            self._first, self._second = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self._first.lerp_(gradient, 1 - BETAS[0])
        self._second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        scale = (1 - BETAS[1] ** self._steps) ** 0.5
        spread = self._second.sqrt().div_(scale).add_(EPSILON)
        self._vector.addcdiv_(self._first, spread, value=-self._plan.learning_rate / (1 - BETAS[0] ** self._steps))

    def _adamw(self, gradient: Tensor) -> None:
        """Loshchilov and Hutter, 2019: decay beside the gradient, not in it."""
        self._add(self._vector, self._vector.clone(), -self._plan.learning_rate * self._plan.weight_decay)
        self._adam(gradient)


_RULES: Mapping[str, Callable[[Optimiser, Tensor], None]] = MappingProxyType(
    {"sgd": Optimiser._sgd, "adam": Optimiser._adam, "adamw": Optimiser._adamw}  # noqa: SLF001 - its own table
)
