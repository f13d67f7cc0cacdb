"""What the agent and its training worker say to each other: small JSON messages, each with its length before it.

Vectors do not pass through here: they lie in memory that both ends share. That memory and the files come first, as
descriptors (SCM_RIGHTS of unix(7)).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence

MAX_DESCRIPTORS = 3
MAX_MESSAGE_BYTES = 8 << 20
_LENGTH = struct.Struct(">I")

Message = dict[str, object]


class ChannelError(Exception):
    """What came is no message."""


class ChannelClosedError(ChannelError):
    """The other end is gone."""


class ChannelSilentError(ChannelError):
    """Nothing came in time."""


def send_message(channel: socket.socket, message: Mapping[str, object]) -> None:
    """Send one message.

    Raises:
        ChannelClosedError: The other end is gone.
        ChannelSilentError: It takes nothing in.
    """
    data = json.dumps(message, allow_nan=False, separators=(",", ":")).encode()
    try:
        channel.sendall(_LENGTH.pack(len(data)) + data)
    except TimeoutError as error:
        raise ChannelSilentError from error
    except OSError as error:
        raise ChannelClosedError from error


def send_descriptors(channel: socket.socket, descriptors: Sequence[int]) -> None:
    """Hand over open files: the first thing on a channel.

    Raises:
        ChannelClosedError: The other end is gone.
    """
    try:
        socket.send_fds(channel, [bytes([len(descriptors)])], list(descriptors))
    except OSError as error:
        raise ChannelClosedError from error


def receive_descriptors(channel: socket.socket) -> list[int]:
    """Take over the open files that `send_descriptors` handed over, in its order.

    Raises:
        ChannelClosedError: The other end is gone.
        ChannelError: As many did not come as were announced.
    """
    try:
        count, descriptors, _, _ = socket.recv_fds(channel, 1, MAX_DESCRIPTORS)
    except OSError as error:
        raise ChannelClosedError from error
    if not count:
        raise ChannelClosedError
    if count != bytes([len(descriptors)]):
        raise ChannelError("another number of descriptors than announced")
    return descriptors


def receive_message(channel: socket.socket, *, timeout_s: float | None = None) -> Message:
    """Receive one message.

    Args:
        channel: A stream socket.
        timeout_s: How long the whole message may take; None waits for ever.

    Raises:
        ChannelClosedError: The other end is gone.
        ChannelSilentError: It did not come in time.
        ChannelError: It is too long, or no JSON object.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    (size,) = _LENGTH.unpack(_receive(channel, _LENGTH.size, deadline_s))
    if size > MAX_MESSAGE_BYTES:
        raise ChannelError("a message beyond the limit")
    try:
        message = json.loads(_receive(channel, size, deadline_s), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ChannelError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise ChannelError("a message that is no object")
    return message


def _receive(channel: socket.socket, size: int, deadline_s: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            channel.settimeout(None if deadline_s is None else max(deadline_s - time.monotonic(), 1e-3))
            part = channel.recv(min(size - len(parts), 1 << 16))
        except TimeoutError as error:
            raise ChannelSilentError from error
        except OSError as error:
            raise ChannelClosedError from error
        if not part:
            raise ChannelClosedError
        parts += part
    return bytes(parts)


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
