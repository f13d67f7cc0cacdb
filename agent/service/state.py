"""The agent's state directory: one agent at a time, and a file that says how it does."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.core.errors import HardwareError, OperatorError
from agent.federation.node import NodeStatus

MAX_STATUS_BYTES = 1 << 16
_LOCK = "agent.lock"
_STATUS = "status.json"


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What `seh-agent status` shows.

    Args:
        link: `joining`, `online`, `lost`, `stopped`; `waiting` before the key was found.
        node_id: The node's name at the SuperLink, once known.
        answering: Study, stage and round in work; empty when idle.
        trouble: Code of the last failure, empty when all is well.
        sentence: The failure in words.
        next_step: What to do about it.
    """

    link: str
    node_id: int | None = None
    answering: str = ""
    trouble: str = ""
    sentence: str = ""
    next_step: str = ""


def status_of(node: NodeStatus) -> AgentStatus:
    """Flatten a node's status."""
    trouble = node.trouble
    words = ("", "", "") if trouble is None else (trouble.code, trouble.sentence, trouble.next_step)
    return AgentStatus(node.link.value, node.node_id, node.answering, *words)


@contextmanager
def locked_state(directory: Path) -> Iterator[None]:
    """Hold the state directory for this process alone; it is made, for the owner only, where it is missing.

    Raises:
        OperatorError: Another agent runs on it.
        HardwareError: It cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HardwareError(
            "service.state_directory",
            f"The state directory {directory} cannot be used: {error.strerror}.",
            next_step="Check its owner, its permissions and the disk.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise OperatorError(
            "service.already_running",
            f"Another agent runs on the state directory {directory}.",
            next_step="Stop it first, or give this one a state directory of its own.",
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def store_status(directory: Path, status: AgentStatus) -> None:
    """Write the status file; a full disk is no reason to stop."""
    fresh = directory / f"{_STATUS}.new"
    try:
        fresh.write_text(json.dumps(asdict(status)), encoding="utf-8")
        fresh.replace(directory / _STATUS)
    except OSError:
        fresh.unlink(missing_ok=True)


def load_status(directory: Path) -> AgentStatus | None:
    """How the agent that runs on this directory does, or None where none runs."""
    try:
        with (directory / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _parse_status(directory / _STATUS)
    return None


def _parse_status(path: Path) -> AgentStatus:
    try:
        with path.open("rb") as stream:
            value = json.loads(stream.read(MAX_STATUS_BYTES))
        return AgentStatus(**value)
    except (OSError, ValueError, TypeError):
        return AgentStatus("starting")
