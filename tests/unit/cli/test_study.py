"""`seh-agent study resume`, as a technician meets it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.errors import OperatorError
from agent.federation.journal import FileJournal
from agent.federation.secure import journal_directory
from tests.simulators.hospital import STUDY_ID, install_study, study_json


@pytest.fixture
def box(tmp_path: Path) -> Path:
    install_study(tmp_path / "studies", study_json())
    (tmp_path / "agent.toml").write_text(
        """
[node]
site = "hospital-a"
state_directory = "state"
environment = "demo"
[superlink]
address = "127.0.0.1:9092"
root_certificates = "root.pem"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[studies]
directory = "studies"
"""
    )
    return tmp_path


def resume(box: Path) -> str:
    arguments = ["study", "resume", STUDY_ID, "--config", str(box / "agent.toml")]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_paused_study_may_run_again_and_a_second_call_says_there_is_nothing_to_do(box: Path) -> None:
    _, digest = install_study(box / "studies", (box / "studies" / STUDY_ID / "study.json").read_bytes())
    directory = journal_directory(box / "state", digest, "local")
    FileJournal(directory, b"k" * 32).pause("training.ended")
    assert re.search("may run here again", resume(box))
    FileJournal(directory, b"k" * 32).check_not_paused()
    with pytest.raises(OperatorError, match="not paused"):
        resume(box)
