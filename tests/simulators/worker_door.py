"""What systemd does for seh-worker.socket (Accept=yes): a process for each connection, as packaging/systemd says.

It stands behind the unit's own fences, so that a call that the unit forbids and a worker needs is found here.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
FENCED = ROOT / "tests/simulators/fenced.py"
UNIT = ROOT / "packaging/systemd/seh-worker@.service"


class WorkerDoor:
    """Listens at `address` for as long as the `with` block lasts, and ends what is left then.

    Args:
        address: Path of the socket.
    """

    def __init__(self, address: Path) -> None:
        self.address = address
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.address))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="worker door")
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for process in self.processes:
            process.kill()
            process.wait()

    def _serve(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            with channel:
                self.processes.append(_start(channel.fileno()))


def _start(descriptor: int) -> subprocess.Popen[bytes]:
    unit = UNIT.read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=/usr/bin/python3 (.*) 3$", unit, re.MULTILINE)
    environment = dict(line.split("=", 1) for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE))
    return subprocess.Popen(
        [sys.executable, "-P", str(FENCED), str(UNIT), sys.executable, *command.split(), str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=environment | {"PYTHONPATH": str(ROOT)},
        pass_fds=[descriptor],
    )
