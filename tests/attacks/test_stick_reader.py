"""A stick that broke its reader, which may then do in the drop directory whatever it likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.core.errors import PeerProtocolError
from agent.enrolment.drop import READING_FILE, StickReading, leave_reading, take_reading

READING = StickReading(code="stick.no_file", sentence="No file.", next_step="None.")


def put_link(path: Path) -> None:
    secret = path.parent.parent / "secret"
    secret.write_text(READING.model_dump_json())
    path.symlink_to(secret)


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"x")


@pytest.mark.parametrize("put", [put_link, put_folder, os.mkfifo, lambda path: path.write_bytes(bytes(1 << 20))])
def test_what_is_no_reading_is_taken_once_and_the_next_stick_is_read(tmp_path: Path, put: object) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    assert callable(put)
    put(drop / READING_FILE)
    with pytest.raises(PeerProtocolError) as caught:
        take_reading(drop)
    assert caught.value.code == "stick.bad_reading"
    assert take_reading(drop) is None
    leave_reading(drop, READING)
    assert take_reading(drop) == READING
