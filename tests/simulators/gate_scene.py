"""One hospital's gate with all that is behind it, in memory: permit, approvals, budget and log are the real ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest

from agent.core.errors import OperatorError
from agent.data.catalog import load_catalog
from agent.data.fingerprint import FileDigests
from agent.governance.admission import Candidate
from agent.governance.budget import BudgetBook
from agent.governance.gate import StudyGate
from agent.trust.study import Study, parse_study, study_digest
from tests.simulators.clock import SetClock
from tests.simulators.governed import PURPOSE, write_policy
from tests.simulators.hospital import MODEL, study_json
from tests.simulators.steward import Desk, PasskeySteward

LeafT = TypeVar("LeafT")
SITES = ("hospital-a", "hospital-b", "hospital-c")


@dataclass
class Door:
    """What the witness lets leave."""

    covered: list[int] = field(default_factory=list)
    refusal: OperatorError | None = None

    def check(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def cover(self, size: int) -> None:
        self.check()
        self.covered.append(size)


@dataclass
class Scene:
    """One hospital's gate with all that is behind it."""

    place: Path
    desk: Desk
    door: Door
    clock: SetClock
    gate: StudyGate
    steward: PasskeySteward
    study: Study
    digest: str

    @property
    def candidate(self) -> Candidate:
        dataset = load_catalog(self.place / "catalog.toml").dataset("local")
        return Candidate(self.study, self.digest, self.place / "model.onnx", dataset)

    def approve(self, steward: PasskeySteward | None = None) -> int:
        approval = self.desk.approve(steward or self.steward, self.gate.matter_of(self.candidate))
        return approval.challenge.sequence

    def leaves(self, kind: type[LeafT]) -> list[LeafT]:
        return [leaf for leaf in self.desk.audit.leaves(0, self.desk.audit.size) if isinstance(leaf, kind)]

    def refused(self) -> str:
        with pytest.raises(OperatorError) as refusal:
            self.gate.admit(self.candidate)
        return refusal.value.code


def gate_scene(tmp_path: Path) -> Scene:
    """A study that lies here, data, a policy that lets it be approved, and nobody's approval yet."""
    data = study_json(SITES, use=PURPOSE)
    (tmp_path / "model.onnx").write_bytes(MODEL)
    (tmp_path / "local.csv").write_text("age,ill\n50,1\n", encoding="utf-8")
    (tmp_path / "catalog.toml").write_text('[datasets.local]\nschema = "played"\nsource = "local.csv"\n')
    write_policy(tmp_path / "policy.toml")
    now = datetime.now(UTC)
    clock, door = SetClock(now), Door()
    desk = Desk(tmp_path / "approvals", now_s=int(now.timestamp()))
    steward = PasskeySteward("dr-a")
    desk.employ(steward)
    gate = StudyGate(
        desk.audit,
        desk.book,
        BudgetBook(desk.audit, None, clock),
        door,
        policy=tmp_path / "policy.toml",
        site="hospital-a",
        digests=FileDigests(),
        clock=clock,
    )
    return Scene(tmp_path, desk, door, clock, gate, steward, parse_study(data), study_digest(data))
