"""The audit log while the power goes, a process dies, or the disk is full: what was acknowledged is there, whole."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import MessageRefused
from agent.audit.log import LOG_FILE_NAME, AuditLog, retire
from agent.core.errors import HardwareError
from tests.simulators.disk import mixed
from tests.simulators.power import PowerCutError, disk_full, struck

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "secur-e-health/consortium-a/hospital-a/node-a"
WAL_FILE_NAME = f"{LOG_FILE_NAME}-wal"
DIER = """
import os, signal, sys
from pathlib import Path
from tests.faults.test_audit_log import leaf, opened
log, at = opened(Path(sys.argv[1])), int(sys.argv[2])
steps = 0
def step():
    global steps
    steps += 1
    if steps == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0
log._database.set_progress_handler(step, 1)
log.append(leaf(3))
print(steps)
"""


def leaf(number: int) -> MessageRefused:
    return MessageRefused(at_s=number, study="study-a", rule="not_expired")


def opened(directory: Path) -> AuditLog:
    return AuditLog.open(directory, KEY, ORIGIN)


def times(directory: Path) -> list[int]:
    """What the log holds; opening it verifies all of it."""
    with opened(directory) as log:
        return [found.at_s for found in log.leaves(0, log.size)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A log of three leaves."""
    with opened(tmp_path / "audit") as log:
        for number in range(3):
            log.append(leaf(number))
    return tmp_path / "audit"


