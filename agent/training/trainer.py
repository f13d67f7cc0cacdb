"""One hospital's part of a round: train on the local rows as the plan says, score on those held out."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agent.core.errors import OperatorError
from agent.data.quality import DeclinedError
from agent.secagg.terms import RecordTerms
from agent.training.graph import TorchGraph
from agent.training.head import Head, find_head
from agent.training.operators import Tensor
from agent.training.optimiser import Optimiser
from agent.training.privacy import PrivateSteps, RowGradients, RowLoss, SecretDice, check_rows_apart
from agent.trust.metrics import LOSS_CAP
from agent.trust.model import FloatVector, ModelFile
from agent.trust.study import TrainingPlan

SCORING_ROWS = 1024
"""Rows scored at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as torch takes them.

    Args:
        inputs: Shape (rows, ...) as the model's input, float32.
        targets: Shape (rows,) of 0 and 1 (or class numbers); for a map of pixels, one an output value.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Tensor) -> Batch:
        """Some of the rows."""
        return Batch(self.inputs[rows], self.targets[rows])


class Trainer:
    """A model, its plan, and the torch module that both become."""

    def __init__(
        self, model: ModelFile, plan: TrainingPlan, *, device: str = "cpu", record: RecordTerms | None = None
    ) -> None:
        """Prepare.

        Args:
            model: The checked model file.
            plan: How to train.
            device: `cpu` or `cuda`.
            record: Noise that protects each row, if the plan asks for it.

        Raises:
            OperatorError: The model's rows cannot be kept apart, and the plan protects each.
        """
        self._plan = plan
        self._record = record
        self._head: Head = find_head(model.graph)
        self.graph = TorchGraph(model, device=device, bypass=self._head.bypass)
        self._row_shape = model.row_shape
        self._by_row: RowGradients | None = None
        if record is not None:
            check_rows_apart(self.graph.trainable is not None)
            self._by_row = RowGradients(self._row_loss(), len(self.graph.vector), self.graph.device)

    def batch(self, inputs: npt.NDArray[np.float32], targets: npt.NDArray[np.float32]) -> Batch:
        """Bring a table's rows, shape (rows, width), into the model's form and onto its device.

        Raises:
            OperatorError: The model's rows have another number of values.
        """
        shape = _shape_of_rows(self._row_shape, inputs.shape[1])
        rows = torch.from_numpy(inputs).reshape(len(inputs), *shape)
        return Batch(rows.to(self.graph.device), torch.from_numpy(targets).to(self.graph.device))

    def rehearse(self, width: int) -> None:
        """Run the model on two rows of zeros, so that one that does not suit the study fails before data are used.

        Raises:
            OperatorError: It cannot be computed, or its output does not suit the loss.
        """
        zeros = self.batch(np.zeros((2, width), np.float32), np.zeros(2, np.float32))
        self.graph.set_training(False)
        with torch.no_grad():
            self._losses(self.graph.run(zeros.inputs), zeros.targets)
        if self._by_row is not None:
            self._by_row.rehearse(self.graph.vector, _packed(zeros))

    def train(self, parameters: FloatVector, rows: Batch, *, round_number: int) -> FloatVector:
        """Train for one round.

        Args:
            parameters: Where to start, shape (m,).
            rows: The local training rows.
            round_number: Gives the seed, together with the plan's.

        Returns:
            The parameters after training minus those before, shape (m,), float32.

        Raises:
            DeclinedError: The result is not finite.
        """
        seed = round_seed(self._plan.seed, round_number)
        torch.manual_seed(seed)
        self.graph.load(parameters)
        optimiser = Optimiser(self._plan, self.graph.vector, self.graph.trainable)
        if self._by_row is not None and self._record is not None:
            self._train_privately(optimiser, rows, self._by_row, self._record)
        else:
            self.graph.set_training(True)
            for chosen in self._batches(len(rows), torch.Generator().manual_seed(seed)):
                self._step(optimiser, rows.take(chosen.to(self.graph.device)))
        update: FloatVector = self.graph.vector.cpu().numpy() - parameters
        if not np.isfinite(update).all():
            raise DeclinedError(
                "training.diverged",
                "Training here ended in numbers that are not finite.",
                next_step="Ask the study's requester for a smaller learning rate.",
            )
        return update

    def score(self, parameters: FloatVector, rows: Batch, *, limit: int) -> dict[str, float]:
        """Score a model on held-out rows, in the words of `agent.trust.metrics.training_layout`.

        Args:
            parameters: The model, shape (m,).
            rows: The held-out rows.
            limit: Rows counted at most; where there are more, all counts are scaled down alike.
        """
        self.graph.load(parameters)
        self.graph.set_training(False)
        parts = [self._score_rows(part) for part in self._in_order(rows)]
        chances, losses, correct, targets = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        share = min(1.0, limit / len(targets))
        bins = self._plan.histogram_bins
        words = {
            "evaluated": len(targets),
            "correct": float(correct.sum()),
            "loss": float(np.minimum(losses, LOSS_CAP).sum(dtype=np.float64)),
            "brier": float(np.square(chances - targets).sum(dtype=np.float64)),
        }
        bin_of_row = np.minimum((chances * bins).astype(int), bins - 1)
        for name, of_class in (("negative", targets < 0.5), ("positive", targets > 0.5)):
            counts = np.bincount(bin_of_row[of_class], minlength=bins)
            words.update({f"{name}_{number}": float(count) for number, count in enumerate(counts)})
        return {name: value * share for name, value in words.items()}

    def _train_privately(self, optimiser: Optimiser, rows: Batch, by_row: RowGradients, record: RecordTerms) -> None:
        """Take the study's steps under noise; dropout is left out, as its dice are the study's and known to all."""
        if self._plan.record_privacy is None:
            raise AssertionError("a plan without record privacy has no such terms")
        self.graph.set_training(False)
        dice = SecretDice(secrets.token_bytes(32))
        steps = PrivateSteps(by_row, record, self._plan.record_privacy.max_gradient_norm, dice)
        packed = _packed(rows)
        with torch.no_grad():
            for _ in range(record.steps):
                optimiser.step(steps.gradient(self.graph.vector, packed))

    def _row_loss(self) -> RowLoss:
        """The loss of one packed row, as a function of the parameters."""

        def loss(parameters: Tensor, rows: Tensor) -> Tensor:
            shape = _shape_of_rows(self._row_shape, rows.shape[1] - 1)
            output = self.graph.run(rows[:, :-1].reshape(len(rows), *shape), self.graph.views(parameters))
            return self._losses(output, rows[:, -1])

        return loss

    def _step(self, optimiser: Optimiser, batch: Batch) -> None:
        self.graph.gradient.zero_()
        self._losses(self.graph.run(batch.inputs), batch.targets).mean().backward()
        with torch.no_grad():
            optimiser.step(self.graph.gradient)

    def _losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Loss of each row, shape (rows,)."""
        targets = targets.reshape(-1)
        if self._plan.loss == "mean-squared-error":
            return torch.square(self._head.values(output, len(targets)) - targets)
        logs = self._head.log_chances(output, len(targets))
        return -logs.gather(1, targets.to(torch.int64).unsqueeze(1)).squeeze(1)

    def _score_rows(self, rows: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Chance of the positive class, loss, whether right at 0.5, and target of each row."""
        with torch.no_grad():
            output = self.graph.run(rows.inputs)
            losses = self._losses(output, rows.targets)
            targets = rows.targets.reshape(-1)
            if self._plan.loss == "mean-squared-error":
                chances = self._head.values(output, len(targets)).clamp(0, 1)
                return chances, losses, (chances > 0.5) == (targets > 0.5), targets
            logs = self._head.log_chances(output, len(targets))
            likeliest = logs.argmax(dim=1)
            return logs[:, 1].exp(), losses, likeliest == targets, targets

    def _in_order(self, rows: Batch) -> Iterator[Batch]:
        for start in range(0, len(rows), SCORING_ROWS):
            yield Batch(rows.inputs[start : start + SCORING_ROWS], rows.targets[start : start + SCORING_ROWS])

    def _batches(self, rows: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Row numbers of each step: shuffled passes over the rows, until the plan's epochs or steps are done."""
        left = self._plan.steps if self._plan.epochs is None else None
        passes = 0
        while left != 0 and (self._plan.epochs is None or passes < self._plan.epochs):
            passes += 1
            chunks = list(torch.split(torch.randperm(rows, generator=generator), self._plan.batch_size))
            if len(chunks) > 1 and len(chunks[-1]) == 1 and self.graph.trainable is not None:
                chunks.pop()  # a single row has no batch statistics
            yield from chunks[:left]
            left = None if left is None else max(left - len(chunks), 0)


def round_seed(plan_seed: int, round_number: int) -> int:
    """The seed of a round: the same at every site, another one each round."""
    digest = hashlib.sha256(f"secur-e-health/round-seed/1 {plan_seed} {round_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda`, as configured; `auto` takes the GPU where there is one.

    Raises:
        OperatorError: A GPU is demanded and absent.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise OperatorError(
            "training.no_gpu",
            "The configuration demands a GPU, and torch finds none.",
            next_step='Check the driver, or set training.device = "auto".',
        )
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return "cuda"


def _packed(rows: Batch) -> Tensor:
    """Each row's inputs and its target side by side, shape (rows, values + 1)."""
    return torch.cat((rows.inputs.reshape(len(rows), -1), rows.targets.reshape(-1, 1).to(torch.float32)), dim=1)


def _shape_of_rows(row_shape: tuple[int | None, ...], width: int) -> tuple[int, ...]:
    """The model's row shape, its one open axis (if any) filled so that a row holds `width` values."""
    known = int(np.prod([size for size in row_shape if size is not None], dtype=np.int64))
    opened = row_shape.count(None)
    fits = known > 0 and (width == known if opened == 0 else opened == 1 and width % known == 0)
    if not fits:
        raise OperatorError(
            "model.wrong_width",
            f"The model takes rows of shape {row_shape}, and the study's fields give {width} values a row.",
            next_step="Submit a model whose input has as many values as the study's coded fields.",
        )
    return tuple(width // known if size is None else size for size in row_shape)
