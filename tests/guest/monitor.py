"""The two lines into a virtual machine: QEMU's monitor (QMP), and the guest agent inside it.

Both speak JSON objects, one a line, over a UNIX socket (QEMU Machine Protocol, QEMU Guest Agent Protocol).
"""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DELIMITER = b"\xff"  # no byte of UTF-8: what stands before it is another's rest


class GuestGoneError(RuntimeError):
    """The machine, or what answers inside it, is not there."""


class CommandError(RuntimeError):
    """QEMU or the guest agent refused a command."""


class _Line:
    """Objects over a socket."""

    def __init__(self, path: Path, *, limit_s: float) -> None:
        self._rest = b""
        self._socket = _connect(path, limit_s=limit_s)

    def send(self, content: object, *, before: bytes = b"") -> None:
        """Write one object."""
        try:
            self._socket.sendall(before + json.dumps(content).encode() + b"\n")
        except OSError as error:
            raise GuestGoneError(str(error)) from error

    def receive(self, deadline_s: float) -> dict[str, Any] | None:
        """Read one object; None where none came before `deadline_s` (of `time.monotonic`)."""
        while b"\n" not in self._rest:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise GuestGoneError(str(error)) from error
            if not data:
                raise GuestGoneError("the other end has closed")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        content = json.loads(line.rpartition(_DELIMITER)[2])
        assert isinstance(content, dict)
        return content

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Monitor:
    """QEMU's monitor.

    Args:
        path: Its socket.
        limit_s: Until when it must answer.
    """

    def __init__(self, path: Path, *, limit_s: float = 20.0) -> None:
        self._line = _Line(path, limit_s=limit_s)
        self._events: list[dict[str, Any]] = []
        try:
            self._line.receive(time.monotonic() + limit_s)  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, *, limit_s: float = 120.0, **arguments: Any) -> Any:  # noqa: ANN401 - as QMP has it
        """Run one command; returns what it returned. An argument `read_only` is QMP's `read-only`."""
        self._line.send({"execute": command, "arguments": _dashed(arguments)})
        deadline_s = time.monotonic() + limit_s
        while (answer := self._line.receive(deadline_s)) is not None:
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise CommandError(f"{command}: {answer['error']}")
            else:
                return answer["return"]
        raise GuestGoneError(f"{command}: no answer in {limit_s:.0f} s")

    def human(self, line: str) -> None:
        """A line of the human monitor, which prints nothing where all is well."""
        said = self.execute("human-monitor-command", command_line=line)
        if said.strip():
            raise CommandError(f"{line}: {said}")

    def wait_event(
        self, name: str, *, limit_s: float, where: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> None:
        """Wait until an event of that name, with such data, has come; each is waited for once."""
        deadline_s = time.monotonic() + limit_s
        while True:
            for event in self._events:
                if event["event"] == name and where(event.get("data", {})):
                    self._events.remove(event)
                    return
            event = self._line.receive(deadline_s) or {}
            if not event:
                raise GuestGoneError(f"no {name} in {limit_s:.0f} s")
            self._events.append(event)

    def close(self) -> None:
        """Hang up."""
        self._line.close()


class GuestAgent:
    """`qemu-ga` inside the guest.

    Args:
        path: Its socket.
    """

    def __init__(self, path: Path) -> None:
        self._line = _Line(path, limit_s=20.0)

    def wait_until_there(self, *, limit_s: float) -> None:
        """Until it answers: it starts with the guest."""
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            mark = secrets.randbelow(1 << 31)
            self._line.send({"execute": "guest-sync-delimited", "arguments": {"id": mark}}, before=_DELIMITER)
            patience_s = min(deadline_s, time.monotonic() + 1.0)
            while (answer := self._line.receive(patience_s)) is not None:
                if answer.get("return") == mark:
                    return
        raise GuestGoneError(f"the guest agent did not answer in {limit_s:.0f} s")

    def execute(self, command: str, *, limit_s: float = 60.0, **arguments: Any) -> Any:  # noqa: ANN401 - as the agent has it
        """Run one of the agent's commands; returns what it returned."""
        self._line.send({"execute": command, "arguments": _dashed(arguments)})
        answer = self._line.receive(time.monotonic() + limit_s)
        if answer is None:
            raise GuestGoneError(f"{command}: no answer in {limit_s:.0f} s")
        if "error" in answer:
            raise CommandError(f"{command}: {answer['error']}")
        return answer["return"]

    def close(self) -> None:
        """Hang up."""
        self._line.close()


def _dashed(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


def _connect(path: Path, *, limit_s: float) -> socket.socket:
    deadline_s = time.monotonic() + limit_s
    while True:
        attempt = socket.socket(socket.AF_UNIX)
        try:
            attempt.connect(str(path))
        except OSError as error:
            attempt.close()
            if time.monotonic() > deadline_s:
                raise GuestGoneError(f"{path}: {error}") from error
            time.sleep(0.02)
        else:
            return attempt
