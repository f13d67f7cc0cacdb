from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.service.watchdog import ServiceManager


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(2)
        yield receiver


def test_it_says_what_sd_notify_expects(channel: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(channel.getsockname())})
    manager.ready()
    manager.status("two\nlines")
    manager.alive()
    manager.wait_longer(1.5)
    manager.stopping()
    said = [channel.recv(200).decode() for _ in range(5)]
    assert said == ["READY=1", "STATUS=two lines", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=1500000", "STOPPING=1"]


def test_an_abstract_socket_is_reached_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0seh-test-{os.getpid()}")
        receiver.settimeout(2)
        ServiceManager({"NOTIFY_SOCKET": f"@seh-test-{os.getpid()}"}).ready()
        assert receiver.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:
    ServiceManager({}).ready()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "42"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "43"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
)
def test_the_watchdog_is_ours_only_where_it_says_so(environment: dict[str, str], seconds: float | None) -> None:
    assert ServiceManager(environment, pid=42).watchdog_s == seconds
