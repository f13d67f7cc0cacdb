"""The record of rounds on the disk: what was answered stays answered, whenever the power fails."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.federation.journal import FileJournal, lift_pause
from agent.secagg.journal import AcceptedModel, AttemptRecord
from agent.secagg.rules import ABORT_LOCK

KEY = b"k" * 32
RECORD = AttemptRecord(3, 1, b"c" * 32, ("a", "b", "c"), b"m" * 32)


def test_a_restart_finds_every_attempt_lock_and_model(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path, KEY)
    journal.record_attempt(replace(RECORD, round_number=2))
    journal.record_attempt(RECORD)
    journal.record_attempt(replace(RECORD, lock=ABORT_LOCK))
    parameters = np.linspace(-1, 1, 7, dtype=np.float32)
    journal.record_model(AcceptedModel(3, parameters))
    again = FileJournal(tmp_path, KEY)
    assert again.latest_attempt() == replace(RECORD, lock=ABORT_LOCK)
    assert again.cohort_of_model(b"m" * 32) == ("a", "b", "c")
    assert again.cohort_of_model(b"x" * 32) is None
    model = again.accepted_model()
    assert model is not None
    assert model.round_number == 3
    np.testing.assert_array_equal(model.parameters, parameters)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_cut_by_a_power_failure_counts_as_never_written(tmp_path: Path, kept: int) -> None:
    journal = FileJournal(tmp_path, KEY)
    journal.record_attempt(RECORD)
    log = tmp_path / "attempts.jsonl"
    whole = log.read_bytes()
    journal.record_attempt(replace(RECORD, attempt=2))
    log.write_bytes(log.read_bytes()[: len(whole) + kept] if kept > 0 else log.read_bytes()[:-1])
    again = FileJournal(tmp_path, KEY)
    assert again.latest_attempt() == RECORD
    again.record_attempt(replace(RECORD, attempt=3))
    assert FileJournal(tmp_path, KEY).latest_attempt() == replace(RECORD, attempt=3)


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a-line-that-says-nothing": lambda lines: [b"{}", *lines],
    "no-object": lambda lines: [b"[]", *lines],
    "no-JSON": lambda lines: [*lines, b"\xff"],
    "an-empty-line": lambda lines: [*lines, b""],
    "a-deep-line": lambda lines: [*lines, b"[" * 100_000],
    "a-lock-taken-off": lambda lines: [lines[0], lines[1].replace(ABORT_LOCK.hex().encode(), b""), lines[2]],
    "another-round": lambda lines: [lines[0], lines[1], lines[2].replace(b'"round": 4', b'"round": 1')],
    "a-code-flipped": lambda lines: [
        *lines[:2],
        lines[2][:-4] + (b"0" if lines[2][-4:-3] != b"0" else b"1") + lines[2][-3:],
    ],
    "no-code": lambda lines: [*lines[:2], lines[2].partition(b', "code"')[0] + b"}"],
    "a-line-left-out": lambda lines: [lines[0], lines[2]],
    "the-first-left-out": lambda lines: lines[1:],
    "lines-exchanged": lambda lines: [lines[0], lines[2], lines[1]],
    "a-line-twice": lambda lines: [*lines, lines[2]],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_record_in_another_hand_stops_the_study_on_this_box(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    journal, log = FileJournal(tmp_path, KEY), tmp_path / "attempts.jsonl"
    for record in (RECORD, replace(RECORD, lock=ABORT_LOCK), replace(RECORD, round_number=4)):
        journal.record_attempt(record)
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    FileJournal(tmp_path, KEY)
    log.write_bytes(b"".join(line + b"\n" for line in damage(lines)))
    with pytest.raises(HardwareError, match="not written by this box"):
        FileJournal(tmp_path, KEY)


def test_another_box_s_record_is_none(tmp_path: Path) -> None:
    FileJournal(tmp_path, KEY).record_attempt(RECORD)
    with pytest.raises(HardwareError, match="not written by this box"):
        FileJournal(tmp_path, b"o" * 32)


@pytest.mark.parametrize("name", ["attempts.jsonl", "model.bin", "configuration"])
def test_a_record_moved_to_another_study_is_none(tmp_path: Path, name: str) -> None:
    journal = FileJournal(tmp_path / "one" / "local", KEY)
    journal.record_attempt(RECORD)
    journal.record_model(AcceptedModel(1, np.ones(4, dtype=np.float32)))
    journal.pin_configuration(b"{}")
    FileJournal(tmp_path / "other" / "local", KEY)
    (tmp_path / "one" / "local" / name).rename(tmp_path / "other" / "local" / name)
    with pytest.raises(HardwareError, match="not written by this box"):
        FileJournal(tmp_path / "other" / "local", KEY).pin_configuration(b"{}")


def test_a_disk_that_was_full_spoils_no_later_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal(tmp_path, KEY)
    journal.record_attempt(RECORD)
    real_write = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data[: len(data) - 50])

    monkeypatch.setattr("os.write", write_half)
    with pytest.raises(HardwareError, match="cannot be written"):
        journal.record_attempt(replace(RECORD, attempt=2))
    monkeypatch.undo()
    journal.record_attempt(replace(RECORD, attempt=3))
    assert FileJournal(tmp_path, KEY).latest_attempt() == replace(RECORD, attempt=3)


def test_a_flipped_bit_in_the_accepted_model_is_found(tmp_path: Path) -> None:
    FileJournal(tmp_path, KEY).record_model(AcceptedModel(1, np.ones(4, dtype=np.float32)))
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(HardwareError, match="damaged"):
        FileJournal(tmp_path, KEY)


def test_other_moments_than_in_the_first_round_are_refused_also_after_a_restart(tmp_path: Path) -> None:
    FileJournal(tmp_path, KEY).pin_configuration(b'{"age": [60.0, 10.0]}')
    journal = FileJournal(tmp_path, KEY)
    journal.pin_configuration(b'{"age": [60.0, 10.0]}')
    with pytest.raises(PeerProtocolError, match="other moments"):
        journal.pin_configuration(b'{"age": [60.0, 9.0]}')


def test_a_pause_outlives_a_restart_and_is_lifted_by_hand(tmp_path: Path) -> None:
    FileJournal(tmp_path / "rounds" / "study" / "data", KEY).pause("training.ended")
    journal = FileJournal(tmp_path / "rounds" / "study" / "data", KEY)
    with pytest.raises(OperatorError, match=r"training\.ended"):
        journal.check_not_paused()
    assert lift_pause(tmp_path / "rounds" / "study" / "data")
    assert not lift_pause(tmp_path / "rounds" / "study" / "data")
    journal.check_not_paused()
