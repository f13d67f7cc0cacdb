"""The newest round of each study, for people to watch; nothing is decided by it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Final

from agent.core.clock import Clock
from agent.core.wire import Frame, Stage

MAX_STUDIES: Final = 40
STALE_S: Final = 900.0
"""A round whose next leg has not come for so long is no longer under way."""
_LAST: Final = {Stage.PLAIN, Stage.AGREE, Stage.REVEAL}
"""Legs that may be a round's last; the keys of those who vanished are revealed after the others have agreed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One round of a study.

    Args:
        study: Its id.
        title: Its title.
        dataset: The data set.
        rounds: Rounds of training in the study.
        round_number: 0 for sums of fields, rounds + 1 for the evaluation.
        attempt: At it.
        stage: The last leg that was answered, or is in work.
        cohort: The hospitals in it, once known.
        size: Bytes of the update that left; 0 before.
        started: Unix time of the first leg.
        started_s: The same on the monotonic clock.
        heard_s: When the last leg came, likewise.
        over: Whether the last leg was answered.
    """

    study: str
    title: str
    dataset: str
    rounds: int
    round_number: int
    attempt: int
    stage: str
    cohort: tuple[str, ...]
    size: int
    started: int
    started_s: float
    heard_s: float
    over: bool = False


class RoundBoard:
    """Remembers the newest round of each study. Thread-safe.

    Args:
        clock: The service's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rounds: dict[str, Progress] = {}
        self._lock = threading.Lock()

    def note_leg(self, frame: Frame, *, title: str, dataset: str, rounds: int) -> None:
        """A leg of a round came."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            known = self._rounds.pop(frame.study, None)
            if known is None or (known.round_number, known.attempt) != (frame.round, frame.attempt):
                started = int(self._clock.now().timestamp())
                known = Progress(
                    frame.study,
                    title,
                    dataset,
                    rounds,
                    frame.round,
                    frame.attempt,
                    frame.stage.value,
                    (),
                    0,
                    started,
                    now_s,
                    now_s,
                )
            while len(self._rounds) >= MAX_STUDIES:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[frame.study] = replace(known, stage=frame.stage.value, heard_s=now_s, over=False)

    def note_sent(self, study: str, cohort: tuple[str, ...], size: int) -> None:
        """An update of the round left."""
        with self._lock:
            if study in self._rounds:
                self._rounds[study] = replace(self._rounds[study], cohort=cohort, size=size)

    def note_answered(self, frame: Frame) -> None:
        """The leg was answered."""
        with self._lock:
            known = self._rounds.get(frame.study)
            if known is not None and frame.stage in _LAST:
                self._rounds[frame.study] = replace(known, over=True, heard_s=self._clock.monotonic_s())

    def newest(self) -> list[tuple[Progress, bool]]:
        """Rounds, the newest first, each with whether it is under way."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            found = list(reversed(self._rounds.values()))
        return [(progress, not progress.over and now_s - progress.heard_s < STALE_S) for progress in found]
