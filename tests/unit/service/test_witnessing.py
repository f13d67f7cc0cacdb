"""Whether anything may leave, as the witnesses say: compared at the start, cosigned within a day, never rolled back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import AgentStarted, LogOpened
from agent.audit.log import AuditLog
from agent.audit.note import CosignedCheckpoint
from agent.audit.witness import submit
from agent.core.errors import NetworkError, SecureHealthError
from agent.service.witnessing import WitnessDesk
from agent.trust.records import WitnessRecord
from tests.simulators.clock import SetClock
from tests.simulators.witness import NAME, PlayedWitness

DAY_S = 86_400
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@contextmanager
def opened(directory: Path, clock: SetClock) -> Iterator[AuditLog]:
    """A box's log, begun where there is none."""
    with AuditLog.open(directory, KEY, "secur-e-health/c/hospital-a/box/1") as log:
        if not log.size:
            at_s = int(clock.now().timestamp())
            key = log.key.public_key.hex()
            log.append(LogOpened(at_s=at_s, consortium="ab" * 32, site="hospital-a", node="box", key=key))
        yield log


@dataclass
class Line:
    """To a witness; may be down."""

    log: AuditLog
    witness: PlayedWitness
    down: bool = False
    submitted: int = 0

    def __call__(self, record: WitnessRecord) -> CosignedCheckpoint:
        self.submitted += 1
        if self.down:
            raise NetworkError("audit.witness_unreachable", "It does not answer.", next_step="Wait.")
        return submit(self.log, self.witness.post, self.witness.key)


@dataclass
class Scene:
    """A log, its witness, and the desk between."""

    log: AuditLog
    witness: PlayedWitness
    clock: SetClock
    line: Line = field(init=False)
    desk: WitnessDesk = field(init=False)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.line = Line(self.log, self.witness)
        record = WitnessRecord(
            name=NAME, vkey=self.witness.key.vkey, address="witness.example:9443", root_certificates=""
        )
        self.desk = WitnessDesk(
            self.log,
            lambda: (record,),
            self.line,
            now_s=lambda: int(self.clock.now().timestamp()),
            tell=self.told.append,
        )

    def grow(self) -> None:
        self.log.append(AgentStarted(at_s=int(self.clock.now().timestamp()), version="1.0"))

    def blocked(self) -> str:
        try:
            self.desk.check()
        except SecureHealthError as error:
            return error.code
        return ""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = SetClock()
    with (
        opened(tmp_path / "audit", clock) as log,
        PlayedWitness.beside(tmp_path / "witness", clock) as witness,
    ):
        witness.know(log)
        yield Scene(log, witness, clock)


def test_nothing_leaves_before_the_first_comparison(scene: Scene) -> None:
    assert scene.blocked() == "audit.not_compared"
    scene.desk.look()
    assert scene.blocked() == ""
    assert scene.told == [""]


def test_a_witness_out_of_reach_blocks_after_a_day_and_not_before(scene: Scene) -> None:
    scene.desk.look()
    scene.line.down = True
    scene.clock.move(DAY_S)
    scene.desk.look()
    assert scene.blocked() == ""
    assert "does not answer" in scene.told[-1]
    scene.clock.move(1)
    assert scene.blocked() == "audit.cosignature_old"
    scene.line.down = False
    scene.desk.look()
    assert scene.blocked() == ""


def test_what_must_be_covered_is_submitted_at_once_and_only_where_it_is_not_yet(scene: Scene) -> None:
    scene.desk.look()
    scene.grow()
    scene.desk.cover(scene.log.size)
    assert scene.line.submitted == 2
    scene.desk.cover(scene.log.size)
    assert scene.line.submitted == 2
    scene.grow()
    scene.line.down = True
    with pytest.raises(SecureHealthError) as refusal:
        scene.desk.cover(scene.log.size)
    assert refusal.value.code == "audit.not_witnessed"


def test_a_disk_put_back_blocks_for_good(scene: Scene, tmp_path: Path) -> None:
    scene.desk.look()
    scene.log.close()
    shutil.copytree(tmp_path / "audit", tmp_path / "older")
    with opened(tmp_path / "audit", scene.clock) as log:
        now = Scene(log, scene.witness, scene.clock)
        now.grow()
        now.desk.look()
        assert now.blocked() == ""
    with opened(tmp_path / "older", scene.clock) as log:
        back = Scene(log, scene.witness, scene.clock)
        back.desk.look()
        assert back.blocked() == "audit.rolled_back"
        for _ in range(5):  # growing past what the witness saw makes another history, not this one
            back.grow()
        back.desk.look()
        assert back.blocked() in {"audit.rolled_back", "audit.split_view"}
        assert "put back" in back.desk.blocked() or "history" in back.desk.blocked()


def test_a_consortium_without_witness_blocks_nothing(scene: Scene) -> None:
    desk = WitnessDesk(scene.log, tuple, scene.line, now_s=lambda: 0, tell=scene.told.append)
    desk.check()
    desk.cover(scene.log.size)
    assert (scene.line.submitted, desk.names, desk.last()) == (0, "", None)
