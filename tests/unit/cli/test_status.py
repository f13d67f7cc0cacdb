"""`seh-agent status` on a box that governs studies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.box_view import (
    AuditView,
    BudgetAnswer,
    BudgetView,
    RoundsAnswer,
    RoundView,
    StudiesAnswer,
    StudyLine,
)
from agent.core.clock import SystemClock
from agent.service.control import ControlDesk, ControlSocket
from agent.service.requests import Handlers
from agent.service.state import AgentStatus, locked_state, store_status
from tests.unit.core.test_config import COMPLETE

STATUS = AgentStatus("online", 7, site="hospital-a")
STUDY = StudyLine(
    study="heart",
    study_digest="ab",
    title="He\x1b[2Jart",
    requester="R",
    state="approved",
    dataset="local",
    running=True,
)
ROUND = RoundView(
    study="heart",
    title="Heart",
    dataset="local",
    round=2,
    rounds=3,
    attempt=1,
    stage="masked-input",
    cohort=("a", "b", "c"),
    bytes=2048,
    seconds=1.5,
    under_way=True,
)
BOUNDED = BudgetView(
    dataset="local", unit="hospital", epsilon=3.0, delta=1e-5, spent=1.0, reserved=0.5, left=1.5, releases_allowed=0
)
UNBOUNDED = BudgetView(
    dataset="other", unit="hospital", epsilon=0, delta=0, spent=0, reserved=0, left=0, releases=4, releases_allowed=9
)
HANDLERS: Handlers = {
    "studies": lambda _: StudiesAnswer(studies=(STUDY,)),
    "rounds": lambda _: RoundsAnswer(rounds=(ROUND,)),
    "budget": lambda _: BudgetAnswer(budget=(BOUNDED, UNBOUNDED)),
    "audit": lambda _: AuditView(
        size=12, cosigned_size=9, cosigned_s=1_800_000_000, witness="w.example/1", blocked="It was put back."
    ),
}


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Path]:
    """An agent's directory, with an agent that answers."""
    (tmp_path / "agent.toml").write_text(COMPLETE, encoding="utf-8")
    state = tmp_path / "state"
    desk = ControlDesk(None, lambda: STATUS, handlers=HANDLERS)
    with locked_state(state), ControlSocket(state, desk.answer, SystemClock()):
        store_status(state, STATUS)
        yield tmp_path / "agent.toml"


def test_status_names_studies_rounds_budget_and_witness(box: Path) -> None:
    said = CliRunner().invoke(app, ["status", "-c", str(box)]).output
    for words in (
        "study heart: approved, running",
        "heart: round 2 of 3, attempt 1, under way, masked-input, 1.5 s, 3 hospitals, 2048 masked bytes left",
        "budget of local for each hospital: epsilon 3, 1.00 spent, 0.50 set aside, 1.50 left",
        "budget of other: 4 of 9 sums without a bound have left",
        "audit log: 12 entries; w.example/1: cosigned 9 at 2027-01-15",
        "NOTHING LEAVES: It was put back.",
    ):
        assert words in said
    assert "\x1b" not in said


def test_status_is_watched_until_it_is_interrupted(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class Impatient(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) == 3:
                raise KeyboardInterrupt
            return False

    monkeypatch.setattr("agent.cli.status.threading.Event", Impatient)
    done = CliRunner().invoke(app, ["status", "--watch", "-c", str(box)])
    assert done.exit_code == 0
    assert done.output.count("study heart: approved") == 3
