from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from provisioning.coordinator.progress import Happening, ProgressLog, follow_events, read_events, seconds_between
from tests.simulators.scripted_line import SteppedClock


@pytest.fixture
def log(tmp_path: Path) -> ProgressLog:
    return ProgressLog(tmp_path / "progress.jsonl", SteppedClock())


def test_events_are_json_lines_in_order(tmp_path: Path, log: ProgressLog) -> None:
    log.note(Happening.OPENED, site="hospital-a")
    log.note(Happening.MOMENTS, fields=3, cohort=("hospital-a",), seconds=float("nan"))
    log.close()

    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]

    assert [line["event"] for line in lines] == ["opened", "moments"]
    assert lines[1]["seconds"] is None
    assert lines[1]["cohort"] == ["hospital-a"]
    assert lines[0]["time"] == "2026-01-01T00:16:40.000+00:00"


def test_a_failure_is_told_with_its_next_step(tmp_path: Path, log: ProgressLog) -> None:
    log.note_error(Happening.FAILED, OperatorError("x.y", "It failed.", next_step="Mend it."), round=3)

    (event,), _ = read_events(tmp_path / "progress.jsonl")
    assert (event["code"], event["sentence"], event["next_step"], event["round"]) == (
        "x.y",
        "It failed.",
        "Mend it.",
        3,
    )


def test_half_a_line_left_by_a_power_cut_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"event": "opened", "site": "a"}\n{"event": "rou')
    log = ProgressLog(path, SteppedClock())
    log.note(Happening.STARTED, round=2)

    events, offset = read_events(path)

    assert [event["event"] for event in events] == ["opened", "started"]
    assert offset == path.stat().st_size


def test_a_line_still_being_written_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"event": "opened"}\n{"event": "st')
    events, offset = read_events(path)
    assert len(events) == 1

    with path.open("ab") as stream:
        stream.write(b'arted"}\n')
    assert [event["event"] for event in read_events(path, offset=offset)[0]] == ["started"]


def test_a_follower_sees_events_as_they_come_and_stops_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"

    def write() -> None:
        log = ProgressLog(path, SteppedClock())
        for number in range(3):
            log.note(Happening.ROUND, round=number)
        log.note(Happening.FINISHED)
        log.note(Happening.STARTED)  # another run: not this follower's

    writer = threading.Thread(target=write)
    writer.start()
    seen = [event["event"] for event in follow_events(path)]
    writer.join()

    assert seen == ["round", "round", "round", "finished"]


def test_a_follower_stops_when_the_run_is_over_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.coordinator.progress.OVER_INTERVAL_S", 0.0)

    assert list(follow_events(tmp_path / "progress.jsonl", is_over=lambda: True)) == []


def test_seconds_between_events_are_wall_time() -> None:
    earlier: dict[str, object] = {"time": "2026-01-01T00:00:00.000+00:00"}
    later: dict[str, object] = {"time": "2026-01-01T01:00:01.500+01:00"}

    assert seconds_between(earlier, later) == 1.5
