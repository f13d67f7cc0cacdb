"""Where a worker's process comes from: a child of the agent, or one that the service manager starts for a connection.

Both take over the same channel and serve in the same way. A child needs nothing installed, for demonstrations and
tests; on a box the worker is a unit of its own, with the GPU and without all that the agent may do.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.core.errors import SoftwareError

CONNECT_LIMIT_S = 10.0
_PASSED_ON = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


class WorkerLink(Protocol):
    """A process that waits for its task, and the channel to it."""

    @property
    def channel(self) -> socket.socket:
        """To the process; a stream."""
        ...

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def end(self) -> str:
        """End it, and say how it ended; who waits on the channel in another thread sees that at once."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ChildLink:
    """A process of our own.

    Args:
        channel: To it.
        process: It.
    """

    channel: socket.socket
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def end(self) -> str:
        """Kill it, if it still runs, and say how it ended."""
        self.process.kill()
        status = self.process.wait()
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


@dataclass(frozen=True, slots=True, eq=False)
class ServiceLink:
    """A process of the service manager's: it ends with the channel.

    Args:
        channel: To it.
    """

    channel: socket.socket

    @property
    def alive(self) -> bool:
        """Whether it still holds its end."""
        if self.channel.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.channel, select.POLLRDHUP | select.POLLHUP)
        return not poll.poll(0)

    def end(self) -> str:
        """Take the channel away, at which it ends; its exit status is the service manager's to know."""
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        return "`journalctl -u 'seh-worker@*'` says how"


def open_link(address: Path | None) -> WorkerLink:
    """Have a process started.

    Args:
        address: The service manager's socket; None starts a child.

    Raises:
        SoftwareError: Nobody listens at the socket.
    """
    return _spawn() if address is None else _call(address)


def _spawn() -> ChildLink:
    ours, theirs = socket.socketpair()
    with theirs:
        # -P, -s: neither the working directory nor a user's packages are searched for modules.
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "agent.training.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=_environment(),
            close_fds=True,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ChildLink(ours, process)


def _environment() -> dict[str, str]:
    """Nothing of ours but what choosing a GPU needs; packaging/systemd/seh-worker@.service sets the same."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_CACHE_DISABLE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def _call(address: Path) -> ServiceLink:
    channel = socket.socket(socket.AF_UNIX)
    try:
        channel.settimeout(CONNECT_LIMIT_S)
        channel.connect(str(address))
        channel.settimeout(None)
    except OSError as error:
        channel.close()
        raise SoftwareError(
            "training.no_worker",
            f"No training worker can be started: {address} does not answer ({error.strerror or error}).",
            next_step="See `systemctl status seh-worker.socket`, and start it.",
        ) from error
    return ServiceLink(channel)
