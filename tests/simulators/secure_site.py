"""A hospital that answers secure aggregation with the real handler, on a data set of one vector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import SystemClock
from agent.core.errors import PeerProtocolError, SoftwareError
from agent.core.ids import SiteID
from agent.core.wire import Frame, Refusal, Stage
from agent.data.catalog import Dataset, load_catalog
from agent.federation.faults import RefusedError
from agent.federation.secure import SecureHandler, SecureSettings
from agent.federation.studies import StudyFolder, StudyRun, Vector
from agent.identity.key import HardwareKey, init_key
from agent.identity.session import SessionKeeper, SessionKeySource, Subject
from agent.trust.counters import COUNTERS_FILE_NAME, CounterStore
from agent.trust.metrics import Moments
from agent.trust.peers import PinnedPeers, consortium_digest, node_name
from agent.trust.roster import Roster, RosterNode
from agent.trust.study import Study
from tests.simulators.scripted_line import Said


@dataclass(frozen=True, slots=True)
class Gave:
    """What a worker gives back."""

    update: Vector
    weight: int
    metrics: Mapping[str, float]


@dataclass(slots=True)
class VectorWorker:
    """Moves the model by a constant; fails when told to."""

    step: float
    weight: int
    parameters: int
    initial: float = 1.0
    broken: bool = False

    @property
    def initial_parameters(self) -> Vector:
        """The model of `tests.simulators.played_study`."""
        return np.full(self.parameters, self.initial, dtype=np.float32)

    def moments(self) -> Gave:
        """Count rows."""
        return Gave(np.empty(0, dtype=np.float32), self.weight, {"trained": self.weight})

    def train(self, parameters: Vector, *, round_number: int, moments: Mapping[str, Moments] | None = None) -> Gave:
        """Give the constant."""
        self._work()
        return Gave(np.full(self.parameters, self.step, dtype=np.float32), self.weight, {"evaluated": 2, "correct": 1})

    def evaluate(self, parameters: Vector, *, moments: Mapping[str, Moments] | None = None) -> Gave:
        """Count."""
        self._work()
        return Gave(np.empty(0, dtype=np.float32), self.weight, {"evaluated": 2, "correct": 1})

    def close(self) -> None:
        """Nothing to end."""

    def _work(self) -> None:
        if self.broken:
            raise SoftwareError("tests.broken", "The worker broke.", next_step="None.")


@dataclass(slots=True)
class SecureSite:
    """One hospital: key, journal, worker, and what it answered."""

    site: str
    directory: Path
    key: HardwareKey
    worker: VectorWorker
    silent_at: set[Stage] = field(default_factory=set)
    restart_before: set[tuple[Stage, int, int]] = field(default_factory=set)
    seen: list[Frame] = field(default_factory=list)
    journal_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    session_keys: SessionKeySource | None = None
    refused: list[PeerProtocolError] = field(default_factory=list)
    timestamp_version: int = 0
    _handler: SecureHandler | None = None
    _run: StudyRun | None = None
    _roster: Roster | None = None

    @classmethod
    def make(cls, directory: Path, site: str, *, step: float, weight: int, parameters: int) -> SecureSite:
        """Make the hospital's key."""
        directory.mkdir(parents=True)
        key = init_key(f"software:{directory / 'node.key'}")
        return cls(site, directory, key, VectorWorker(step, weight, parameters))

    def join(self, study: Study, digest: str, roster: Roster) -> None:
        """Open the study under a roster."""
        (self.directory / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
        dataset: Dataset = load_catalog(self.directory / "catalog.toml").datasets["local"]
        self._run = StudyRun(StudyFolder(study, digest, self.directory / "model.onnx"), dataset, self.worker)
        self._roster = roster
        self.restart()

    def restart(self) -> None:
        """Begin as after a power cut: the journal stays, all secrets are gone."""
        assert self._roster is not None
        clock, coordinator = SystemClock(), self._roster.coordinator_key()
        subject = Subject(consortium_digest(coordinator), self.site, node_name(self.key.key_id))
        keeper = SessionKeeper(
            self.key,
            subject,
            clock=clock,
            timestamp_version=lambda: self.timestamp_version,
            new_session_key=self.session_keys,
        )
        keeper.renew()
        peers = PinnedPeers(self._roster, clock, CounterStore(self.directory / COUNTERS_FILE_NAME))
        settings = SecureSettings(
            self.site, self.directory, peers, coordinator, keeper.current, lambda: False, self.journal_key
        )
        self._handler = SecureHandler(settings)

    def answer(self, frame: Frame) -> Frame | Said | None:
        """Answer one frame as the node's loop would."""
        assert self._handler is not None
        assert self._run is not None
        self.seen.append(frame)
        if (frame.stage, frame.round, frame.attempt) in self.restart_before:
            self.restart_before.discard((frame.stage, frame.round, frame.attempt))
            self.restart()
        if frame.stage in self.silent_at:
            return None
        if frame.stage in {Stage.OPEN, Stage.CLOSE}:
            return Frame(frame.study, frame.stage, frame.round, frame.attempt)
        try:
            return self._handler.handle(self._run, frame)
        except PeerProtocolError as error:
            self.refused.append(error)
            return Said({"refusal": Refusal.PROTOCOL})
        except RefusedError as refused:
            return Said({"refusal": refused.refusal})


def roster_of(sites: Mapping[str, HardwareKey], coordinator: ec.EllipticCurvePublicKey) -> Roster:
    """A roster of one node a site."""
    return Roster({SiteID(site): (RosterNode(SiteID(site), key.root()),) for site, key in sites.items()}, coordinator)
