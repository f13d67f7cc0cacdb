"""The agent's control socket: how a command on this box speaks with the running agent.

One JSON object on a line goes in, one comes out, and the call is over. Only the agent's own user and root are heard.
No PIN and no private key ever passes: what a key shall sign goes out, what it has signed comes in.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from agent.core.clock import Clock
from agent.core.errors import (
    Fault,
    HardwareError,
    NetworkError,
    OperatorError,
    PeerProtocolError,
    SecureHealthError,
    SoftwareError,
)
from agent.core.ids import SiteID
from agent.identity.key import HardwareKey
from agent.identity.session import SessionKeeper, another_key
from agent.service.requests import (
    AcceptKeysRequest,
    Handlers,
    Request,
    SessionAcceptRequest,
    SessionOfferRequest,
    StatusRequest,
    parse_request,
)
from agent.service.state import AgentStatus, not_running
from agent.statements.envelope import encode_proof
from agent.statements.kinds import SessionCertificate

SOCKET_NAME: Final = "control.sock"
MAX_LINE_BYTES: Final = 1 << 16
CALL_LIMIT_S: Final = 10.0
"""How long a caller may take to say what it wants."""
ANSWER_LIMIT_S: Final = 30.0
"""How long a command waits for the agent: a busy TPM may take its time to make a session key."""
MAX_CALLS: Final = 8
LEAVE_LIMIT_S: Final = 1.0
"""How long the end waits for an answer that is being made."""
_ACCEPT_PAUSE_S = 0.2
_BACKLOG = 128
_CREDENTIALS = struct.Struct("3i")  # unix(7): pid, uid, gid

AcceptKeys = Callable[[SiteID, Collection[str]], None]
Answerer = Callable[[bytes], bytes]
"""Answers one line with one line; never raises."""

log = structlog.get_logger()


class _Failure(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    fault: Fault
    sentence: str
    next_step: str


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    result: dict[str, Any] = {}
    failure: _Failure | None = None


class ControlDesk:
    """Answers the requests.

    Args:
        keeper: Of the session; None where this box keeps none.
        status: How the agent does.
        accept_keys: Believes a hospital's other keys, by their ids; None where this box has no repository.
        handlers: Answer all other requests, by the request's word; none where this box governs no studies.
    """

    def __init__(
        self,
        keeper: SessionKeeper | None,
        status: Callable[[], AgentStatus],
        accept_keys: AcceptKeys | None = None,
        handlers: Handlers = MappingProxyType({}),
    ) -> None:
        self._keeper = keeper
        self._status = status
        self._accept_keys = accept_keys
        self._handlers = handlers

    def answer(self, line: bytes) -> bytes:
        """Answer one line, without its end; whatever comes in, a line goes out."""
        try:
            answer = _Answer(result=self._do(_parse_request(line)))
        except SecureHealthError as error:
            log.info("control_request_failed", error=error)
            answer = _Answer(failure=_failure_of(error))
        # A fault of ours in one request must not end the agent.
        except Exception as error:
            log.exception("control_request_broke")
            answer = _Answer(failure=_failure_of(_broken(error)))
        line = answer.model_dump_json(exclude_defaults=True).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            return line
        log.error("control_answer_too_large", bytes=len(line))
        return _Answer(failure=_failure_of(_too_large())).model_dump_json(exclude_defaults=True).encode() + b"\n"

    def _do(self, request: Request) -> dict[str, Any]:
        match request:
            case StatusRequest():
                return asdict(self._status())
            case AcceptKeysRequest():
                if self._accept_keys is None:
                    raise _no_repository()
                self._accept_keys(SiteID(request.site), request.keys.split())
                return {}
            case SessionOfferRequest() | SessionAcceptRequest():
                return self._session(request)
        handler = self._handlers.get(request.request)
        if handler is None:
            raise _not_governed()
        answer = handler(request)
        return {} if answer is None else answer.model_dump(mode="json")

    def _session(self, request: SessionOfferRequest | SessionAcceptRequest) -> dict[str, Any]:
        if self._keeper is None:
            raise _no_sessions()
        if isinstance(request, SessionOfferRequest):
            return {"certificate": self._keeper.offer().payload().decode()}
        return {"expires_s": self._keeper.accept(request.proof.encode()).expires_s}


@dataclass(slots=True)
class _Call:
    """One caller.

    Args:
        channel: To it.
        until_s: When it is hung up on, on the clock's monotonic scale.
        heard: What it has said so far.
    """

    channel: socket.socket
    until_s: float
    heard: bytearray = field(default_factory=bytearray)


class ControlSocket:
    """Listens in a thread of its own for as long as the `with` block lasts.

    Args:
        directory: The agent's state directory, locked by this process; any length of path will do.
        answer: Answers a line.
        clock: The service's.
        users: Whose processes are heard; by default the agent's own user and root.
        limit_s: How long a caller may take.
    """

    def __init__(
        self,
        directory: Path,
        answer: Answerer,
        clock: Clock,
        *,
        users: frozenset[int] | None = None,
        limit_s: float = CALL_LIMIT_S,
    ) -> None:
        self._directory = directory
        self._answer = answer
        self._clock = clock
        self._users = frozenset({os.geteuid(), 0}) if users is None else users
        self._limit_s = limit_s
        self._calls: dict[int, _Call] = {}
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        self._listener = _listen(self._directory)
        self._hook, self._far_hook = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._hook, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._directory / SOCKET_NAME).unlink(missing_ok=True)
        self._far_hook.close()
        self._thread.join(LEAVE_LIMIT_S)  # a TPM may hang; the process ends all the same

    def _serve(self) -> None:
        with self._selector, self._listener, self._hook:
            self._turn()
            for number in list(self._calls):
                self._hang_up(number)

    def _turn(self) -> None:
        """Go on until the far end of the hook is closed; one slow caller keeps nobody waiting."""
        while True:
            ready = {key.fd for key, _ in self._selector.select(self._wait_s())}
            if self._hook.fileno() in ready:
                return
            if self._listener.fileno() in ready:
                self._greet()
            for number in ready & self._calls.keys():
                self._attend(number)
            now_s = self._clock.monotonic_s()
            for number in [number for number, call in self._calls.items() if call.until_s <= now_s]:
                self._hang_up(number)

    def _wait_s(self) -> float | None:
        ends = [call.until_s for call in self._calls.values()]
        return max(min(ends) - self._clock.monotonic_s(), 0.0) if ends else None

    def _greet(self) -> None:
        try:
            channel, _ = self._listener.accept()
        except OSError as error:
            log.warning("control_call_lost", reason=str(error))
            time.sleep(_ACCEPT_PAUSE_S)  # out of descriptors: do not turn in circles
            return
        _, user, _ = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user not in self._users:
            log.warning("control_caller_refused", user=user)
            channel.close()
            return
        if len(self._calls) >= MAX_CALLS:
            self._hang_up(next(iter(self._calls)))
        channel.setblocking(False)
        self._calls[channel.fileno()] = _Call(channel, self._clock.monotonic_s() + self._limit_s)
        self._selector.register(channel, selectors.EVENT_READ)

    def _attend(self, number: int) -> None:
        call = self._calls[number]
        try:
            piece = call.channel.recv(MAX_LINE_BYTES)
            call.heard += piece
            line, end, _ = bytes(call.heard).partition(b"\n")
            if end and len(line) <= MAX_LINE_BYTES:
                call.channel.send(self._answer(line))  # it fits into the socket's own buffer
            elif piece and len(line) <= MAX_LINE_BYTES:
                return
        except OSError as error:
            log.debug("control_caller_gone", reason=str(error))
        self._hang_up(number)

    def _hang_up(self, number: int) -> None:
        call = self._calls.pop(number)
        self._selector.unregister(call.channel)
        call.channel.close()


def ask_agent(directory: Path, request: str, **fields: str | int | None) -> dict[str, Any]:
    """Ask the agent that runs on a state directory.

    Args:
        directory: Its state directory.
        request: A word of `agent.service.requests`.
        fields: What belongs to the request.

    Returns:
        What the agent answers; its caller checks it as anything from outside.

    Raises:
        OperatorError: No agent listens there, or it does not listen to this user.
        SecureHealthError: What the agent answers instead.
    """
    line = json.dumps({"request": request, **fields}).encode() + b"\n"
    try:
        with _reached(directory) as address, socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(ANSWER_LIMIT_S)
            channel.connect(address)
            channel.sendall(line)
            data = _read_line(channel)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise not_running() from error
    except PermissionError as error:
        raise _not_heard() from error
    except OSError as error:
        raise no_answer() from error
    try:
        answer = _Answer.model_validate_json(data)
    except ValidationError as error:
        raise no_answer() from error
    if answer.failure is not None:
        raise _error_of(answer.failure)
    return answer.result


def renew_session(
    directory: Path, key: HardwareKey, *, show: Callable[[SessionCertificate], None] = lambda _: None
) -> int:
    """Have a key vouch for the running agent's next session.

    Args:
        directory: The agent's state directory.
        key: The box's own, opened with whoever stands there.
        show: Told what will be signed, before anybody is asked for a PIN or a touch.

    Returns:
        Until when the session counts, in seconds since 1970.

    Raises:
        OperatorError: No agent runs there, or `key` is not this box's.
        SecureHealthError: The key or the agent refuses.
    """
    offer = SessionCertificate.parse(str(ask_agent(directory, "session-offer").get("certificate")).encode())
    if offer.root_key != key.key_id:
        raise another_key()
    show(offer)
    proof = encode_proof(key.prove(offer))
    ask_agent(directory, "session-accept", proof=proof.decode())
    return offer.expires_s


@contextlib.contextmanager
def _reached(directory: Path) -> Iterator[str]:
    """An address of the socket that fits: unix(7) ends paths at 107 bytes, whatever the directory's length."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


