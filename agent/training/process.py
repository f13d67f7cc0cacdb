"""The worker's process as the agent holds it: given its task, asked with a time limit, distrusted, ended.

Over its channel it gets three descriptors: the data file and the model file (both read-only), and memory for one vector
that both ends share.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import Fault, OperatorError, SecureHealthError, SoftwareError
from agent.data.catalog import Dataset
from agent.data.quality import DeclinedError
from agent.training.channel import (
    ChannelClosedError,
    ChannelError,
    ChannelSilentError,
    Message,
    receive_message,
    send_descriptors,
    send_message,
)
from agent.training.link import WorkerLink, open_link
from agent.trust.study import Study

Vector = npt.NDArray[np.float32]

_F_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # linux/fcntl.h: no further seals, no shrinking, no growing


class WorkerFailedError(DeclinedError):
    """The worker died, fell silent or talked nonsense; that may depend on data, so it is declined like all else."""

    fault: ClassVar[Fault] = Fault.SOFTWARE


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker runs.

    Args:
        device: `auto`, `cpu` or `cuda`.
        threads: Processor threads to compute with.
        memory_bytes: Most memory that it may hold.
        start_timeout_s: How long reading data and model, and then loading torch, may take.
        call_timeout_s: How long one call may take.
        address: Where the service manager starts it; None makes it a child of this process.
    """

    device: str = "auto"
    threads: int = 1
    memory_bytes: int = 16 << 30
    start_timeout_s: float = 120.0
    call_timeout_s: float = 3600.0
    address: Path | None = None


class _Failure(BaseModel):
    """A failure as the worker describes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    code: str = Field(pattern=r"^[a-z]+\.[a-z_]+$", max_length=60)
    sentence: str = Field(max_length=20_000)
    step: str = Field(max_length=2000)
    declined: bool

    def error(self) -> SecureHealthError:
        """The error that it stands for."""
        kind = DeclinedError if self.declined else OperatorError
        return kind(self.code, self.sentence, next_step=self.step)


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A started process.

    Args:
        vector: Memory shared with it, shape (m,); it may write there at any time.
    """

    vector: Vector
    _link: WorkerLink
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._link.alive

    @property
    def lock(self) -> threading.RLock:
        """To be held during an exchange that uses the shared vector."""
        return self._lock

    def exchange(self, request: Message, *, timeout_s: float) -> Message:
        """Send a request and receive the reply.

        Raises:
            DeclinedError, OperatorError: What `receive` raises.
        """
        try:
            send_message(self._link.channel, request)
        except ChannelError as error:
            raise self._dead() from error
        return self.receive(timeout_s)

    def receive(self, timeout_s: float) -> Message:
        """Receive one message; a failure that it tells of is raised.

        Raises:
            WorkerFailedError: It died, kept silent for `timeout_s`, or sent no message of ours; it is ended.
            DeclinedError, OperatorError: What it says went wrong.
            SoftwareError: It could not be shut in, and read nothing.
        """
        try:
            message = receive_message(self._link.channel, timeout_s=timeout_s)
        except ChannelClosedError as error:
            raise self._dead() from error
        except ChannelSilentError as error:
            raise self._silent(timeout_s) from error
        except ChannelError as error:
            raise self.nonsense(str(error)) from error
        if "not_isolated" in message:
            raise _not_isolated(str(message["not_isolated"])[:500])
        if "error" in message:
            raise self._told_failure(message)
        return message

    def copy_vector(self) -> Vector:
        """A finite copy of the shared vector: what is checked must be what is used, whatever is written meanwhile.

        Raises:
            WorkerFailedError: It is not finite; the worker is ended.
        """
        copy = self.vector.copy()
        if not np.isfinite(copy).all():
            raise self.nonsense("a vector that is not finite")
        return copy

    def close(self) -> None:
        """End it; from another thread, this ends a call under way. It holds nothing worth saving."""
        self._link.end()
        # The thread in a call sees the end at once, and lets go.
        with self._lock:
            self._link.channel.close()

    def nonsense(self, what: str) -> WorkerFailedError:
        """End it, and make the error that says why."""
        self.close()
        return WorkerFailedError(
            "training.worker_garbage",
            f"The training worker answered with {what} and was ended.",
            next_step="A new one is started when needed. If it repeats, report it: a file may be hostile.",
        )

    def _told_failure(self, message: Message) -> SecureHealthError:
        try:
            return _Failure.model_validate(message["error"]).error()
        except ValidationError:
            return self.nonsense("a failure without a description")

    def _silent(self, timeout_s: float) -> WorkerFailedError:
        self.close()
        return WorkerFailedError(
            "training.worker_silent",
            f"The training worker gave no answer within {timeout_s:g} s and was ended.",
            next_step="A new one is started when needed. If it repeats, give it more time, or a smaller study.",
        )

    def _dead(self) -> WorkerFailedError:
        ending = self._link.end()
        self.close()
        return WorkerFailedError(
            "training.worker_died",
            f"The training worker ended unexpectedly ({ending}).",
            next_step="A new one is started when needed. If it repeats, it may need more memory.",
        )


def start_process(
    study: Study, model: Path | None, dataset: Dataset, data: int, settings: WorkerSettings
) -> WorkerProcess:
    """Start a process and tell it its task; its first message tells how that went.

    Args:
        study: What to train.
        model: The model file; None where only the data are to be checked.
        dataset: The local data set.
        data: Descriptor of its file, from `agent.data.catalog.open_source`; its caller closes it.
        settings: How it runs.

    Raises:
        OperatorError: The model file cannot be opened.
        SoftwareError: The service manager starts none.
    """
    with ExitStack() as stack:
        model_fds, vector = [], np.zeros(0, dtype=np.float32)
        if model is not None:
            vector_fd = _closing(stack, _shared_memory(4 * study.model.parameters))
            model_fds = [_closing(stack, _open_model(model)), vector_fd]
            vector = np.frombuffer(mmap.mmap(vector_fd, 4 * study.model.parameters), dtype=np.float32)
        link = open_link(settings.address)
        task = {
            "study": study.model_dump_json(),
            "dataset": dataset.model_dump(mode="json"),
            "device": settings.device,
            "threads": settings.threads,
            "memory_bytes": settings.memory_bytes,
        }
        # Should it be dead already, the first receive says so.
        with suppress(ChannelError):
            send_descriptors(link.channel, [data, *model_fds])
            send_message(link.channel, task)
    return WorkerProcess(vector, link)


def _closing(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _open_model(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OperatorError(
            "model.no_file",
            f"The model file {path} cannot be opened: {error.strerror}.",
            next_step="Install the study again, with its model.",
        ) from error


def _shared_memory(size_bytes: int) -> int:
    """Memory whose size nobody can change: shrinking it would crash the agent."""
    descriptor = os.memfd_create("vector", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
    return descriptor


def _not_isolated(reason: str) -> SoftwareError:
    return SoftwareError(
        "training.not_isolated",
        f"The training worker could not be cut off from the network and was not used: {reason}.",
        next_step="Install libseccomp2, and run on a kernel with seccomp filters.",
    )
