"""The box as the checks see it: its configuration, what it believes of its consortium, and what its agent says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.errors import SecureHealthError
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord
from agent.service.state import AgentStatus, load_status
from agent.service.trust import OpenedRepository
from agent.trust.snapshot import TrustSnapshot

RUNTIME_DIRECTORY = Path("/run/secur-e-health/agent")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that the agent needs.

    Args:
        name: What it is.
        address: `host:port`.
        authority: PEM, the only roots that its certificate may come from.
    """

    name: str
    address: str
    authority: bytes

    @property
    def host(self) -> str:
        """Its name or address alone."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Its port alone."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Box:
    """What the checks look at.

    Args:
        config: The configuration.
        clock: This machine's.
        record: Where the box is enrolled; None where it is not.
        snapshot: What it believes of its consortium; None where it holds nothing that can be used.
        status: What its agent says; None where none runs.
        repository: A copy of the consortium's repository as this box holds it, made for the checks alone.
        runtime: The agent's directory in memory.
    """

    config: AgentConfig
    clock: Clock
    record: EnrolmentRecord | None = None
    snapshot: TrustSnapshot | None = None
    status: AgentStatus | None = None
    repository: OpenedRepository | None = None
    runtime: Path = RUNTIME_DIRECTORY

    @property
    def superlink(self) -> Server | None:
        """The SuperLink; None before the box knows one."""
        pinned = self.config.pinned
        if pinned is not None:
            roots = pinned.superlink.root_certificates
            return Server("SuperLink", pinned.superlink.address, roots.read_bytes() if roots.is_file() else b"")
        if self.snapshot is None:
            return None
        server = self.snapshot.consortium.superlink
        return Server("SuperLink", server.address, server.root_certificates.encode())

    @property
    def registrar(self) -> Server | None:
        """The registrar; None for a box that is not enrolled, or holds nothing that can be used."""
        if self.snapshot is None:
            return None
        server = self.snapshot.consortium.registrar
        return Server("registrar", server.address, server.root_certificates.encode())

    @property
    def servers(self) -> tuple[Server, ...]:
        """All that are known."""
        return tuple(server for server in (self.superlink, self.registrar) if server is not None)


@contextmanager
def open_box(config: AgentConfig, clock: Clock, *, runtime: Path = RUNTIME_DIRECTORY) -> Iterator[Box]:
    """Look at a box; whether its agent runs or not, nothing of it is touched.

    Args:
        config: Its configuration.
        clock: This machine's.
        runtime: The agent's directory in memory.

    Raises:
        HardwareError: The record of its enrolment is damaged.
    """
    state = config.node.state_directory
    folder = EnrolmentFolder.of(state)
    record, status = folder.load_record(), load_status(state)
    with ExitStack() as stack:
        repository = None
        if record is not None:
            # The agent holds the directory while it runs; a copy of it is read and refreshed instead.
            place = Path(stack.enter_context(TemporaryDirectory(prefix="seh-doctor-")))
            with suppress(OSError, SecureHealthError):  # the check of the repository says so
                shutil.copytree(folder.trust(record.root_digest), place / "trust")
                url = f"https://{record.registrar}/repository/"
                repository = OpenedRepository(place / "trust", url, clock, proxy=config.network.proxy)
                stack.callback(repository.close)
        snapshot = None if repository is None else _snapshot(repository)
        yield Box(config, clock, record, snapshot, status, repository, runtime)


def _snapshot(repository: OpenedRepository) -> TrustSnapshot | None:
    try:
        return repository.trust.load()
    except SecureHealthError:
        return None  # the check of the repository says why