def _listen(directory: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _reached(directory) as address:
            Path(address).unlink(missing_ok=True)  # the last process was killed; this one holds the directory's lock
            listener.bind(address)
            os.chmod(address, 0o600)  # noqa: PTH101 - before anybody can connect
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HardwareError(
            "service.control_socket",
            f"The agent cannot listen for this box's own commands in {directory}: {error.strerror}.",
            next_step="See that the state directory lies on a local disk and belongs to the agent's user.",
        ) from error
    return listener


def _read_line(channel: socket.socket) -> bytes:
    data = bytearray()
    while len(data) <= MAX_LINE_BYTES and not data.endswith(b"\n"):
        piece = channel.recv(MAX_LINE_BYTES)
        if not piece:
            break
        data += piece
    return bytes(data)


def _parse_request(line: bytes) -> Request:
    try:
        return parse_request(line)
    except ValidationError as error:
        raise OperatorError(
            "service.bad_request",
            "The agent was asked for something that it does not know.",
            next_step="Use commands of the same release as the agent; restart it after an update.",
        ) from error


_CLASS_OF: Final[Mapping[Fault, type[SecureHealthError]]] = {
    cls.fault: cls for cls in (HardwareError, NetworkError, OperatorError, PeerProtocolError, SoftwareError)
}


def _failure_of(error: SecureHealthError) -> _Failure:
    return _Failure(code=error.code, fault=error.fault, sentence=error.sentence, next_step=error.next_step)


def _error_of(failure: _Failure) -> SecureHealthError:
    return _CLASS_OF[failure.fault](failure.code, failure.sentence, next_step=failure.next_step)


def _broken(error: Exception) -> SoftwareError:
    return SoftwareError(
        "service.control_broke",
        f"The agent failed at a request: {type(error).__name__}.",
        next_step="Report it with the agent's log.",
    )


def _no_repository() -> OperatorError:
    return OperatorError(
        "service.no_repository",
        "This box is not enrolled, so no hospital's keys come to it from a repository.",
        next_step="Nothing to do: its roster is installed by hand.",
    )


def _not_governed() -> OperatorError:
    return OperatorError(
        "service.not_governed",
        "This box keeps no permits and no audit log: it has no consortium yet, or it runs demonstrations only.",
        next_step="Enrol it; in a demonstration, add a [governance] section to its configuration.",
    )


def _too_large() -> SoftwareError:
    return SoftwareError(
        "service.answer_too_large",
        "The agent's answer to this request is larger than an answer may be.",
        next_step="Report it, with what was asked.",
    )


def _no_sessions() -> OperatorError:
    return OperatorError(
        "service.no_sessions",
        "This box keeps no session: its configuration names no roster with a coordinator.",
        next_step="Install the consortium's roster, and restart the agent.",
    )


def _not_heard() -> OperatorError:
    return OperatorError(
        "service.not_heard",
        "The agent on this box belongs to another user, and listens to that user and root only.",
        next_step="Run the command as that user, or with sudo.",
    )


def no_answer() -> SoftwareError:
    """The failure of a command that does not understand the agent."""
    return SoftwareError(
        "service.no_answer",
        "The agent on this box gives no answer that can be understood.",
        next_step="Read its log; restart it if it was updated since it started.",
    )
