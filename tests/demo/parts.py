"""The demonstration's processes: started apart from the terminal, watched, and ended with all that they started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.simulators.families import descendants, kill_all

STOP_LIMIT_S = 6.0
TAIL_LINES = 12


class PartFailedError(Exception):
    """One part of the demonstration did not do its work.

    Args:
        part: Which one, in words.
        what: What happened.
        next_step: What the reader can do.
        log: The last lines of its log.
    """

    def __init__(self, part: str, what: str, *, next_step: str, log: str = "") -> None:
        super().__init__(f"{part}: {what}")
        self.part, self.what, self.next_step, self.log = part, what, next_step, log


@dataclass(slots=True)
class Part:
    """A process of the demonstration.

    Args:
        name: In words: "agent of Cleveland".
        log: Where its output goes.
        process: The process.
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Part:
        """Start it in a session of its own, so that Ctrl-C reaches only the demonstration, which ends it in order."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(name, log, process)

    def check(self) -> None:
        """Raise if it has ended by itself.

        Raises:
            PartFailedError: It has.
        """
        status = self.process.poll()
        if status is not None:
            raise PartFailedError(
                self.name,
                f"it ended by itself (status {status})",
                next_step=f"Read its log: {self.log}",
                log=tail(self.log),
            )

    def ask_to_stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def stop_all(parts: Sequence[Part], *, limit_s: float = STOP_LIMIT_S) -> None:
    """End the parts together, with their descendants: first asked, then, after `limit_s`, made to."""
    families = [member for part in parts for member in _family(part.process.pid)]
    for part in parts:
        part.ask_to_stop()
    _, stubborn = psutil.wait_procs(families, timeout=limit_s)
    kill_all(stubborn, limit_s=STOP_LIMIT_S)
    for part in parts:
        part.process.wait(STOP_LIMIT_S)


def tail(log: Path, *, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _family(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *descendants(pid)]
    except psutil.NoSuchProcess:
        return []
