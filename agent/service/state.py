"""The agent's state directory: one agent at a time, and a file that says how it does."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agent.core.errors import HardwareError, OperatorError
from agent.core.version import software_version
from agent.federation.node import Link, NodeStatus
from agent.identity.session import SessionState, SessionStatus

MAX_STATUS_BYTES = 1 << 16
_LOCK = "agent.lock"
_STATUS = "status.json"


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """What `seh-agent status` shows.

    Args:
        link: `joining`, `online`, `lost`, `stopped`; `waiting` before the key was found; `waiting for enrolment` and
            `enrolling` before the box belongs to a consortium.
        node_id: The node's name at the SuperLink, once known.
        answering: Study, stage and round in work; empty when idle.
        trouble: Code of the last failure, empty when all is well.
        sentence: The failure in words.
        next_step: What to do about it.
        session: What the box can prove now, a value of `SessionState`; empty where it keeps no session.
        session_expires_s: Until when, in seconds since 1970.
        session_sentence: What is wrong with that, empty when nothing.
        session_next_step: What a person should do about it.
        site: The hospital that the box works for; empty before it belongs to one.
        notice: What else a person should know, one sentence a line.
        heard_s: When the registrar last took a heartbeat of this run of the agent, in seconds since 1970.
        version: The agent's release.
        box: The box's name; empty before its key was found.
        box_words: The words that its hospital compares while the box is not enrolled; empty afterwards.
        phone_address: Page where a telephone may approve the box; empty where none may.
        phone_code: What is typed there; it counts five minutes, and once.
    """

    link: str
    node_id: int | None = None
    answering: str = ""
    trouble: str = ""
    sentence: str = ""
    next_step: str = ""
    session: str = ""
    session_expires_s: int | None = None
    session_sentence: str = ""
    session_next_step: str = ""
    site: str = ""
    notice: str = ""
    heard_s: int | None = None
    version: str = field(default_factory=software_version)
    box: str = ""
    box_words: str = ""
    phone_address: str = ""
    phone_code: str = ""

    @property
    def needs_person(self) -> bool:
        """Whether somebody has to come to the box."""
        return self.session == SessionState.NEEDS_PERSON

    @property
    def line(self) -> str:
        """All that a single line can say."""
        if self.answering:
            return f"answering {self.answering}"
        if self.trouble:
            return f"{self.link}: {self.sentence}"
        return f"{self.link}: {self.session_sentence} {self.session_next_step}" if self.needs_person else self.link


def status_of(node: NodeStatus, session: SessionStatus | None = None) -> AgentStatus:
    """Flatten what a node's loop and its session keeper say."""
    trouble = node.trouble
    words = ("", "", "") if trouble is None else (trouble.code, trouble.sentence, trouble.next_step)
    flat = AgentStatus(node.link.value, node.node_id, node.answering, *words)
    if session is None:
        return flat
    return replace(
        flat,
        session=session.state.value,
        session_expires_s=session.expires_s,
        session_sentence=session.sentence,
        session_next_step=session.next_step,
    )


class StatusBoard:
    """Joins what the loop's thread and the service's own say about the agent. Thread-safe.

    Args:
        publish: Told of every change.
        site: The hospital that the box works for.
        box: The box's name.
    """

    def __init__(self, publish: Callable[[AgentStatus], None], *, site: str = "", box: str = "") -> None:
        self._publish = publish
        self._site = site
        self._box = box
        self._notices: dict[str, str] = {}
        self._lock = threading.Lock()
        self._node = NodeStatus(Link.JOINING)
        self._session: SessionStatus | None = None
        self._heard_s: int | None = None

    def current(self) -> AgentStatus:
        """How the agent does."""
        notice = "\n".join(text for text in self._notices.values() if text)
        flat = status_of(self._node, self._session)
        return replace(flat, site=self._site, box=self._box, notice=notice, heard_s=self._heard_s)

    def note_node(self, node: NodeStatus) -> None:
        """The loop's news."""
        with self._lock:
            self._node = node
            self._publish(self.current())

    def note_notice(self, topic: str, text: str) -> None:
        """What a person should know about one topic; empty where nothing."""
        with self._lock:
            if self._notices.get(topic, "") != text:
                self._notices = {**self._notices, topic: text}
                self._publish(self.current())

    def note_heard(self, at_s: int) -> None:
        """The registrar took a heartbeat, in seconds since 1970."""
        with self._lock:
            self._heard_s = at_s
            self._publish(self.current())

    def note_session(self, session: SessionStatus) -> bool:
        """The session keeper's news; returns whether anything changed."""
        with self._lock:
            if session == self._session:
                return False
            self._session = session
            self._publish(self.current())
        return True


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


def not_running() -> OperatorError:
    """The failure of a command that needs the running agent."""
    return OperatorError(
        "service.not_running",
        "No agent runs on this box, or it has not finished starting.",
        next_step="Start it: `seh-agent run`, or let your service manager do so; `seh-agent status` says how it does.",
    )


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
