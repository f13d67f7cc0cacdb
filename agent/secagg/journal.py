"""What a node must remember across restarts, as a port: the file behind it belongs to whoever wires the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.secagg.rules import OPEN_LOCK

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt at one round of one study on one data set.

    Args:
        round_number: Counts per (study, data set), over all runs.
        attempt: From 1.
        context: The round's context (ctx), 32 bytes.
        sites: The cohort, sorted; empty if the attempt was given up before it was seen.
        model: Digest of the model trained on.
        lock: `rules.OPEN_LOCK`, `rules.ABORT_LOCK`, or the digest of the agreed survivors.
    """

    round_number: int
    attempt: int
    context: bytes
    sites: tuple[str, ...]
    model: bytes
    lock: bytes = OPEN_LOCK


@dataclass(frozen=True, slots=True)
class AcceptedModel:
    """The model that a node accepted last.

    Args:
        round_number: In which round.
        parameters: Shape (m,), float32.
    """

    round_number: int
    parameters: Floats = field(repr=False)


class Journal(Protocol):
    """Durable memory of one (study, data set). Each `record_` returns only when a power cut can no longer undo it."""

    def latest_attempt(self) -> AttemptRecord | None:
        """The record of the greatest (round, attempt), as last written."""
        ...

    def cohort_of_model(self, model: bytes) -> tuple[str, ...] | None:
        """The cohort of the first recorded attempt on this model that names one."""
        ...

    def record_attempt(self, record: AttemptRecord) -> None:
        """Write a new attempt, or a new lock on the latest one."""
        ...

    def accepted_model(self) -> AcceptedModel | None:
        """The model accepted last."""
        ...

    def record_model(self, model: AcceptedModel) -> None:
        """Write the model accepted last."""
        ...


class MemoryJournal:
    """A journal without durability, for tests and simulators."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[int, int], AttemptRecord] = {}
        self._cohorts: dict[bytes, tuple[str, ...]] = {}
        self._model: AcceptedModel | None = None

    def latest_attempt(self) -> AttemptRecord | None:
        """See `Journal`."""
        return self._attempts[max(self._attempts)] if self._attempts else None

    def cohort_of_model(self, model: bytes) -> tuple[str, ...] | None:
        """See `Journal`."""
        return self._cohorts.get(model)

    def record_attempt(self, record: AttemptRecord) -> None:
        """See `Journal`."""
        self._attempts[record.round_number, record.attempt] = record
        if record.sites:
            self._cohorts.setdefault(record.model, record.sites)

    def accepted_model(self) -> AcceptedModel | None:
        """See `Journal`."""
        return self._model

    def record_model(self, model: AcceptedModel) -> None:
        """See `Journal`."""
        self._model = AcceptedModel(model.round_number, model.parameters.copy())
