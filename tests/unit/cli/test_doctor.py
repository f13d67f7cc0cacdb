"""`seh-agent doctor`, as a technician meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.main import app
from agent.core.errors import Fault
from agent.core.terminal import EXIT_STATUS
from agent.identity.key import init_key
from agent.service.doctor.examination import CHECKS
from agent.service.state import AgentStatus, locked_state, store_status
from tests.unit.data.tables import table

CONFIG = """
[node]
state_directory = "state"
environment = "demo"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[training]
device = "cpu"
"""
CATALOG = """
[datasets.ward-3]
schema = "hypertension"
source = "ward-3.csv"
"""


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A box in good order, that is not enrolled yet, and whose agent does not run."""
    (tmp_path / "agent.toml").write_text(CONFIG)
    (tmp_path / "catalog.toml").write_text(CATALOG)
    (tmp_path / "ward-3.csv").write_bytes(table())
    (tmp_path / "state").mkdir()
    init_key(f"software:{tmp_path}/node.key")
    return tmp_path


def run(box: Path, *options: str) -> tuple[int, str]:
    arguments = ["doctor", *options, "--config", str(box / "agent.toml")]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return int(result.return_value or 0), result.output


def test_a_box_whose_agent_does_not_run(box: Path) -> None:
    status, output = run(box)
    first = output.splitlines()[0]
    assert first.startswith("fail  agent")
    assert "service.not_running (to correct here)" in output
    assert "Now: Start it" in output
    assert status == EXIT_STATUS[Fault.OPERATOR]
    for name in CHECKS:
        assert any(line[6:].startswith(name) for line in output.splitlines()), name


def test_a_box_whose_agent_runs(box: Path) -> None:
    with locked_state(box / "state"):
        store_status(box / "state", AgentStatus("waiting for enrolment"))
        status, output = run(box, "--json")
    found = json.loads(output)
    assert list(found) == list(CHECKS)
    assert found["agent"]["outcome"] == found["key"]["outcome"] == found["data sets"]["outcome"] == "ok"
    assert found["SuperLink"] == {
        "outcome": "not applicable",
        "sentence": "The box knows no SuperLink: it is not enrolled, or lost what it knew.",
        "fault": None,
        "next_step": "",
        "code": "",
    }
    failed = [each["fault"] for each in found.values() if each["outcome"] == "fail"]
    assert status == (EXIT_STATUS[Fault(failed[0])] if failed else 0)


def test_the_exit_status_tells_whose_fault_the_first_failure_is(box: Path) -> None:
    (box / "node.key").unlink()
    with locked_state(box / "state"):
        store_status(box / "state", AgentStatus("online"))
        assert run(box)[0] == EXIT_STATUS[Fault.HARDWARE]
