"""A training worker that needs no data and no torch: every update is one step, by default the study's seed / 1000."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from agent.core.errors import SoftwareError
from agent.data.catalog import Dataset
from agent.data.quality import DeclinedError
from agent.federation.studies import Vector
from agent.trust.metrics import Moments
from agent.trust.study import Study

ROWS = 200


@dataclass(frozen=True, slots=True)
class PlayedResult:
    """What a round gives."""

    update: Vector
    weight: int = ROWS
    metrics: Mapping[str, float] = field(default_factory=lambda: {"trained": ROWS, "evaluated": 100.0, "correct": 80.0})


@dataclass(slots=True)
class PlayedWorker:
    """A worker that can be slow, and can fail."""

    study: Study
    training_s: float = 0.0
    step: float | None = None
    rows: int = ROWS
    failure: Exception | None = None
    calls: list[str] = field(default_factory=list)
    moments_seen: list[Mapping[str, Moments] | None] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def initial_parameters(self) -> Vector:
        """Ones."""
        return np.ones(self.study.model.parameters, dtype=np.float32)

    def moments(self) -> PlayedResult:
        """Sums of nothing."""
        self._work("moments")
        return PlayedResult(np.zeros(0, dtype=np.float32), metrics={"trained": ROWS})

    def train(
        self, parameters: Vector, *, round_number: int, moments: Mapping[str, Moments] | None = None
    ) -> PlayedResult:
        """Move every parameter by the same step."""
        self.moments_seen.append(moments)
        self._work(f"train {round_number}")
        step = self.study.plan.seed / 1000 if self.step is None else self.step
        return PlayedResult(np.full(len(parameters), step, dtype=np.float32), self.rows)

    def evaluate(self, parameters: Vector, *, moments: Mapping[str, Moments] | None = None) -> PlayedResult:
        """Score."""
        self.moments_seen.append(moments)
        self._work("evaluate")
        return PlayedResult(np.zeros(0, dtype=np.float32))

    def close(self) -> None:
        """End it, and whatever call is under way."""
        self.closed.set()

    def _work(self, what: str) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure
        if self.closed.wait(self.training_s):
            raise SoftwareError("training.ended", "The worker was ended.", next_step="Nothing.")


def played_opener(
    *, training_s: float = 0.0, step: float | None = None, rows: int = ROWS, fits: bool = True
) -> Callable[[Study, Path, Dataset, str], PlayedWorker]:
    """An opener of played workers.

    Args:
        training_s: How long each call takes.
        step: By how much training moves each parameter; by default the study's seed / 1000.
        rows: Training rows.
        fits: Whether the data set fits; else opening declines.
    """

    def open_worker(study: Study, model: Path, dataset: Dataset, approved: str) -> PlayedWorker:
        if not fits:
            raise DeclinedError("data.played", "The data set does not fit.", next_step="Nothing.")
        return PlayedWorker(study, training_s, step, rows)

    return open_worker