@pytest.mark.slow
def test_process_killed_at_steps_of_append(directory: Path) -> None:
    """SIGKILL in SQLite's own machine, step by step; the next start goes on from there."""

    def die(at: int) -> str:
        command = [sys.executable, "-c", DIER, str(directory), str(at)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        assert done.returncode in {0, -9}, done.stderr
        return done.stdout

    steps = int(die(0))
    expected = [0, 1, 2, 3]
    assert times(directory) == expected
    for at in sorted({1, 2, steps // 4, steps // 2, steps * 3 // 4, steps - 1, steps}):
        assert die(at) == ""
        found = times(directory)
        assert found in (expected, [*expected, 3])
        expected = found


def frames(directory: Path) -> Iterator[tuple[bytes, bytes]]:
    """The write-ahead log before and after one append, both as the program saw them."""
    with opened(directory) as log:
        log.append(leaf(3))  # acknowledged, so on the disk
        before = (directory / WAL_FILE_NAME).read_bytes()
        log.append(leaf(4))
        after = (directory / WAL_FILE_NAME).read_bytes()
        shutil.copy(directory / LOG_FILE_NAME, directory / "database")
        yield before, after


def test_write_that_was_lost_or_torn_takes_nothing_acknowledged_with_it(directory: Path, tmp_path: Path) -> None:
    """The power goes in mid-append: any blocks of what was not synced yet are on the disk, in any order."""
    outcomes = set()
    for before, after in frames(directory):
        database = (directory / "database").read_bytes()
        torn = [mixed(before, after, random.Random(seed), block_bytes=512) for seed in range(40)]
        for number, data in enumerate((before, after, *torn)):
            place = tmp_path / f"cut-{number}"
            place.mkdir()
            (place / LOG_FILE_NAME).write_bytes(database)
            (place / WAL_FILE_NAME).write_bytes(data)
            outcomes.add(tuple(times(place)))
    assert outcomes == {(0, 1, 2, 3), (0, 1, 2, 3, 4)}


def test_write_cut_off_at_any_byte_takes_nothing_acknowledged_with_it(directory: Path, tmp_path: Path) -> None:
    for before, after in frames(directory):
        database = (directory / "database").read_bytes()
        for length in range(len(before), len(after) + 1, 997):
            place = tmp_path / f"cut-{length}"
            place.mkdir()
            (place / LOG_FILE_NAME).write_bytes(database)
            (place / WAL_FILE_NAME).write_bytes(after[:length])
            assert times(place) in ([0, 1, 2, 3], [0, 1, 2, 3, 4])


def test_power_cut_while_leaves_move_into_the_database_takes_none(directory: Path, tmp_path: Path) -> None:
    """SQLite copies what it has synced beside the database into it; any blocks of that may be missing."""
    with opened(directory) as log:
        log.append(leaf(3))
        before = (directory / LOG_FILE_NAME).read_bytes()
        ahead = (directory / WAL_FILE_NAME).read_bytes()
        log._database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        after = (directory / LOG_FILE_NAME).read_bytes()
    assert before != after
    for seed in range(20):
        place = tmp_path / f"cut-{seed}"
        place.mkdir()
        (place / LOG_FILE_NAME).write_bytes(mixed(before, after, random.Random(seed), block_bytes=512))
        (place / WAL_FILE_NAME).write_bytes(ahead)
        assert times(place) == [0, 1, 2, 3]


def test_acknowledged_leaf_is_synced(directory: Path) -> None:
    """What `append` returned for is on the disk already: SQLite asks for it with each commit."""
    with opened(directory) as log:
        (synchronous,) = log._database.execute("PRAGMA synchronous").fetchone()
        (journal,) = log._database.execute("PRAGMA journal_mode").fetchone()
        assert (synchronous, journal) == (2, "wal")
        log.append(leaf(3))
        copy = directory.parent / "copy"
        copy.mkdir()
        for name in (LOG_FILE_NAME, WAL_FILE_NAME):
            shutil.copy(directory / name, copy / name)
        assert times(copy) == [0, 1, 2, 3]


def test_full_disk_refuses_the_leaf_and_keeps_the_log(directory: Path) -> None:
    with opened(directory) as log:
        (pages,) = log._database.execute("PRAGMA page_count").fetchone()
        log._database.execute(f"PRAGMA max_page_count = {pages}")
        added = 0
        with pytest.raises(HardwareError) as failure:  # noqa: PT012 - which one fails is the disk's to say
            for added in range(3, 1000):
                log.append(leaf(added))
        assert failure.value.code == "audit.disk"
        assert log.size == added
        head = log.checkpoint()
        log._database.execute("PRAGMA max_page_count = 100000")
        assert log.append(leaf(added)) == added
        assert log.consistency_proof(head.checkpoint.size, log.size)
    assert times(directory) == list(range(added + 1))


def test_fault_between_leaf_and_checkpoint_leaves_neither(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signature fails after the leaf was written, before the transaction ends."""

    def broken(*_: object) -> None:
        raise PowerCutError

    with opened(directory) as log:
        with monkeypatch.context() as patch:
            patch.setattr("agent.audit.log.sign_checkpoint", broken)
            with pytest.raises(PowerCutError):
                log.append(leaf(3))
        assert log.size == 3
        assert log.append(leaf(4)) == 3
    assert times(directory) == [0, 1, 2, 4]


def test_log_is_begun_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with struck(monkeypatch, None) as moments:
        opened(tmp_path / "counted").close()
    for at in range(moments.count):
        place = tmp_path / f"begun-{at}"
        with struck(monkeypatch, at), pytest.raises(PowerCutError):
            opened(place)
        assert times(place) == []


def test_log_is_put_aside_whole_or_not_at_all(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(directory) as log:
        head = log.checkpoint().note
    with struck(monkeypatch, 0), pytest.raises(PowerCutError):
        retire(directory)
    names = {path.name for path in directory.iterdir()}
    assert LOG_FILE_NAME in names or "log.0.sqlite" in names
    again = retire(directory)
    assert again in {head, ""}


def test_no_directory_for_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with struck(monkeypatch, 0, disk_full), pytest.raises(HardwareError) as failure:
        opened(tmp_path / "audit")
    assert failure.value.code == "audit.disk"
    assert os.strerror(28) in failure.value.sentence


def test_database_locked_by_a_stranger_is_no_damage(directory: Path) -> None:
    stranger = sqlite3.connect(directory / LOG_FILE_NAME, isolation_level=None)
    stranger.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(Exception, match="Another process"):
            opened(directory)
    finally:
        stranger.close()
    assert times(directory) == [0, 1, 2]
