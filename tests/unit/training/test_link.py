"""Where a worker's process comes from, when there is none to be had."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from agent.core.errors import SoftwareError
from agent.training.channel import ChannelClosedError, ChannelError, receive_descriptors, send_descriptors
from agent.training.link import open_link


@pytest.mark.parametrize("name", ["missing.sock", "x" * 200])
def test_a_door_that_is_not_there_is_said_to_be_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(SoftwareError) as caught:
        open_link(tmp_path / name)
    assert caught.value.code == "training.no_worker"


def test_a_door_that_hangs_up_at_once_is_a_worker_that_died(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "door"))
        listener.listen()
        link = open_link(tmp_path / "door")
        alive = [link.alive]
        listener.accept()[0].close()
        alive.append(link.alive)
        with pytest.raises(ChannelClosedError):
            send_descriptors(link.channel, [0])
        link.end()
        link.channel.close()
        assert [*alive, link.alive] == [True, False, False]


def test_descriptors_arrive_in_order_or_not_at_all(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    files = [os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in ("one", "two")]
    with ours, theirs:
        send_descriptors(ours, files)
        received = receive_descriptors(theirs)
        names = [Path(f"/proc/self/fd/{number}").readlink() for number in received]
        assert names == [tmp_path / "one", tmp_path / "two"]
        for number in (*files, *received):
            os.close(number)
        ours.sendall(b"\x02")
        with pytest.raises(ChannelError, match="announced"):
            receive_descriptors(theirs)
        ours.close()
        with pytest.raises(ChannelClosedError):
            receive_descriptors(theirs)
