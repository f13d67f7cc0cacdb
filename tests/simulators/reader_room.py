"""Runs inside fresh mount and network namespaces: holds a pcscd that nobody else sees, and dials its virtual readers.

vpcd waits for its virtual cards on TCP, on all interfaces; in a network namespace of its own nobody outside can reach
it, and no two test sessions collide. The card itself lives with the tests, so this process dials the reader and hands
the connected socket out over a UNIX socket.

Used as a script, without any import of ours: `reader_room.py RUN_DIRECTORY CONFIGURATION_DIRECTORY CHANNEL_FD`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

PCSCD = "/usr/sbin/pcscd"
MS_BIND = 4096  # mount(2)
PR_SET_PDEATHSIG = 1  # prctl(2)
SIOCSIFFLAGS = 0x8914  # netdevice(7)
IFF_UP_RUNNING = 0x41
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve the channel until its other end closes."""
    run, configuration, channel_fd = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    _die_with_parent()
    _raise_loopback()
    # pcscd's paths are compiled in; bound over /run, they land where the clients are told to look.
    if _libc.mount(os.fsencode(run), b"/run", None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), "cannot bind a directory over /run")
    with socket.socket(fileno=channel_fd) as channel:
        room = Room(configuration, channel)
        while request := channel.recv(64):
            try:
                room.answer(request)
            except OSError as error:
                channel.send(f"{error}".encode())
    room.stop()


class Room:
    """One pcscd, started and stopped on request."""

    def __init__(self, configuration: str, channel: socket.socket) -> None:
        self._configuration = configuration
        self._channel = channel
        self._pcscd: subprocess.Popen[bytes] | None = None

    def answer(self, request: bytes) -> None:
        """Do what `request` says, and reply."""
        word, _, argument = request.partition(b" ")
        if word == b"dial":
            with socket.create_connection(("127.0.0.1", int(argument)), timeout=5) as reader:
                reader.settimeout(None)
                socket.send_fds(self._channel, [b"ok"], [reader.fileno()])
            return
        if word == b"start":
            self.start()
        elif word == b"stop":
            self.stop()
        self._channel.send(b"ok")

    def start(self) -> None:
        """Start pcscd; the caller waits for its socket."""
        for stale in ("/run/pcscd/pcscd.comm", "/run/pcscd/pcscd.pid"):
            Path(stale).unlink(missing_ok=True)
        command = [PCSCD, "--foreground", "--error", "--config", self._configuration]
        self._pcscd = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command])

    def stop(self) -> None:
        """Stop pcscd at once, as a crash would."""
        if self._pcscd is not None:
            self._pcscd.kill()
            self._pcscd.wait()
            self._pcscd = None


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP_RUNNING, b""))


if __name__ == "__main__":
    main()
