"""A box that enrols at a played registrar: its folder, its key, what it was told, and power cuts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from agent.enrolment.client import Enrolment, Surroundings
from agent.enrolment.conversation import Box
from agent.enrolment.line import Patience, RegistrarLine, Request
from agent.enrolment.progress import Progress, Step
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.identity.key import HardwareKey, init_key
from agent.trust.records import ConsortiumRecord
from agent.trust.snapshot import TrustSnapshot
from tests.simulators.registrar import PlayedRegistrar


class PowerCutError(BaseException):
    """The power went."""


@dataclass
class QuickClock:
    """Wall time as it is; seconds run as fast as somebody waits."""

    waited_s: float = 0.0
    ahead: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic_s(self) -> float:
        return self.waited_s


@dataclass(slots=True)
class PlayedRepository:
    """What the registrar's repository says, as if it had been fetched and verified."""

    registrar: PlayedRegistrar
    refreshed: int = 0

    def refresh(self) -> TrustSnapshot:
        self.refreshed += 1
        return self.registrar.snapshot()

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class EnrollingBox:
    """One box.

    Args:
        directory: Its own.
        registrar: Whose repository it sees.
        key: Its key.
        patience_s: How long it waits in all before it is told to stop.
    """

    directory: Path
    registrar: PlayedRegistrar
    key: HardwareKey
    patience_s: float = 600.0
    preset: str = ""
    confirms: bool | None = True
    clock: QuickClock = field(default_factory=QuickClock)
    told: list[Progress] = field(default_factory=list)
    asked_to_confirm: list[str] = field(default_factory=list)

    @classmethod
    def make(cls, directory: Path, registrar: PlayedRegistrar) -> Self:
        """With a software key."""
        return cls(directory, registrar, init_key(f"software:{directory / 'node.key'}"))

    @property
    def folder(self) -> EnrolmentFolder:
        """What outlives it."""
        return EnrolmentFolder.of(self.directory / "state")

    @property
    def enrolment(self) -> Enrolment:
        """As after a start: nothing is remembered but what the folder holds."""
        around = Surroundings(
            folder=self.folder,
            open_repository=lambda *_: PlayedRepository(self.registrar),
            clock=self.clock,
            patience=Patience(self._wait, self.told.append, random.Random(1)),
            tell=self.told.append,
            confirm=None if self.confirms is None else self._confirm,
            preset=self.preset,
        )
        return Enrolment(Box(self.key, self.key.public_key()), around)

    def enrol(self, text: str, *, replaces: bool = False) -> EnrolmentRecord:
        """From the beginning, or on from where it was."""
        return self.enrolment.start(text, replaces=replaces)

    @property
    def steps(self) -> list[Step]:
        """The steps that it was told of, each once."""
        return list(dict.fromkeys(news.step for news in self.told))

    @property
    def troubles(self) -> list[str]:
        """What was in the way."""
        return [news.trouble for news in self.told if news.trouble]

    def _wait(self, seconds: float) -> bool:
        self.clock.waited_s += seconds
        return self.clock.waited_s > self.patience_s

    def _confirm(self, consortium: ConsortiumRecord, words: str) -> bool:
        self.asked_to_confirm.append(words)
        return bool(self.confirms)


class PowerCut:
    """Cuts the power at the n-th moment inside the block: before and after each write and each request is one.

    Args:
        monkeypatch: Undone by the test.
        at: Which moment; None never, which counts them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
        self._monkeypatch = monkeypatch
        self._at = at
        self.moments = 0

    def _moment(self) -> None:
        if self.moments == self._at:
            raise PowerCutError
        self.moments += 1

    def __enter__(self) -> Self:
        write, forget, send = EnrolmentFolder._write, EnrolmentFolder.forget_pending, RegistrarLine._send

        def cut_write(folder: EnrolmentFolder, name: str, data: bytes) -> None:
            self._around(lambda: write(folder, name, data))

        def cut_forget(folder: EnrolmentFolder) -> None:
            self._around(lambda: forget(folder))

        def cut_send(line: RegistrarLine, request: Request, limit_bytes: int) -> bytes:
            answers: list[bytes] = []
            self._around(lambda: answers.append(send(line, request, limit_bytes)))
            return answers[0]

        self._monkeypatch.setattr(EnrolmentFolder, "_write", cut_write)
        self._monkeypatch.setattr(EnrolmentFolder, "forget_pending", cut_forget)
        self._monkeypatch.setattr(RegistrarLine, "_send", cut_send)
        return self

    def _around(self, work: Callable[[], object]) -> None:
        self._moment()
        work()
        self._moment()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._monkeypatch.undo()
        return kind is PowerCutError
