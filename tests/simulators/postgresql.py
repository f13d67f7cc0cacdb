"""A PostgreSQL cluster of a test's own: made as an unprivileged user, reachable over a socket in its directory only."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_BINARIES = Path("/usr/lib/postgresql")
_USER = "postgres"  # Debian's package makes it; the server refuses to run as root
LIMIT_S = 60.0


@dataclass
class PostgreSQL:
    """A context manager: the cluster is gone with it."""

    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="seh-pg-")))

    @property
    def url(self) -> str:
        """SQLAlchemy's."""
        return f"postgresql://{_USER}@/postgres?host={self.directory}"

    def restart(self) -> None:
        """Stop it as an operator does in a hurry, open connections and all, and start it again."""
        self._run("pg_ctl", "stop", "-D", str(self._data), "-m", "immediate", "-w")
        self._start()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _start(self) -> None:
        options = f"-k {self.directory} -c listen_addresses= -c max_connections=50 -c shared_buffers=16MB"
        log = str(self.directory / "log")
        self._run("pg_ctl", "start", "-D", str(self._data), "-l", log, "-w", "-o", options)

    def _run(self, program: str, *arguments: str) -> None:
        binary = max(_BINARIES.glob(f"*/bin/{program}"))
        owner = pwd.getpwnam(_USER).pw_uid if os.getuid() == 0 else None
        # Into a file: the server keeps the descriptors that it was started with.
        with (self.directory / "commands.log").open("ab") as log:
            subprocess.run(
                [str(binary), *arguments],
                user=owner,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=LIMIT_S,
                check=True,
            )

    def __enter__(self) -> Self:
        if os.getuid() == 0:
            shutil.chown(self.directory, _USER)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", _USER, "--no-sync", "-E", "UTF8")
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("pg_ctl", "stop", "-D", str(self._data), "-m", "immediate", "-w")
        shutil.rmtree(self.directory)
