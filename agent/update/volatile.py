"""What the slot tool remembers within one boot: in /run, so that it is gone with the power."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from agent.core.files import store_atomically
from agent.update.trial import Watch

WATCH_FILE: Final = "watch.json"
MEASURED_FILE: Final = "measured"
STATUS_FILE: Final = "status.json"
ANSWER_FILE: Final = "answer.json"


@dataclass(frozen=True, slots=True)
class Volatile:
    """A directory in memory; only root writes there, everybody may read.

    Args:
        directory: It.
    """

    directory: Path

    def begin_watch(self, now_s: int, slot: str, version: str) -> Watch:
        """How the trial of what runs went so far; it begins now if it did not before.

        Args:
            now_s: The clock since boot.
            slot: Where it runs from.
            version: Which release it is.
        """
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads((self.directory / WATCH_FILE).read_bytes())
            if (kept["slot"], kept["version"]) == (slot, version):
                return Watch(**kept["watch"])
        watch = Watch(now_s)
        self._store(WATCH_FILE, {"slot": slot, "version": version, "watch": asdict(watch)})
        return watch

    def keep_watch(self, watch: Watch) -> None:
        """Remember how the trial went so far; it has begun."""
        kept = json.loads((self.directory / WATCH_FILE).read_bytes())
        self._store(WATCH_FILE, kept | {"watch": asdict(watch)})

    def end_watch(self) -> None:
        """Forget it: another trial begins."""
        (self.directory / WATCH_FILE).unlink(missing_ok=True)

    @property
    def measured(self) -> str | None:
        """Root hash that was measured last in this boot, hex."""
        with suppress(OSError):
            return (self.directory / MEASURED_FILE).read_text().split()[-1]
        return None

    def note_measured(self, root_hash: str) -> None:
        """Add to what was measured in this boot, in order: with it, the PCR can be computed."""
        path = self.directory / MEASURED_FILE
        before = path.read_text() if path.exists() else ""
        store_atomically(path, f"{before}{root_hash}\n".encode())

    def publish(self, status: dict[str, object]) -> None:
        """Leave for the agent, the updater and people what `seh-slot status` says."""
        self._store(STATUS_FILE, status)

    def answer(self, answer: dict[str, object]) -> None:
        """Leave for the updater what became of what it asked."""
        self._store(ANSWER_FILE, answer)

    def _store(self, file: str, value: dict[str, object]) -> None:
        store_atomically(self.directory / file, json.dumps(value, indent=1).encode() + b"\n")
