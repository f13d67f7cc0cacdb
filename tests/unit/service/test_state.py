from __future__ import annotations

from pathlib import Path

import pytest

from agent.core.errors import HardwareError, NetworkError, OperatorError
from agent.federation.node import Link, NodeStatus
from agent.identity.session import SessionState, SessionStatus
from agent.service.state import AgentStatus, StatusBoard, load_status, locked_state, status_of, store_status


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


NEEDS = SessionStatus(SessionState.NEEDS_PERSON, 1_800_000_000, "A person must come.", "Run a command.")


def test_what_a_box_can_prove_is_shown_beside_its_link(tmp_path: Path) -> None:
    published: list[AgentStatus] = []
    board = StatusBoard(published.append)
    assert board.note_session(NEEDS)
    assert not board.note_session(NEEDS)
    board.note_node(NodeStatus(Link.ONLINE, 7))
    assert board.current() == published[-1]
    assert len(published) == 2
    shown = published[-1]
    assert (shown.link, shown.session, shown.session_expires_s) == ("online", "needs-person", 1_800_000_000)
    assert shown.needs_person
    with locked_state(tmp_path):
        store_status(tmp_path, shown)
        assert load_status(tmp_path) == shown


def test_the_service_manager_s_line_says_what_matters_most() -> None:
    error = NetworkError("fleet.unreachable", "It does not answer.", next_step="Wait.")
    lines = [
        status_of(NodeStatus(Link.ONLINE)),
        status_of(NodeStatus(Link.ONLINE), NEEDS),
        status_of(NodeStatus(Link.LOST, trouble=error), NEEDS),
        status_of(NodeStatus(Link.ONLINE, answering="study plain 3"), NEEDS),
    ]
    assert [status.line for status in lines] == [
        "online",
        "online: A person must come. Run a command.",
        "lost: It does not answer.",
        "answering study plain 3",
    ]


def test_a_full_disk_does_not_stop_the_agent(tmp_path: Path) -> None:
    store_status(tmp_path / "missing", AgentStatus("online"))
