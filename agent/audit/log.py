"""The append-only record of what happened on this box: a Merkle tree over leaves in one SQLite file.

Leaf, and checkpoint over all leaves so far, get onto the disk in one transaction, and are there when `append` returns.
At every start the whole file is held against its own last checkpoint. Somebody who has the disk can therefore put an
older file back, and nothing else, without being named here; the witness names that (`agent.audit.witness`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pymerkle import BaseMerkleTree

from agent.audit.leaves import Leaf, encode_leaf, read_leaf
from agent.audit.note import (
    SIGNATURE,
    Checkpoint,
    CosignedCheckpoint,
    NoteKey,
    SignedCheckpoint,
    note_key,
    parse_checkpoint,
    sign_checkpoint,
    verify_cosignature,
    verify_signature,
)
from agent.audit.retired import PATTERN, retired_number
from agent.audit.tree import EMPTY_ROOT, Hashes, consistency_path, inclusion_path, leaf_hash
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.files import sync_directory

LOG_FILE_NAME: Final = "log.sqlite"
_FORMAT: Final = 1
_CHUNK: Final = 1000
_CACHE_BYTES: Final = 4 << 20
_SCHEMA: Final = (
    "CREATE TABLE leaf (id INTEGER PRIMARY KEY, entry BLOB NOT NULL, hash BLOB NOT NULL)",
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 0), note TEXT NOT NULL)",
    "CREATE TABLE cosigned (witness TEXT PRIMARY KEY, note TEXT NOT NULL)",
)
_ALL: Final = "SELECT id, CAST(entry AS BLOB), CAST(hash AS BLOB) FROM leaf ORDER BY id"


class _Tree(BaseMerkleTree):  # type: ignore[misc]  # the library has no types
    """The library's tree over our table of leaves; all of it runs under the library's own lock."""

    def __init__(self, database: sqlite3.Connection) -> None:
        super().__init__("sha256", capacity=_CACHE_BYTES)
        self._database = database
        self.size: int = 0

    def _encode_entry(self, data: bytes) -> bytes:
        return data

    def _store_leaf(self, data: bytes, digest: bytes) -> int:
        self._database.execute("INSERT INTO leaf VALUES (?, ?, ?)", (self.size + 1, data, digest))
        self.size += 1
        return self.size

    def _get_leaf(self, index: int) -> bytes:
        (digest,) = self._database.execute("SELECT hash FROM leaf WHERE id = ?", (index,)).fetchone()
        return bytes(digest)

    def _get_leaves(self, offset: int, width: int) -> list[bytes]:
        between = "SELECT hash FROM leaf WHERE id BETWEEN ? AND ? ORDER BY id"
        return [digest for (digest,) in self._database.execute(between, (offset + 1, offset + width))]

    def _get_size(self) -> int:
        return self.size


class AuditLog:
    """A log, open for this process alone; thread-safe. A context manager.

    Args:
        database: Opened by `open`.
        key: Signs checkpoints.
        origin: Names the log.
    """

    def __init__(self, database: sqlite3.Connection, key: Ed25519PrivateKey, origin: str) -> None:
        self._database = database
        self._key = key
        self._own = note_key(origin, key, SIGNATURE)
        self._tree = _Tree(database)
        self._head = sign_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT), key)

    @classmethod
    def open(cls, directory: Path, key: Ed25519PrivateKey, origin: str) -> Self:
        """Open the box's log, or begin one where there is none.

        Args:
            directory: Where it lies; made where it is missing.
            key: Signs checkpoints; always the same one for a log.
            origin: Names the log; `log_origin` makes it.

        Raises:
            HardwareError: The file was altered or cut, or is another log's; the code says which.
            OperatorError: Another process has it open (`audit.in_use`).
        """
        with _disk():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            database = _connect(directory)
        log = cls(database, key, origin)
        try:
            with _disk():
                log._load()
        except BaseException:
            database.close()
            raise
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._tree.lock:
            self._database.close()

    @property
    def key(self) -> NoteKey:
        """The log's public key, under its origin."""
        return self._own

    @property
    def origin(self) -> str:
        """Its name."""
        return self._own.name

    @property
    def size(self) -> int:
        """How many leaves it has."""
        return self._head.checkpoint.size

    def append(self, leaf: Leaf) -> int:
        """Add a leaf; it is on the disk when this returns, or not in the log at all.

        Returns:
            Its index, from 0.

        Raises:
            HardwareError: The disk does not take it (`audit.disk`).
        """
        data = encode_leaf(leaf)
        with self._tree.lock:
            before = self._tree.size
            try:
                with _disk(), self._database:
                    self._database.execute("BEGIN IMMEDIATE")
                    size = int(self._tree.append_entry(data))
                    head = sign_checkpoint(Checkpoint(self.origin, size, self._tree.get_root()), self._key)
                    self._database.execute("REPLACE INTO head VALUES (0, ?)", (head.note,))
            except BaseException:
                self._tree.size = before
                self._tree.cache_clear()
                raise
            self._head = head
            return size - 1

    def leaf(self, index: int) -> Leaf:
        """One leaf.

        Raises:
            OperatorError: There is none (`audit.no_leaf`).
        """
        for leaf in self.leaves(index, index + 1):
            return leaf
        raise OperatorError(
            "audit.no_leaf",
            f"The audit log has no entry {index}; it has {self.size}, counted from 0.",
            next_step="Name one of those.",
        )

    def leaves(self, start: int, stop: int) -> Iterator[Leaf]:
        """Leaves from `start` to before `stop`, as far as there are any."""
        return (read_leaf(data) for data, _ in self.entries(start, stop))

    def entries(self, start: int, stop: int) -> Iterator[tuple[bytes, bytes]]:
        """The same as the bytes that are hashed, each with its hash."""
        between = "SELECT entry, hash FROM leaf WHERE id BETWEEN ? AND ? ORDER BY id"
        stop = min(stop, self.size)
        for begin in range(max(start, 0), stop, _CHUNK):
            with self._tree.lock, _disk():
                chunk = self._database.execute(between, (begin + 1, min(begin + _CHUNK, stop))).fetchall()
            yield from chunk

    def checkpoint(self, size: int | None = None) -> SignedCheckpoint:
        """The checkpoint over all leaves, signed, or over the first `size` of them."""
        if size is None:
            return self._head
        return sign_checkpoint(Checkpoint(self.origin, size, self.root(size)), self._key)

    def root(self, size: int) -> bytes:
        """The tree's root when it had `size` leaves: (32,)."""
        with self._tree.lock, _disk():
            return bytes(self._tree.get_root(size))

    def inclusion_proof(self, index: int, size: int) -> Hashes:
        """That a leaf stands in the tree of `size` leaves."""
        with self._tree.lock, _disk():
            return inclusion_path(self._tree, index, size)

    def consistency_proof(self, old: int, new: int) -> Hashes:
        """That the tree of `new` leaves continues the one of `old`; empty for an empty tree before."""
        if old == 0:
            return ()
        with self._tree.lock, _disk():
            return consistency_path(self._tree, old, new)

    def cosigned(self, witness: NoteKey) -> CosignedCheckpoint | None:
        """The last checkpoint that this witness cosigned and that stands in this log; None where there is none."""
        with self._tree.lock, _disk():
            query = "SELECT CAST(note AS TEXT) FROM cosigned WHERE witness = ?"
            row = self._database.execute(query, (witness.vkey,)).fetchone()
        if row is None:
            return None
        try:
            return self._verified_cosigned(parse_checkpoint(row[0].encode()), witness)
        except PeerProtocolError:
            return None  # another checkpoint than this log's counts as none; the witness is asked again

    def add_cosignature(self, signed: SignedCheckpoint, witness: NoteKey) -> CosignedCheckpoint:
        """Keep what a witness cosigned.

        Args:
            signed: A checkpoint of this log, with the witness's signature.
            witness: Its key.

        Raises:
            PeerProtocolError: It is not this log's, or the cosignature does not hold.
            HardwareError: The disk does not take it.
        """
        with self._tree.lock:
            cosigned = self._verified_cosigned(signed, witness)
            with _disk(), self._database:
                self._database.execute("REPLACE INTO cosigned VALUES (?, ?)", (witness.vkey, signed.note))
        return cosigned

    def _verified_cosigned(self, signed: SignedCheckpoint, witness: NoteKey) -> CosignedCheckpoint:
        checkpoint = verify_signature(signed, self._own)
        if checkpoint.size > self.size or checkpoint.root != self.root(checkpoint.size):
            raise PeerProtocolError(
                "audit.not_in_log",
                "A cosigned checkpoint does not stand in this box's audit log.",
                next_step="Keep it: the log that it was made from had other entries.",
            )
        return verify_cosignature(signed, witness)

    def _load(self) -> None:
        row = self._database.execute("SELECT CAST(note AS TEXT) FROM head").fetchone()
        size = self._checked_leaves()
        if row is None and size == 0:
            return
        if row is None:
            raise _altered("its last checkpoint is missing")
        try:
            head = parse_checkpoint(row[0].encode())
            checkpoint = verify_signature(head, self._own)
        except PeerProtocolError as error:
            raise HardwareError(
                "audit.disk_foreign",
                "The audit log on this box's disk was not signed with this box's key: it is another box's, or forged.",
                next_step="Put this box's own log back; after a new enrolment, put the old one aside first.",
            ) from error
        if size < checkpoint.size:
            raise HardwareError(
                "audit.disk_cut",
                f"The audit log on this box's disk was cut: {checkpoint.size} entries were signed, {size} are there.",
                next_step="Somebody or a fault removed entries; put the log back from the box's own backup.",
            )
        self._tree.size = size
        if size != checkpoint.size or self._tree.get_root() != checkpoint.root:
            raise _altered("its entries are not those that it signed")
        self._head = head

    def _checked_leaves(self) -> int:
        size = 0
        for index, entry, digest in self._database.execute(_ALL):
            size += 1
            if index != size:
                raise _altered(f"entry {size - 1} is missing")
            if leaf_hash(entry) != digest:
                raise _altered(f"entry {size - 1} is not the one that was signed")
        return size


