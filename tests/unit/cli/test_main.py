from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.cli import main as cli
from agent.service.state import AgentStatus, locked_state, store_status
from tests.unit.core.test_config import COMPLETE


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["seh-agent", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_version_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("seh-agent ")


def test_a_missing_configuration_is_the_operators_to_correct(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert _run(monkeypatch, "run", "--config", str(tmp_path / "none.toml")) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "config.unreadable" in said


def test_an_unknown_command_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "dance") == 2
    assert "dance" in capsys.readouterr().err


def test_the_status_of_a_running_agent_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "agent.toml").write_text(COMPLETE)
    arguments = ("status", "--config", str(tmp_path / "agent.toml"))
    assert _run(monkeypatch, *arguments) == 2
    assert "No agent runs" in capsys.readouterr().err
    with locked_state(tmp_path / "state"):
        status = AgentStatus(
            "lost",
            7,
            "a-study plain 3",
            "fleet.unreachable",
            "It does not answer.",
            "Wait.",
            session="needs-person",
            session_expires_s=1_800_000_000,
            session_sentence="A person must come.",
            session_next_step="Run `seh-agent key renew`.",
        )
        store_status(tmp_path / "state", status)
        assert _run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    for word in (
        "lost",
        "7",
        "a-study",
        "does not answer",
        "Wait.",
        "fleet.unreachable",
        "person must come",
        "key renew",
        "2027-01-15 08:00 UTC",
    ):
        assert word in shown
