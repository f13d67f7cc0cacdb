"""A security key on USB: CTAPHID frames (CTAP 2.1, 11.2) around the virtual authenticator, where no kernel has uhid."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from fido2.ctap import STATUS
from fido2.hid import CAPABILITY, CTAPHID
from fido2.hid.base import CtapHidConnection, HidDescriptor
from typing_extensions import override

from tests.simulators.authenticator import Authenticator
from tests.simulators.ctap_status import Status

_PACKET_BYTES = 64
_BROADCAST, _CHANNEL = 0xFFFFFFFF, 0x01020304
_INITIAL = 0x80


class HIDKey(CtapHidConnection):
    """One key in one USB port.

    Args:
        authenticator: What answers.
        keepalives: How many keep-alives it sends while it waits for a touch.
    """

    def __init__(self, authenticator: Authenticator, *, keepalives: int = 1) -> None:
        self.authenticator = authenticator
        self.keepalives = keepalives
        self.unplug_after: int | None = None
        """Packets until it is pulled out; None for never."""
        self._request = bytearray()
        self._expected = 0
        self._command = 0
        self._outgoing: deque[bytes] = deque()

    @override
    def write_packet(self, data: bytes) -> None:
        self._lose_power_in_time()
        channel, head = struct.unpack_from(">IB", data)
        if head & _INITIAL:
            self._command, self._expected = head & 0x7F, struct.unpack_from(">H", data, 5)[0]
            self._request = bytearray(data[7:])
        else:
            self._request += data[5:]
        if self._command == CTAPHID.CANCEL:
            self._outgoing.clear()
            self._send(channel, CTAPHID.CBOR, bytes([Status.KEEPALIVE_CANCEL]))
        elif len(self._request) >= self._expected:
            self._answer(channel, bytes(self._request[: self._expected]))

    @override
    def read_packet(self) -> bytes:
        self._lose_power_in_time()
        return self._outgoing.popleft()

    @override
    def close(self) -> None:
        self._outgoing.clear()

    def _answer(self, channel: int, request: bytes) -> None:
        if self._command == CTAPHID.INIT:
            facts = struct.pack(">IBBBBB", _CHANNEL, 2, 5, 7, 0, CAPABILITY.CBOR)
            self._send(channel, CTAPHID.INIT, request + facts)
            return
        if request[0] in (0x01, 0x02):
            for _ in range(self.keepalives):
                self._send(channel, CTAPHID.KEEPALIVE, bytes([STATUS.UPNEEDED]))
        self._send(channel, CTAPHID.CBOR, self.authenticator.process(request))

    def _send(self, channel: int, command: int, payload: bytes) -> None:
        first = struct.pack(">IBH", channel, _INITIAL | command, len(payload))
        room = _PACKET_BYTES - len(first)
        self._outgoing.append((first + payload[:room]).ljust(_PACKET_BYTES, b"\0"))
        rest, step = payload[room:], _PACKET_BYTES - 5
        for number, at in enumerate(range(0, len(rest), step)):
            part = struct.pack(">IB", channel, number) + rest[at : at + step]
            self._outgoing.append(part.ljust(_PACKET_BYTES, b"\0"))

    def _lose_power_in_time(self) -> None:
        if self.unplug_after is None:
            return
        if self.unplug_after == 0:
            raise OSError(19, "No such device")
        self.unplug_after -= 1


@contextmanager
def plugged_in(*keys: HIDKey) -> Iterator[None]:
    """Have `keys` in this process's USB ports."""
    at = {f"/dev/hidraw{number}": key for number, key in enumerate(keys)}
    descriptors = [HidDescriptor(path, 0x1050, 0x0407, _PACKET_BYTES, _PACKET_BYTES, "Virtual", None) for path in at]
    with (
        patch("fido2.hid.list_descriptors", lambda: descriptors),
        patch("fido2.hid.open_connection", lambda descriptor: at[descriptor.path]),
    ):
        yield