def log_origin(consortium: str, site: str, node: str, key: Ed25519PrivateKey) -> str:
    """A log's name; another key makes another log.

    Args:
        consortium: Its short name.
        site: The hospital.
        node: The box.
        key: The log's key.
    """
    return f"secur-e-health/{consortium}/{site}/{node}/{key.public_key().public_bytes_raw().hex()[:8]}"


def recorded_origin(directory: Path) -> str:
    """The name under which the log that lies here signed last; empty where there is none. Nothing is verified.

    Raises:
        HardwareError: It cannot be read.
    """
    if not (directory / LOG_FILE_NAME).exists():
        return ""
    return _last_note(directory).partition("\n")[0]


def retire(directory: Path) -> str:
    """Put a log aside whose key the box has no longer; its file stays beside the new one.

    Returns:
        Its last signed checkpoint, for the first leaf of the log that follows; empty where there was none.

    Raises:
        HardwareError: It cannot be read, or not be put aside.
    """
    path = directory / LOG_FILE_NAME
    if not path.exists():
        return ""
    note = _last_note(directory)
    with _disk():
        number = max(map(retired_number, directory.glob(PATTERN)), default=-1) + 1
        path.rename(directory / f"log.{number}.sqlite")
        sync_directory(directory)
    return note


def _last_note(directory: Path) -> str:
    with _disk():
        database = _connect(directory)
        try:
            row = database.execute("SELECT note FROM head").fetchone()
        finally:
            database.close()
    return str(row[0]) if row else ""


