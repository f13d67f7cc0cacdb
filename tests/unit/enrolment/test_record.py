"""What an enrolment leaves on the box."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.core.errors import HardwareError, OperatorError
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord, PendingEnrolment, unenrol
from agent.trust.snapshot import Environment

RECORD = EnrolmentRecord(
    site="hospital-a",
    node="ab" * 8,
    key_id="ab" * 32,
    root_digest="cd" * 32,
    environment=Environment.TEST,
    consortium="played",
    name="The Played Consortium",
    registrar="registrar.example.org:8443",
    enrolled=datetime(2026, 3, 1, 12, tzinfo=UTC),
)


@pytest.fixture
def folder(tmp_path: Path) -> EnrolmentFolder:
    return EnrolmentFolder.of(tmp_path / "state")


def test_a_box_that_is_being_enrolled_does_not_leave(folder: EnrolmentFolder) -> None:
    folder.store_record(RECORD)
    with folder.locked(), pytest.raises(OperatorError) as caught:
        unenrol(folder)
    assert caught.value.code == "enrolment.under_way"
    assert folder.load_record() == RECORD
    unenrol(folder)
    assert folder.load_record() is None


def test_a_box_that_was_never_enrolled_has_neither_record_nor_token(folder: EnrolmentFolder) -> None:
    assert (folder.load_record(), folder.load_pending()) == (None, None)


def test_what_was_stored_comes_back_and_is_the_owners_alone(folder: EnrolmentFolder) -> None:
    pending = PendingEnrolment(token="SEH1:TEXT", confirmed=True)
    folder.store_record(RECORD)
    folder.store_pending(pending)
    assert (folder.load_record(), folder.load_pending()) == (RECORD, pending)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.glob("*.json")}
    # The record holds no secret, and the updater's unit is shown it; nobody else gets through the directory.
    assert modes == {"record.json": 0o644, "pending.json": 0o600}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_tokens_text_does_not_show_in_a_log() -> None:
    assert "SEH1:" not in repr(PendingEnrolment(token="SEH1:TEXT"))


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"site": "hospital-a"}'])
def test_a_damaged_record_is_said_and_never_taken_for_none(folder: EnrolmentFolder, data: bytes) -> None:
    folder.store_record(RECORD)
    (folder.path / "record.json").write_bytes(data)
    with pytest.raises(HardwareError) as caught:
        folder.load_record()
    assert caught.value.code == "enrolment.bad_file"


def test_a_box_of_a_test_consortium_leaves_it_and_keeps_nothing_of_it(folder: EnrolmentFolder) -> None:
    folder.store_record(RECORD)
    folder.store_authority(b"pem")
    folder.trust(RECORD.root_digest).mkdir(parents=True)
    assert unenrol(folder) == RECORD
    assert {path.name for path in folder.path.iterdir()} == {"lock"}
    assert (folder.path / "lock").read_bytes() == b""


def test_a_box_of_a_production_consortium_does_not_leave_it_without_the_steward(folder: EnrolmentFolder) -> None:
    folder.store_record(RECORD.model_copy(update={"environment": Environment.PRODUCTION}))
    with pytest.raises(OperatorError, match="data steward") as caught:
        unenrol(folder)
    assert caught.value.code == "enrolment.needs_steward"
    assert folder.load_record() is not None


def test_a_box_that_belongs_nowhere_cannot_leave(folder: EnrolmentFolder) -> None:
    with pytest.raises(OperatorError) as caught:
        unenrol(folder)
    assert caught.value.code == "enrolment.not_enrolled"
