"""A pcscd of our own whose readers are virtual (vpcd): real PC/SC, no hardware, no root needed, no port shared.

with VirtualReaders.start(directory) as readers:
    readers.publish()                    # before this process first speaks PC/SC
    readers.slots[0].insert(card)
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

from agent.core.errors import HardwareError
from agent.identity.pcsc import list_readers_with_card
from tests.simulators import reader_room
from tests.simulators.card import VirtualCard

DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
READY_TIMEOUT_S = 10.0
_FIRST_PORT = 45001
_SLOTS_PER_READER = 2  # vpcd listens on a port and the next one
_GET_ATR = 4  # of the one-byte control frames; the others are 0 power off, 1 power on, 2 reset


class Card(Protocol):
    """What sits in a reader's slot."""

    @property
    def atr(self) -> bytes:
        """Answer to reset, ISO 7816-3."""
        ...

    def reset(self) -> None:
        """Power or reset line moved: everything volatile is gone."""
        ...

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU with data and status word."""
        ...


_BLANK = VirtualCard()


@functools.cache
def reserve_readers() -> Path:
    """Choose where this process's own pcscd will listen, and point PC/SC there; nothing is started yet.

    libpcsclite reads the place once, at first use, so this comes before anything that might list readers.
    """
    directory = Path(tempfile.mkdtemp(prefix="seh-pcsc-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.environ["PCSCLITE_CSOCK_NAME"] = str(_socket_path(directory))
    return directory


@functools.cache
def shared_readers() -> VirtualReaders:
    """The readers that all tests of this process share; whoever inserts a card takes it out again."""
    readers = VirtualReaders.start(reserve_readers())
    atexit.register(readers.close)
    return readers


@contextlib.contextmanager
def card_inserted(card: Card) -> Iterator[Slot]:
    """Put `card` into a slot of the shared readers; a blank card without any application stays there afterwards.

    pcscd looks at its readers only every 400 ms, so where a blank card sits already, the chip behind its contacts is
    exchanged instead.
    """
    slot = next(slot for slot in shared_readers().slots if slot.is_free)
    slot.is_free = False
    try:
        slot.insert_or_exchange(card)
        yield slot
    finally:
        slot.exchange(_BLANK)
        slot.is_free = True


class VirtualReaders:
    """pcscd in namespaces of its own, with empty slots to put cards into."""

    def __init__(self, directory: Path, *, slots: int) -> None:
        self._directory = directory
        self._room: subprocess.Popen[bytes] | None = None
        self._channel, self._far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self.slots = tuple(
            Slot(self, f"Virtual {n // _SLOTS_PER_READER} 00 {n % _SLOTS_PER_READER:02}", _FIRST_PORT + n)
            for n in range(slots)
        )

    @classmethod
    def start(cls, directory: Path, *, slots: int = 4) -> Self:
        """Start pcscd with at least `slots` empty slots, its files under `directory` (a short path)."""
        if not (DRIVER.exists() and Path(reader_room.PCSCD).exists() and shutil.which("unshare")):
            raise RuntimeError("Debian's pcscd, vsmartcard-vpcd and util-linux are needed: run packaging/setup.sh")
        readers = cls(directory, slots=slots + slots % _SLOTS_PER_READER)
        readers._open_room()
        readers.start_service()
        return readers

    @property
    def socket_path(self) -> Path:
        """Where clients reach this pcscd: the value for PCSCLITE_CSOCK_NAME."""
        return _socket_path(self._directory)

    def publish(self) -> None:
        """Point this process (and its later children) at this pcscd; libpcsclite reads it once, at first use."""
        os.environ["PCSCLITE_CSOCK_NAME"] = str(self.socket_path)

    def start_service(self) -> None:
        """Start pcscd and wait until it answers."""
        self._ask(b"start")
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"pcscd did not come up within {READY_TIMEOUT_S} s")
            time.sleep(0.005)

    def stop_service(self) -> None:
        """Kill pcscd; cards stay in their slots."""
        self._ask(b"stop")

    def dial(self, port: int) -> socket.socket:
        """Connect to the virtual reader that listens on `port` inside the room."""
        (fd,) = self._ask(f"dial {port}".encode())
        return socket.socket(fileno=fd)

    def close(self) -> None:
        """Take all cards out and end pcscd and its room."""
        for slot in self.slots:
            slot.remove(wait=False)
        self._channel.close()
        if self._room is not None:
            self._room.wait(timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_room(self) -> None:
        run, configuration = self._directory / "run", self._directory / "conf"
        run.mkdir(parents=True, exist_ok=True)
        configuration.mkdir(exist_ok=True)
        stanzas = [self._stanza(number, port) for number, port in enumerate(self._reader_ports())]
        (configuration / "readers").write_text("\n".join(stanzas))
        # Root needs no user namespace; anybody else becomes root in one of their own.
        unshare = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        script = [sys.executable, "-I", reader_room.__file__, str(run), str(configuration)]
        with self._far_end as far_end, (self._directory / "pcscd.log").open("wb") as log:
            command = [*unshare, *script, str(far_end.fileno())]
            self._room = subprocess.Popen(command, pass_fds=[far_end.fileno()], stdout=log, stderr=log)

    def _reader_ports(self) -> range:
        return range(_FIRST_PORT, _FIRST_PORT + len(self.slots), _SLOTS_PER_READER)

    def _stanza(self, number: int, port: int) -> str:
        # vpcd keeps its slots in a global: each reader needs a driver file of its own, or all share the last one's.
        driver = self._directory / f"vpcd-{number}.so"
        shutil.copyfile(DRIVER, driver)
        return f'FRIENDLYNAME "Virtual {number}"\nDEVICENAME /dev/null:{port}\nLIBPATH {driver}\nCHANNELID {port}\n'

    def _ask(self, request: bytes) -> list[int]:
        with self._lock:
            self._channel.send(request)
            reply, fds, _, _ = socket.recv_fds(self._channel, 1024, 1)
        if reply != b"ok":
            raise ConnectionError(reply.decode() or "the room with pcscd has ended")
        return fds

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0


class Slot:
    """One slot of a virtual reader.

    Args:
        readers: Whose it is.
        reader: Its name in PC/SC.
        port: Where vpcd waits for its card.
    """

    def __init__(self, readers: VirtualReaders, reader: str, port: int) -> None:
        self.reader = reader
        self.is_free = True
        self._readers = readers
        self._port = port
        self._card: Card = _BLANK
        self._connection: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._powered = threading.Event()
        self._inserted = False

    def insert(self, card: Card, *, wait: bool = True) -> None:
        """Put `card` in; by default return once pcscd has powered it."""
        if self._inserted:
            raise RuntimeError(f"{self.reader} holds a card already")
        self._inserted, self._card = True, card
        self._powered.clear()
        self._thread = threading.Thread(target=self._serve, name=self.reader, daemon=True)
        self._thread.start()
        if wait and not self._powered.wait(READY_TIMEOUT_S):
            raise RuntimeError(f"{self.reader} was not powered within {READY_TIMEOUT_S} s")
        if wait:
            self._wait_until_seen(present=True)

    def exchange(self, card: Card) -> None:
        """Exchange the chip of the card that is in, without pcscd noticing; in an empty slot, nothing happens."""
        card.reset()
        self._card = card

    def insert_or_exchange(self, card: Card) -> None:
        """Have `card` in the slot, the quickest way."""
        if self._inserted and self._card.atr == card.atr:
            self.exchange(card)
            return
        self.remove()
        self.insert(card)

    def remove(self, *, wait: bool = True) -> None:
        """Pull the card out; by default return once pcscd has noticed. Without a card, do nothing."""
        if self._thread is None:
            return
        self._inserted = False
        # Half-closed: the reader sees the card gone, and its own close tells us that it did.
        self._shut(socket.SHUT_WR if wait else socket.SHUT_RDWR)
        self._thread.join(READY_TIMEOUT_S)
        self._thread = None
        if wait:
            self._wait_until_seen(present=False)

    def _wait_until_seen(self, *, present: bool) -> None:
        # The driver knows a moment before pcscd tells its clients.
        with contextlib.suppress(HardwareError):  # where the service is stopped, nobody sees anything
            while (self.reader in list_readers_with_card()) != present:
                time.sleep(0.002)

    def _shut(self, how: int) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the reader may be faster
                self._connection.shutdown(how)

    def _serve(self) -> None:
        while self._inserted:
            try:
                self._connection = self._readers.dial(self._port)
            except OSError:
                time.sleep(0.02)  # pcscd is down: a card stays where it is until power returns
                continue
            with self._connection as connection, contextlib.suppress(OSError):
                if self._inserted:  # it may have been pulled out while the reader was being reached
                    self._answer_reader(connection)
        self._connection = None

    def _answer_reader(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (frame := _receive(connection)) is not None:
            if len(frame) > 1:
                _send(connection, self._card.transmit(frame))
            elif frame[0] == _GET_ATR:
                _send(connection, self._card.atr)
                self._powered.set()
            else:
                self._card.reset()


def _socket_path(directory: Path) -> Path:
    return directory / "run" / "pcscd" / "pcscd.comm"


def _receive(connection: socket.socket) -> bytes | None:
    head = _receive_exactly(connection, 2)
    return None if head is None else _receive_exactly(connection, struct.unpack(">H", head)[0])


def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        # Without it, a delayed acknowledgement costs 40 ms an APDU.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        part = connection.recv(size - len(data))
        if not part:
            return None
        data += part
    return data


def _send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(struct.pack(">H", len(payload)) + payload)