def _connect(directory: Path) -> sqlite3.Connection:
    path = directory / LOG_FILE_NAME
    path.touch(mode=0o600)  # SQLite gives the file beside it the same mode
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _prepare(database)
        sync_directory(directory)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    # One process alone: a second one would sign another history.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns (https://www.sqlite.org/pragma.html#pragma_synchronous).
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA trusted_schema = OFF")
    database.execute("BEGIN IMMEDIATE")
    with database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_FORMAT}")
        elif version != _FORMAT:
            raise _altered(f"its format is {version}, and this software reads {_FORMAT}")
        # A planted trigger would have us sign another leaf than the one that we add.
        if sorted(database.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL")) != [
            (s,) for s in sorted(_SCHEMA)
        ]:
            raise _altered("it has other tables than a log")


@contextmanager
def _disk() -> Iterator[None]:
    """SQLite's failures in our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error) from error
    except OSError as error:
        raise HardwareError(
            "audit.disk",
            f"The audit log cannot be written: {error.strerror}.",
            next_step="Free space on the box's disk, or replace it; until then nothing leaves this box.",
        ) from error


_BROKEN: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
)


def _translated(error: sqlite3.Error) -> SecureHealthError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return OperatorError(
            "audit.in_use",
            "Another process on this box has the audit log open.",
            next_step="Ask the running agent, or stop it first.",
        )
    if code in _BROKEN:
        return _altered("it is no whole database any more")
    return HardwareError(
        "audit.disk",
        f"The audit log cannot be written: {error}.",
        next_step="Free space on the box's disk, or replace it; until then nothing leaves this box.",
    )


def _altered(what: str) -> HardwareError:
    return HardwareError(
        "audit.disk_altered",
        f"The audit log on this box's disk was altered or damaged: {what}.",
        next_step="Nothing leaves this box meanwhile. Put the log back from the box's own backup; find out who did it.",
    )
