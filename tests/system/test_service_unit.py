"""The agent as its unit starts it: ready, watched, tested, and gone without a trace of health."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.service.health import HEALTH_NAME
from tests.simulators.worker_door import FENCED, ROOT, WorkerDoor

pytestmark = pytest.mark.slow
CONFIG = """
[node]
state_directory = "state"
environment = "demo"
[key]
uri = "software:node.key"
[data]
catalog = "catalog.toml"
[enrolment]
drop = "token"
[training]
device = "cpu"
worker = "worker.sock"
"""
UNIT = ROOT / "packaging/systemd/seh-agent.service"
WATCHDOG_S = 3.0
TEST_LIMIT_S = 60.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end of sd_notify(3)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(20)
        yield receiver


@pytest.fixture
def agent(tmp_path: Path, manager: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """An agent that nobody has enrolled yet."""
    (tmp_path / "agent.toml").write_text(CONFIG, encoding="utf-8")
    for name in ("run", "token"):
        (tmp_path / name).mkdir()
    environment = os.environ | {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "RUNTIME_DIRECTORY": str(tmp_path / "run"),
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
    }
    fenced = [sys.executable, "-P", str(FENCED), str(UNIT)]
    command = [*fenced, sys.executable, "-P", "-s", "-m", "agent.cli", "run", "--config", str(tmp_path / "agent.toml")]
    with WorkerDoor(tmp_path / "worker.sock"), subprocess.Popen(command, env=environment) as process:
        yield process
        process.kill()


def wait_for(manager: socket.socket, word: str) -> None:
    while word not in manager.recv(1000).decode().split("\n"):
        pass


def wait_for_test(directory: Path) -> dict[str, Any]:
    """The report once its self-test is over."""
    end_s = time.monotonic() + TEST_LIMIT_S
    while time.monotonic() < end_s:
        content = json.loads((directory / HEALTH_NAME).read_bytes()) if (directory / HEALTH_NAME).exists() else {}
        if content and content["checks"]["self_test"] is not None:
            assert isinstance(content, dict)
            return content
        time.sleep(0.1)
    raise AssertionError("the self-test did not end")


def test_it_tells_ready_tests_itself_in_the_background_and_leaves(
    agent: subprocess.Popen[bytes], manager: socket.socket, tmp_path: Path
) -> None:
    wait_for(manager, "READY=1")
    process = psutil.Process(agent.pid)
    before = process.memory_info().rss
    content = wait_for_test(tmp_path / "run")
    assert content["checks"] == {"agent": True, "key": True, "superlink": None, "self_test": True}
    assert (content["pid"], content["sentence"]) == (agent.pid, "")
    grown = process.memory_info().rss - before
    print(f"the self-test left {grown / 1e6:.1f} MB")  # noqa: T201
    assert not any("torch" in mapping.path for mapping in process.memory_maps())
    agent.send_signal(signal.SIGTERM)
    wait_for(manager, "STOPPING=1")
    assert agent.wait(10) == 0
    assert not (tmp_path / "run" / HEALTH_NAME).exists()


def test_the_sign_of_life_comes_from_the_loop_and_stops_with_it(
    agent: subprocess.Popen[bytes], manager: socket.socket, tmp_path: Path
) -> None:
    wait_for(manager, "READY=1")
    wait_for(manager, "WATCHDOG=1")
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        while select.select([manager], [], [], 0)[0]:
            manager.recv(1000)
        assert not select.select([manager], [], [], WATCHDOG_S / 2)[0]
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    wait_for(manager, "WATCHDOG=1")
