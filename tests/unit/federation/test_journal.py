"""The record of rounds on the disk: what was answered stays answered, whenever the power fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.federation.journal import FileJournal
from agent.secagg.journal import AcceptedModel, AttemptRecord
from agent.secagg.rules import ABORT_LOCK

RECORD = AttemptRecord(3, 1, b"c" * 32, ("a", "b", "c"), b"m" * 32)


def test_a_restart_finds_every_attempt_lock_and_model(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    journal.record_attempt(replace(RECORD, round_number=2))
    journal.record_attempt(RECORD)
    journal.record_attempt(replace(RECORD, lock=ABORT_LOCK))
    parameters = np.linspace(-1, 1, 7, dtype=np.float32)
    journal.record_model(AcceptedModel(3, parameters))
    again = FileJournal(tmp_path)
    assert again.latest_attempt() == replace(RECORD, lock=ABORT_LOCK)
    assert again.cohort_of_model(b"m" * 32) == ("a", "b", "c")
    assert again.cohort_of_model(b"x" * 32) is None
    model = again.accepted_model()
    assert model is not None
    assert model.round_number == 3
    np.testing.assert_array_equal(model.parameters, parameters)


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_cut_by_a_power_failure_counts_as_never_written(tmp_path: Path, kept: int) -> None:
    journal = FileJournal(tmp_path)
    journal.record_attempt(RECORD)
    log = tmp_path / "attempts.jsonl"
    whole = log.read_bytes()
    journal.record_attempt(replace(RECORD, attempt=2))
    log.write_bytes(log.read_bytes()[: len(whole) + kept] if kept > 0 else log.read_bytes()[:-1])
    again = FileJournal(tmp_path)
    assert again.latest_attempt() == RECORD
    again.record_attempt(replace(RECORD, attempt=3))
    assert FileJournal(tmp_path).latest_attempt() == replace(RECORD, attempt=3)


def test_a_damaged_line_stops_the_study_on_this_box(tmp_path: Path) -> None:
    FileJournal(tmp_path).record_attempt(RECORD)
    log = tmp_path / "attempts.jsonl"
    log.write_bytes(b"{}\n" + log.read_bytes())
    with pytest.raises(HardwareError, match="damaged"):
        FileJournal(tmp_path)


def test_a_flipped_bit_in_the_accepted_model_is_found(tmp_path: Path) -> None:
    FileJournal(tmp_path).record_model(AcceptedModel(1, np.ones(4, dtype=np.float32)))
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(HardwareError, match="damaged"):
        FileJournal(tmp_path)


def test_other_moments_than_in_the_first_round_are_refused_also_after_a_restart(tmp_path: Path) -> None:
    FileJournal(tmp_path).pin_configuration(b'{"age": [60.0, 10.0]}')
    journal = FileJournal(tmp_path)
    journal.pin_configuration(b'{"age": [60.0, 10.0]}')
    with pytest.raises(PeerProtocolError, match="other moments"):
        journal.pin_configuration(b'{"age": [60.0, 9.0]}')


def test_a_pause_outlives_a_restart_and_is_lifted_by_hand(tmp_path: Path) -> None:
    FileJournal(tmp_path / "rounds" / "study" / "data").pause("training.ended")
    journal = FileJournal(tmp_path / "rounds" / "study" / "data")
    with pytest.raises(OperatorError, match=r"training\.ended"):
        journal.check_not_paused()
    assert journal.resume()
    assert not journal.resume()
    journal.check_not_paused()
