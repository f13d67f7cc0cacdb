"""A consortium as its operator runs it: every part made and started by the command that its operator would type.

with Operator.found(directory, makers=...) as operator:
    operator.add_site("hospital-a")
    operator.endorse("hospital-a")
    stick = operator.issue("hospital-a")
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.simulators.superlink import SimulatorError, free_port, wait_until

SCRIPTS = Path(sys.executable).parent
COMMAND_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0


@dataclass(slots=True)
class Operator:
    """The operator's host, and the hospitals' tools on it.

    Args:
        directory: Holds everything.
        registrar: `host:port`.
        superlink: `host:port`.
    """

    directory: Path
    registrar: str
    superlink: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def found(cls, directory: Path, *, makers: Iterable[bytes] = ()) -> Self:
        """Found a test consortium, and start its SuperLink and its registrar.

        Args:
            directory: Of everything.
            makers: Certificates (PEM) of makers whose hardware counts as `test`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        operator = cls(directory.resolve(), f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
        folder = directory / "makers" / "test"
        folder.mkdir(parents=True)
        for number, pem in enumerate(makers):
            (folder / f"{number}.pem").write_bytes(pem)
        named = ("--id", "consortium-a", "--name", "Consortium A", "--environment", "test")
        where = ("--registrar", operator.registrar, "--superlink", operator.superlink)
        operator.types("consortium", "init", "-d", operator.place, *named, *where, "--makers", str(folder.parent))
        operator.starts("superlink", "run", "-d", operator.place)
        operator.wait_for(operator.superlink)
        operator.starts("registrar", "run", "--config", str(operator.authority / "registrar.toml"))
        operator.wait_for(operator.registrar)
        return operator

    @property
    def authority(self) -> Path:
        """The authority's directory."""
        return self.directory / "authority"

    @property
    def place(self) -> str:
        """The same, as typed."""
        return str(self.authority)

    @property
    def root(self) -> Path:
        """`1.root.json`."""
        return self.authority / "repository" / "1.root.json"

    def add_site(self, site: str) -> None:
        """Make a hospital's key, and take the hospital in."""
        home = self.home(site)
        home.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        (home / "site.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.types("site", "add", site, "-d", self.place, "--key", f"file:{home / 'site.pem'}")

    def endorse(self, site: str) -> None:
        """Start the hospital's tool, and wait until the hospital has signed."""
        self.starts("site", "endorse", *self.desk(site), "--watch")
        wait_until(
            lambda: f"{site}: has signed nothing yet" not in self.types("site", "list", "-d", self.place),
            limit_s=60,
            what=f"{site} has signed",
        )

    def issue(self, site: str, *options: str) -> str:
        """Issue a token to a file; returns its text."""
        file = self.home(site) / f"token-{len(list(self.home(site).glob('token-*')))}.txt"
        self.types("token", "issue", *self.desk(site), "--file", str(file), *options)
        return file.read_text().strip()

    def desk(self, site: str) -> tuple[str, ...]:
        """What the commands of a hospital's operator have in common."""
        home = self.home(site)
        who = ("--site", site, "--key", f"file:{home / 'site.pem'}", "--state", str(home / "state"))
        return (*who, "--registrar", self.registrar, "--root", str(self.root))

    def home(self, site: str) -> Path:
        """A hospital's directory."""
        return self.directory / site

    def types(self, *arguments: str) -> str:
        """Run a command to its end; returns what it said."""
        result = subprocess.run(
            [str(SCRIPTS / "seh-provision"), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if result.returncode:
            raise SimulatorError(f"{' '.join(arguments)}\n{result.stdout}{result.stderr}")
        return result.stdout

    def starts(self, *arguments: str) -> None:
        """Start a command that runs until it is stopped."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(SCRIPTS / "seh-provision"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self.processes.append(process)

    def process_of(self, word: str) -> subprocess.Popen[bytes]:
        """The one process whose command has this word in it."""
        (found,) = [process for process in self.processes if word in process.args and process.poll() is None]  # type: ignore[operator]
        return found

    def restart(self, process: subprocess.Popen[bytes]) -> None:
        """Cut its power, start the same command again, and wait until it listens."""
        process.kill()
        process.wait(STOP_LIMIT_S)
        self.processes.remove(process)
        arguments = [str(word) for word in process.args][1:]  # type: ignore[union-attr]
        self.starts(*arguments)
        self.wait_for(self.registrar)

    @property
    def log(self) -> Path:
        """What all of them said."""
        return self.directory / "operator.log"

    def wait_for(self, address: str) -> None:
        """Wait until somebody listens there."""
        host, _, port = address.rpartition(":")

        def listens() -> bool:
            if any(process.poll() is not None for process in self.processes):
                raise SimulatorError(self.log.read_text()[-4000:])
            try:
                socket.create_connection((host, int(port)), timeout=2).close()
            except OSError:
                return False
            return True

        wait_until(listens, limit_s=90, what=f"somebody listens on {address}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        families = [family for process in self.processes for family in _family(process.pid)]
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_LIMIT_S)
        for member in families:
            if member.is_running():
                member.kill()
        psutil.wait_procs(families, timeout=STOP_LIMIT_S)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
