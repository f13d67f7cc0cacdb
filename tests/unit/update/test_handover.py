from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.update.handover import READY_FILE, Handover, leave_handover, parse_handover
from agent.update.window import parse_window


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("02:00-05:00", (2, 4), (5, 1)), ("22:30-04:00", (23, 0, 3), (4, 12, 22)), ("00:00-23:59", (0, 12), ())],
)
def test_a_window_holds_its_hours_of_each_day(text: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    window = parse_window(text)
    assert str(window) == text
    assert [window.holds(datetime(2026, 3, 1, hour, tzinfo=UTC)) for hour in inside] == [True] * len(inside)
    assert [window.holds(datetime(2026, 3, 1, hour, tzinfo=UTC)) for hour in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    "text", ["", "2:00-5:00", "02:00", "24:00-25:00", "02:00-02:00", "02:00-05:00 ", "02:60-03:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        parse_window(text)


@pytest.mark.parametrize(
    "handover",
    [
        Handover("install", "1.4.0", parse_window("02:00-05:00")),
        Handover("install", "1.4.0"),
        Handover("rollback", "0.9.12"),
    ],
)
def test_a_request_is_read_as_it_was_left(tmp_path: Path, handover: Handover) -> None:
    leave_handover(tmp_path, handover)
    assert parse_handover((tmp_path / READY_FILE).read_bytes()) == handover


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1.4.0",
        b"[]",
        b'{"action": "run", "version": "1.4.0", "window": null}',
        b'{"action": "install", "version": "../1.4.0", "window": null}',
        b'{"action": "install", "version": "1.4", "window": null}',
        b'{"action": "install", "version": "1.4.0"}',
        b'{"action": "install", "version": "1.4.0", "window": "always"}',
        b" " * 5000,
        b"[" * 4000,
    ],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_handover(data)
