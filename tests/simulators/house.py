"""One hospital's studies and rounds in the test's own process, with played workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from agent.core.wire import Stage
from agent.data.catalog import Dataset
from agent.federation.plain import PlainHandler
from agent.federation.rounds import OpenHandler, Rounds, StageHandler
from agent.federation.studies import StudyShelf
from agent.governance.admission import Gate
from agent.trust.study import Study
from tests.simulators.clock import SetClock
from tests.simulators.hospital import install_study, study_json
from tests.simulators.trainer import PlayedWorker, played_opener


@dataclass(slots=True)
class House:
    """One hospital's studies and rounds."""

    directory: Path
    clock: SetClock
    allowed: bool = True
    opener: Callable[[Study, Path, Dataset, str], PlayedWorker] = field(default_factory=played_opener)
    workers: list[PlayedWorker] = field(default_factory=list)
    extra: dict[Stage, StageHandler] = field(default_factory=dict)
    gate: Gate | None = None

    def install(self, **changes: Any) -> str:  # noqa: ANN401 - any part of a study
        """Write a study; returns its digest."""
        return install_study(self.directory / "studies", study_json(**changes))[1]

    @classmethod
    def build(cls, directory: Path) -> Self:
        """A hospital with one data set, and no study yet."""
        (directory / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
        return cls(directory, SetClock(datetime.now(UTC)))

    def rounds(self) -> Rounds:
        """Its table of stages, with nothing open."""

        def opened(study: Study, model: Path, dataset: Dataset, approved: str) -> PlayedWorker:
            self.workers.append(self.opener(study, model, dataset, approved))
            return self.workers[-1]

        shelf = StudyShelf(
            self.directory / "studies",
            self.directory / "catalog.toml",
            site="hospital-a",
            open_worker=opened,
            clock=self.clock,
            gate=self.gate,
        )
        handlers: dict[Stage, StageHandler] = {
            Stage.OPEN: OpenHandler(),
            Stage.PLAIN: PlainHandler(allowed=self.allowed),
        }
        return Rounds(shelf, handlers | self.extra)
