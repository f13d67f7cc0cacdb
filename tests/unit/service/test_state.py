from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import HardwareError, NetworkError, OperatorError
from agent.federation.node import Link, NodeStatus
from agent.service.state import AgentStatus, load_status, locked_state, status_of, store_status


def test_two_agents_never_share_a_directory(tmp_path: Path) -> None:
    again = pytest.raises(OperatorError, match="Another agent")
    with locked_state(tmp_path / "state"), again, locked_state(tmp_path / "state"):
        pytest.fail("both hold it")
    with locked_state(tmp_path / "state"):
        pass


def test_the_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    with locked_state(tmp_path / "state"):
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HardwareError, match="state directory"), locked_state(tmp_path / "file" / "state"):
        pytest.fail("it cannot be there")


def test_a_status_is_shown_while_its_agent_lives_and_only_then(tmp_path: Path) -> None:
    status = AgentStatus("online", 7, "study plain 3")
    assert load_status(tmp_path) is None
    with locked_state(tmp_path):
        assert load_status(tmp_path) == AgentStatus("starting")
        store_status(tmp_path, status)
        assert load_status(tmp_path) == status
        (tmp_path / "status.json").write_text("{damaged")
        assert load_status(tmp_path) == AgentStatus("starting")
    assert load_status(tmp_path) is None


def test_trouble_is_shown_in_words() -> None:
    error = NetworkError("fleet.unreachable", "It does not answer.", next_step="Wait.")
    shown = status_of(NodeStatus(Link.LOST, 7, "", error))
    assert (shown.link, shown.trouble, shown.sentence, shown.next_step) == (
        "lost",
        "fleet.unreachable",
        "It does not answer.",
        "Wait.",
    )


def test_a_full_disk_does_not_stop_the_agent(tmp_path: Path) -> None:
    store_status(tmp_path / "missing", AgentStatus("online"))
