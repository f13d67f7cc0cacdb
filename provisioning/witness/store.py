"""What a witness must not forget: every log it knows, and the last state of each that it cosigned."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agent.core.errors import HardwareError, OperatorError
from agent.core.files import sync_directory

DATABASE_NAME: Final = "witness.sqlite"
_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE log (
    origin TEXT PRIMARY KEY, key BLOB NOT NULL, site TEXT NOT NULL, node TEXT NOT NULL, opened BLOB NOT NULL,
    number INTEGER NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL, UNIQUE (site, node, number)
)
"""
_COLUMNS: Final = "origin, key, site, node, opened, number, size, root, note"


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A log, and what the witness has seen of it.

    Args:
        origin: Its name.
        key: Ed25519: (32,).
        site: The hospital.
        node: The box.
        opened: Hash of its first leaf: (32,).
        number: Which log of this box it is, from 0.
        size: Leaves when it was last seen.
        root: The tree's root then: (32,).
        note: The checkpoint that was cosigned last; empty where none was.
    """

    origin: str
    key: bytes
    site: str
    node: str
    opened: bytes
    number: int
    size: int
    root: bytes
    note: str = ""


class WitnessStore:
    """One SQLite file, open for this process alone; thread-safe. A context manager.

    Args:
        database: Opened by `open`.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._lock = threading.RLock()

    @classmethod
    def create(cls, directory: Path) -> None:
        """Make an empty one.

        Raises:
            OperatorError: There is one already: a witness that forgets could witness two histories
                (`witness.has_state`).
            HardwareError: The disk does not take it.
        """
        path = directory / DATABASE_NAME
        if path.exists():
            raise OperatorError(
                "witness.has_state",
                f"There is a witness's memory at {path} already.",
                next_step="Use it, or choose another directory; a witness that forgets witnesses nothing.",
            )
        with _disk(path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)  # SQLite gives the file beside it the same mode
            database = _connect(path, "rw")
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute(_SCHEMA)
                database.execute(f"PRAGMA user_version = {_FORMAT}")
            database.close()
            sync_directory(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open it.

        Raises:
            OperatorError: It is not there, or another process has it open (`witness.in_use`).
            HardwareError: It is damaged.
        """
        path = directory / DATABASE_NAME
        if not path.exists():
            raise OperatorError(
                "witness.no_state",
                f"This witness's memory is missing from {directory}.",
                next_step="Restore it. If it is lost, make a witness with a new key, and name that to the consortium.",
            )
        with _disk(path):
            database = _connect(path, "rw")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                database.close()
                raise _damaged(path)
        return cls(database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One change after the other: what is read inside is still so when it is written; on the disk at the end."""
        with self._lock, _disk(Path(DATABASE_NAME)), self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield

    def log(self, origin: str) -> KnownLog | None:
        """The log of this name."""
        return self._one("WHERE origin = ?", origin)

    def newest_of(self, site: str, node: str) -> KnownLog | None:
        """The last log of a box."""
        return self._one("WHERE site = ? AND node = ? ORDER BY number DESC LIMIT 1", site, node)

    def add(self, log: KnownLog) -> None:
        """Know a new log; inside `changing`."""
        row = (log.origin, log.key, log.site, log.node, log.opened, log.number, log.size, log.root, log.note)
        self._database.execute(f"INSERT INTO log ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)  # noqa: S608

    def advance(self, origin: str, size: int, root: bytes, note: str) -> None:
        """Remember a newer state; inside `changing`."""
        self._database.execute(
            "UPDATE log SET size = ?, root = ?, note = ? WHERE origin = ?", (size, root, note, origin)
        )

    def forget(self, site: str, node: str) -> int:
        """Forget a box's logs, as its hospital lost them for good.

        Returns:
            How many there were.
        """
        with self.changing():
            return self._database.execute("DELETE FROM log WHERE site = ? AND node = ?", (site, node)).rowcount

    def _one(self, condition: str, *values: str) -> KnownLog | None:
        with self._lock, _disk(Path(DATABASE_NAME)):
            query = f"SELECT {_COLUMNS} FROM log {condition}"  # noqa: S608 - conditions of our own
            row = self._database.execute(query, values).fetchone()
        return KnownLog(*row) if row else None


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    # One process alone: two could cosign two histories.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # On the disk before the cosignature exists (tlog-witness: "MUST persist the new checkpoint before responding").
    database.execute("PRAGMA synchronous = FULL")
    database.execute("BEGIN IMMEDIATE")
    database.execute("COMMIT")
    return database


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise OperatorError(
                "witness.in_use",
                "Another process has this witness's memory open.",
                next_step="Stop the running witness first.",
            ) from error
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise _damaged(path) from error
        raise _not_stored(str(error)) from error
    except OSError as error:
        raise _not_stored(error.strerror or "") from error


def _damaged(path: Path) -> HardwareError:
    return HardwareError(
        "witness.damaged",
        f"This witness's memory, {path.name}, is damaged.",
        next_step="Restore it from a copy of its last state; a witness that forgets witnesses nothing.",
    )


def _not_stored(what: str) -> HardwareError:
    return HardwareError(
        "witness.not_stored",
        f"The witness's disk does not take what it must remember: {what}.",
        next_step="Free space, or replace the disk; nothing is cosigned meanwhile.",
    )
