"""Processes of the demonstration: watched, and ended with all that they started."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.demo.parts import Part, PartFailedError, stop_all, tail
from tests.demo.run import held_output

SLEEPER = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); {SLEEPER}"


def start(tmp_path: Path, code: str) -> Part:
    return Part.start("a part", [sys.executable, "-c", code], log=tmp_path / "part.log", environment=os.environ)


def test_a_part_that_ends_by_itself_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    part = start(tmp_path, "print('what went wrong'); raise SystemExit(3)")
    part.process.wait(10)
    with pytest.raises(PartFailedError, match="a part: it ended by itself") as caught:
        part.check()
    assert caught.value.log == "what went wrong"
    assert str(tmp_path / "part.log") in caught.value.next_step


@pytest.mark.slow
def test_stopping_ends_descendants_too(tmp_path: Path) -> None:
    part = start(tmp_path, PARENT)
    root = psutil.Process(part.process.pid)
    deadline_s = time.monotonic() + 10
    while not (children := root.children()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    stop_all([part], limit_s=0.5)
    assert not root.is_running()
    assert children
    assert not any(child.is_running() for child in children)


def test_a_process_that_ends_while_it_is_being_killed_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_first(process: psutil.Process) -> None:
        os.kill(process.pid, signal.SIGKILL)
        raise psutil.NoSuchProcess(process.pid)

    part = start(
        tmp_path, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); {SLEEPER}"
    )
    while tail(part.log) != "ready":
        part.check()
    monkeypatch.setattr(psutil.Process, "kill", end_first)
    stop_all([part], limit_s=0.1)
    assert part.process.returncode is not None


def test_two_demonstrations_do_not_share_an_output(tmp_path: Path) -> None:
    with held_output(tmp_path) as place:
        assert list(place.iterdir()) == []
        with pytest.raises(PartFailedError, match="another demonstration"), held_output(tmp_path):
            pass
    (tmp_path / "summary.json").write_text("of an earlier run", encoding="utf-8")
    with held_output(tmp_path):
        assert not (tmp_path / "summary.json").exists()


def test_the_tail_of_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "no.log") == ""
