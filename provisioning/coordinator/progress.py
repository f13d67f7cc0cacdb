"""How far a study has come: events that the coordinator appends and others follow, one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from agent.core.clock import Clock
from agent.core.errors import SecureHealthError
from provisioning.coordinator.exchange import Arrival, Faulty, Lost, Refused, Reply, Returned

FOLLOW_INTERVAL_S = 0.1
OVER_INTERVAL_S = 2.0


class Happening(StrEnum):
    """What an event is about; the fields that come with it stand beside it."""

    STARTED = "started"  # study, digest, rounds, sites, environment, aggregation, strategy, round (the first to run)
    WAITING = "waiting"  # sites
    OPENED = "opened"  # site
    REFUSED = "refused"  # site, refusal, round, stage
    LOST = "lost"  # site, round, why
    RETURNED = "returned"  # site, round
    FAULTY = "faulty"  # site, round, code, sentence
    DROPPED = "dropped"  # sites, round: the round goes on without them
    MOMENTS = "moments"  # fields, weight, seconds, bytes_up, bytes_down
    ROUND = "round"  # see `RoundRecord`
    DAMAGED = "damaged"  # file: a checkpoint that was passed over
    FINISHED = "finished"  # rounds, seconds, model
    PAUSED = "paused"  # code, sentence, next_step, round: can be resumed
    FAILED = "failed"  # code, sentence, next_step


ENDINGS = frozenset({Happening.FINISHED, Happening.PAUSED, Happening.FAILED})


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round as it is shown and kept.

    Args:
        round: 1..rounds for training, rounds + 1 for the last evaluation.
        kind: `train` or `evaluate`.
        model_round: After how many training rounds the model stood that the metrics describe.
        cohort: Sites in the sum.
        weight: Training rows in the sum; 0 for the evaluation.
        evaluated: Held-out rows that the metrics come from.
        loss, accuracy, brier, auc, calibration: Of the cohort; None where its rows cannot say.
        seconds: Wall time of the round, model in to model stored.
        bytes_up: From nodes to coordinator, frames only.
        bytes_down: From coordinator to nodes.
        legs: Exchanges with the nodes.
        attempts: How often the round was begun.
        step_scale: 1, or by what factor the step was shortened to stay within the study's bound.
    """

    round: int
    kind: str
    model_round: int
    cohort: tuple[str, ...]
    weight: int
    evaluated: int
    loss: float | None
    accuracy: float | None
    brier: float | None
    auc: float | None
    calibration: float | None
    seconds: float
    bytes_up: int
    bytes_down: int
    legs: int
    attempts: int = 1
    step_scale: float = 1.0

    def as_json(self) -> dict[str, object]:
        """The record's fields, without NaN."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


class ProgressLog:
    """Appends events to a file; each is written whole, so that a follower never reads half a line."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if not _ends_with_newline(path):
            os.write(self._descriptor, b"\n")  # a power cut left half a line; `read_events` passes over it

    def note(self, happening: Happening, **details: object) -> None:
        """Append one event."""
        event: dict[str, object] = {
            "event": happening.value,
            "time": self._clock.now().isoformat(timespec="milliseconds"),
        }
        event |= {name: _plain(value) for name, value in details.items()}
        os.write(self._descriptor, json.dumps(event, allow_nan=False).encode() + b"\n")

    def note_error(self, happening: Happening, error: SecureHealthError, **details: object) -> None:
        """Append one event about a failure."""
        self.note(happening, code=error.code, sentence=error.sentence, next_step=error.next_step, **details)

    def note_arrival(self, round_number: int, arrival: Arrival) -> None:
        """Append what came from a site, unless it is the answer that was asked for."""
        match arrival:
            case Refused(site, refusal):
                self.note(Happening.REFUSED, site=site, round=round_number, refusal=refusal.value)
            case Faulty(site, error):
                self.note_error(Happening.FAULTY, error, site=site, round=round_number)
            case Lost(site, why):
                self.note(Happening.LOST, site=site, round=round_number, why=why)
            case Returned(site):
                self.note(Happening.RETURNED, site=site, round=round_number)
            case Reply():
                pass

    def close(self) -> None:
        """Force what was written to the disk and let go of the file."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)


def read_events(path: Path, *, offset: int = 0) -> tuple[list[dict[str, object]], int]:
    """Read whole lines from byte `offset` on.

    Returns:
        The events, and the offset to go on from. A line that is no JSON object is passed over.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    events = (_parse_line(line) for line in whole.splitlines())
    return [event for event in events if event is not None], offset + len(whole)


def follow_events(
    path: Path, *, offset: int = 0, is_over: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, object]]:
    """Yield events as they are written, up to and including one that ends the run.

    Args:
        path: The progress file; it may not be there yet.
        offset: Where to begin.
        is_over: Whether the run has ended without saying so; asked every `OVER_INTERVAL_S`.
    """
    asked_s = time.monotonic()
    while True:
        over = False
        if time.monotonic() - asked_s > OVER_INTERVAL_S:
            over, asked_s = is_over(), time.monotonic()
        events, offset = read_events(path, offset=offset)
        for event in events:
            yield event
            if event["event"] in ENDINGS:
                return
        if over:
            return
        time.sleep(FOLLOW_INTERVAL_S)


def seconds_between(earlier: dict[str, object], later: dict[str, object]) -> float:
    """Wall time between two events, in seconds."""
    first, second = (datetime.fromisoformat(str(event["time"])).astimezone(UTC) for event in (earlier, later))
    return (second - first).total_seconds()


def _parse_line(line: bytes) -> dict[str, object] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _ends_with_newline(path: Path) -> bool:
    data = path.read_bytes()[-1:]
    return data in {b"", b"\n"}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, 9) if math.isfinite(value) else None
    if isinstance(value, (tuple, list, set, frozenset)):
        return [_plain(item) for item in value]
    return value
