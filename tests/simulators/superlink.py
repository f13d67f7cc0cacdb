"""A real `flower-superlink` on loopback, over TLS with node authentication, that can be stopped, killed and restarted.

with RunningSuperLink.start(directory) as superlink:
    node_id = superlink.register(public_key)
    ...
    superlink.kill()
    superlink.restart()
"""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.authority.superlink import SuperLinkConnection, SuperLinkSettings, flower_environment
from provisioning.authority.tls import ServerFiles, create_authority, issue_server, store_server
from tests.simulators.families import descendants, kill_all

HOST = "127.0.0.1"
START_LIMIT_S = 90.0
STOP_LIMIT_S = 10.0


class SimulatorError(RuntimeError):
    """A simulator did not come up; the message carries the end of its log."""


def free_port() -> int:
    """A port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], *, limit_s: float, what: str, interval_s: float = 0.05) -> float:
    """Wait until `condition()` holds; return how many seconds that took."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > limit_s:
            raise SimulatorError(f"not within {limit_s:.0f} s: {what}")
        time.sleep(interval_s)
    return time.monotonic() - begin


@dataclass(slots=True)
class RunningSuperLink:
    """A SuperLink process and everything that a test needs to talk to it."""

    directory: Path
    settings: SuperLinkSettings
    connection: SuperLinkConnection
    process: subprocess.Popen[bytes] | None = None
    _keys: dict[int, ec.EllipticCurvePublicKey] = field(default_factory=dict)

    @classmethod
    def start(
        cls, directory: Path, *, in_memory: bool = True, port: int | None = None, files: ServerFiles | None = None
    ) -> Self:
        """Write an operator's connection, and start the process.

        Args:
            directory: Private to this SuperLink; holds `tls/`, `home/`, `superlink.log` and the database.
            in_memory: Whether it forgets everything when it stops; else it keeps a SQLite file.
            port: Where to listen; None takes a free one.
            files: Its certificate; None has a CA founded in `directory`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        files = files or prepare_tls(directory / "tls")
        database = None if in_memory else directory / "superlink.db"
        settings = SuperLinkSettings(HOST, port or free_port(), files, database)
        connection = SuperLinkConnection((directory / "home").resolve(), settings.address, files.root.resolve())
        connection.store()
        superlink = cls(directory, settings, connection)
        superlink.restart()
        return superlink

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.settings.address

    @property
    def root_certificate(self) -> Path:
        """What a node pins."""
        return self.settings.files.root

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def _log_path(self) -> Path:
        return self.directory / "superlink.log"

    def register(self, public_key: ec.EllipticCurvePublicKey, *, name: str | None = None) -> int:
        """Register a node's key; returns the node's id."""
        node_id = self.connection.register_node(public_key, name=name)
        self._keys[node_id] = public_key
        return node_id

    def register_again(self) -> dict[int, int]:
        """After a restart in memory: register all keys once more; returns old id -> new id."""
        keys, self._keys = self._keys, {}
        return {old: self.register(key) for old, key in keys.items()}

    def restart(self) -> None:
        """Start it (again) on the same port, and wait until it answers over TLS."""
        if self.process is not None and self.process.poll() is None:
            raise SimulatorError("it runs already")
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.settings.command(),
                env=flower_environment(self.connection.home),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, limit_s=START_LIMIT_S, what="the SuperLink answers over TLS")
        except SimulatorError as error:
            self.kill()
            raise SimulatorError(f"{error}\n{self.log[-3000:]}") from error

    def stop(self) -> None:
        """End it as an operator would (SIGTERM), with everything it started."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), with everything it started."""
        self._end(signal.SIGKILL)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SimulatorError(f"the SuperLink ended with status {self.process.returncode}")
        context = ssl.create_default_context(cafile=str(self.root_certificate))
        try:
            with (
                socket.create_connection((self.settings.host, self.settings.port), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=self.settings.host),
            ):
                return True
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        family = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_LIMIT_S)
        kill_all(family, limit_s=STOP_LIMIT_S)
        self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def prepare_tls(directory: Path) -> ServerFiles:
    """Make a CA and a certificate for loopback in `directory`."""
    now = datetime.now(UTC)
    authority = create_authority("Loopback consortium", now=now)
    return store_server(directory.resolve(), authority, issue_server(authority, [HOST, "localhost"], now=now))
