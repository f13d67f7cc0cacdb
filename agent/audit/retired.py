"""Logs that were put aside when this box was enrolled anew: read once more, for what must not be forgotten.

Their keys are gone with the enrolments that they served. But each log begins with the last signed checkpoint of the one
before, so the present log vouches for every entry of all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from agent.audit.leaves import Leaf, LogOpened, read_leaf
from agent.audit.note import parse_checkpoint
from agent.audit.tree import leaf_hash, root_of
from agent.core.errors import HardwareError, PeerProtocolError

PATTERN = "log.*.sqlite"


def retired_leaves(directory: Path, opened: Leaf) -> list[Leaf]:
    """All leaves of the logs before, the oldest log first.

    Args:
        directory: Where present and retired logs lie.
        opened: The present log's first leaf.

    Raises:
        HardwareError: One of them is missing or altered (`audit.retired_lost`).
    """
    logs: list[list[Leaf]] = []
    while isinstance(opened, LogOpened) and opened.previous:
        leaves = _vouched(directory, opened.previous)
        logs.append(leaves)
        opened = leaves[0]
    return [leaf for leaves in reversed(logs) for leaf in leaves]


def last_checkpoint(directory: Path) -> str:
    """The last signed checkpoint of the log that was put aside last; empty where there is none.

    Args:
        directory: Where retired logs lie.

    Raises:
        HardwareError: It cannot be read (`audit.retired_lost`).
    """
    try:
        for path in sorted(directory.glob(PATTERN), key=retired_number, reverse=True):
            with closing(_opened(path)) as database:
                row = database.execute("SELECT CAST(note AS TEXT) FROM head").fetchone()
            if row is not None:
                return str(row[0])
    except sqlite3.Error as error:
        raise _lost() from error
    return ""


def retired_number(path: Path) -> int:
    """Which of the retired logs a file is, from 0; -1 where it is none."""
    number = path.name.split(".")[1]
    return int(number) if number.isdecimal() else -1


def _vouched(directory: Path, note: str) -> list[Leaf]:
    """The leaves of the log that ended in this checkpoint."""
    try:
        checkpoint = parse_checkpoint(note.encode()).checkpoint
        for entries in _entries(directory.glob(PATTERN)):
            # A log's end is what its successor names; what somebody wrote behind it does not count.
            whole = entries[: checkpoint.size]
            if whole and root_of([leaf_hash(entry) for entry in whole]) == checkpoint.root:
                return [read_leaf(entry) for entry in whole]
    except (sqlite3.Error, PeerProtocolError) as error:
        raise _lost() from error
    raise _lost()


def _entries(paths: Iterable[Path]) -> Iterator[list[bytes]]:
    for path in sorted(paths):
        with closing(_opened(path)) as database:
            yield [bytes(entry) for (entry,) in database.execute("SELECT CAST(entry AS BLOB) FROM leaf ORDER BY id")]


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _lost() -> HardwareError:
    return HardwareError(
        "audit.retired_lost",
        "An audit log that this box kept before it was enrolled anew is missing or altered: what studies spent is "
        "not known.",
        next_step="Put the files log.*.sqlite back beside the log, from the box's own backup.",
    )
