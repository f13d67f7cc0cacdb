"""Record-level differential privacy: gradient steps whose noise hides what any one row added (DP-SGD).

Each step takes each row by a chance that the study fixes, computes the gradient of each by itself, bounds it, adds up
whole numbers and adds Gaussian noise to their sum. Neighbours are tables of the same length, one of whose rows may
count for nothing (zero-out adjacency); so how many rows there are is not hidden here, and is told to nobody either.

Gradients become whole multiples of a small unit, cut towards zero, before they are added: the bound then holds for the
numbers that are summed, whatever floating point does, and the result tells nothing but its value (Mironov, "On
significance of the least significant bits", 2012). Sampling and noise come from AES-256-CTR under a fresh secret key.

Source: Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1; Ponomareva et al., "How to DP-fy
ML", JAIR 2023, 2.1.1 (adjacency); gradients by row from Opacus, which runs each row through the model by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from agent.core.errors import OperatorError
from agent.secagg.masking import CHUNK_WORDS, KeyStream
from agent.secagg.terms import RecordTerms
from agent.secagg.transcript import expand_key
from agent.training.operators import Tensor

MAX_VALUES = 1 << 22
"""Values of gradients by row that are held at once."""
UNITS = 1 << 32
"""Units in the bound on one row's gradient."""
_MARGIN = 1.0 - 2.0**-20
"""A norm in floating point may be this much too small."""

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""Called with the parameters, shape (m,), and one packed row, shape (1, values); returns its loss, shape (1,)."""


class RowGradients:
    """Gradients by row, each row run by itself, so that none can reach into another's.

    Args:
        loss: Of one row.
        parameters: m.
        device: Where they are computed.
    """

    def __init__(self, loss: RowLoss, parameters: int, device: torch.device) -> None:
        # It loads much of torch beside; studies without record privacy do not wait for it.
        from opacus.grad_sample.functorch import prepare_layer  # noqa: PLC0415 (see above)

        self._module = _Rows(loss, parameters).to(device)
        prepare_layer(self._module)
        self._chunk = max(1, MAX_VALUES // parameters)
        self._gradients = self._together

    def rehearse(self, parameters: Tensor, rows: Tensor) -> None:
        """Find out, on packed `rows` without data, whether rows can be run side by side; else they are run in turn.

        Raises:
            OperatorError: The model cannot be computed.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch says so where it would take rows in turn at great cost
            try:
                self.bounded_sum(parameters, rows, 1.0)
            except (OperatorError, UserWarning):
                self._gradients = self._in_turn
        self.bounded_sum(parameters, rows, 1.0)

    def bounded_sum(self, parameters: Tensor, rows: Tensor, max_norm: float) -> Tensor:
        """The sum of the rows' gradients, each bounded by `max_norm`, in units of `max_norm / UNITS`.

        Args:
            parameters: Shape (m,).
            rows: Shape (rows, values), packed; may be empty.
            max_norm: Euclidean bound on one row's gradient.

        Returns:
            Shape (m,), int64.
        """
        total = torch.zeros(parameters.shape, dtype=torch.int64, device=parameters.device)
        for part in torch.split(rows, self._chunk):
            if len(part):
                total += whole_units(self._gradients(parameters, part), max_norm).sum(dim=0)
        return total

    def _together(self, parameters: Tensor, rows: Tensor) -> Tensor:
        ones = torch.ones(len(rows), 1, device=parameters.device)
        (gradients,) = self._module.ft_compute_sample_grad([parameters], rows, ones)
        return gradients

    def _in_turn(self, parameters: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            own = parameters.detach().requires_grad_()
            losses = [self._module.loss(own, row.unsqueeze(0)).sum() for row in rows]
            return torch.stack([torch.autograd.grad(loss, own)[0] for loss in losses])


class _Rows(nn.Module):  # type: ignore[misc]  # torch has no types here
    """A row's loss as the one layer that Opacus differentiates."""

    def __init__(self, loss: RowLoss, parameters: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(parameters))
        self.loss = loss

    def forward(self, rows: Tensor) -> Tensor:
        return self.loss(self.vector, rows)


def whole_units(gradients: Tensor, max_norm: float) -> Tensor:
    """Bound each row's gradient, shape (rows, m), and cut it to whole units of `max_norm / UNITS`: int64, same shape.

    A gradient that is not finite counts as none: it must not be the one that everybody sees.
    """
    exact = gradients.to(torch.float64)
    norms = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
    scale = (max_norm / norms).clamp(max=1.0) * (_MARGIN * UNITS / max_norm)
    return torch.where(torch.isfinite(norms) & (norms > 0), exact * scale, 0.0).trunc().to(torch.int64)


@dataclass(slots=True)
class SecretDice:
    """Chance that nobody else can repeat.

    Args:
        key: 32 fresh uniform bytes.
    """

    key: bytes
    drawn: int = 0

    def choose(self, rows: int, rate: float) -> npt.NDArray[np.intp]:
        """Which of `rows` rows take part in a step, each by itself with the chance `rate` (Poisson sampling)."""
        return np.flatnonzero(_fractions(self._next_key(), rows) < rate)

    def whole_noise(self, length: int, deviation: float) -> npt.NDArray[np.int64]:
        """Gaussian noise, rounded to whole numbers, shape (length,).

        Box and Muller's transform of 53-bit fractions; it ends at 8.5 standard deviations, beyond which lies 2^-55.
        """
        radii = np.sqrt(-2.0 * np.log(1.0 - _fractions(self._next_key(), length)))
        return np.rint(deviation * radii * np.cos(2 * np.pi * _fractions(self._next_key(), length))).astype(np.int64)

    def _next_key(self) -> bytes:
        self.drawn += 1
        return expand_key(self.key, "record-privacy", self.drawn)


class PrivateSteps:
    """The noisy gradients of one round.

    Args:
        gradients: By row.
        terms: The study's.
        max_norm: Euclidean bound on one row's gradient.
        dice: Of this round alone.
    """

    def __init__(self, gradients: RowGradients, terms: RecordTerms, max_norm: float, dice: SecretDice) -> None:
        self._gradients = gradients
        self._terms = terms
        self._max_norm = max_norm
        self._dice = dice

    def gradient(self, parameters: Tensor, rows: Tensor) -> Tensor:
        """The noisy mean gradient of one step over packed `rows`, shape (rows, values); returns shape (m,)."""
        chosen = torch.from_numpy(self._dice.choose(len(rows), self._terms.rate)).to(rows.device)
        total = self._gradients.bounded_sum(parameters, rows[chosen], self._max_norm).cpu().numpy()
        total += self._dice.whole_noise(len(total), self._terms.noise_multiplier * UNITS)
        # By the number of rows to be expected, not by those chosen: that one is a secret of the step.
        mean = total * (self._max_norm / UNITS / (self._terms.rate * len(rows)))
        return torch.from_numpy(mean.astype(np.float32)).to(parameters.device)


def check_rows_apart(statistics: bool) -> None:
    """Refuse a model that keeps statistics over rows.

    Raises:
        OperatorError: It does.
    """
    if statistics:
        raise OperatorError(
            "model.statistics_of_rows",
            "The model keeps running statistics over rows (batch normalisation): they carry a row past the noise.",
            next_step="Use layer or instance normalisation in the model, or a study without record privacy.",
        )


def _fractions(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Uniform in 0 to 1 - 2^-53, shape (count,)."""
    out = np.empty(count, np.float64)
    stream = KeyStream(key)
    for low in range(0, count, CHUNK_WORDS):
        part = out[low : low + CHUNK_WORDS]
        words = stream.next_words(len(part) + len(part) % 2)[: len(part)]
        np.multiply(words >> np.uint64(11), 2.0**-53, out=part)
    return out
