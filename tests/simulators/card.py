"""A card as ISO 7816-4 describes it: applets behind SELECT, command chaining and GET RESPONSE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

OK = 0x9000
WRONG_LENGTH = 0x6700
SECURITY_STATUS = 0x6982
BLOCKED = 0x6983
CONDITIONS = 0x6985
INCORRECT_DATA = 0x6A80
NOT_FOUND = 0x6A82
WRONG_P1P2 = 0x6A86
NO_REFERENCE = 0x6A88
UNKNOWN_INSTRUCTION = 0x6D00

INS_SELECT = 0xA4
INS_GET_RESPONSE = 0xC0
_CHAINED = 0x10
_LONGEST_SHORT_REPLY = 256
_NEUTRAL_HISTORY = b"VIRTUALTOK"


class CardError(Exception):
    """A command ends with a status word other than 9000."""

    def __init__(self, sw: int, data: bytes = b"") -> None:
        super().__init__(f"SW={sw:04X}")
        self.sw = sw
        self.data = data


@dataclass(frozen=True, slots=True)
class Command:
    """A command APDU, its chain joined."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes
    extended: bool = False


class Applet(Protocol):
    """One application on a card."""

    @property
    def aid(self) -> bytes:
        """The identifier that SELECT names, whole or truncated."""
        ...

    def select(self) -> bytes:
        """Become the current application; return the file control information."""
        ...

    def reset(self) -> None:
        """Forget everything volatile: PIN verified, keys authenticated."""
        ...

    def handle(self, command: Command) -> bytes:
        """Return the response data; raise CardError for another status word than 9000."""
        ...


class VirtualCard:
    """Applets in one piece of plastic.

    Args:
        applets: In order of preference where a truncated AID fits several.
        history: Historical bytes of the ATR; neutral ones keep host software from taking it for another make.
    """

    def __init__(self, *applets: Applet, history: bytes = _NEUTRAL_HISTORY) -> None:
        self.applets = applets
        self.log: list[int] = []
        """Instruction bytes seen, chained parts included; for tests that ask what was never sent."""
        self._current: Applet | None = None
        self._chain = b""
        self._rest = b""
        self._history = history

    @property
    def atr(self) -> bytes:
        """Answer to reset: T=1, direct convention, the historical bytes, check byte."""
        body = bytes([0x80 | len(self._history), 0x80, 0x01]) + self._history
        check = 0
        for byte in body:
            check ^= byte
        return b"\x3b" + body + bytes([check])

    def reset(self) -> None:
        """Power or reset line moved."""
        self._current, self._chain, self._rest = None, b"", b""
        for applet in self.applets:
            applet.reset()

    def transmit(self, command: bytes) -> bytes:
        """Answer one command APDU."""
        try:
            return self._answer(_parse_command(command))
        except CardError as error:
            self._chain = b""
            return error.data + error.sw.to_bytes(2, "big")

    def _answer(self, part: Command) -> bytes:
        self.log.append(part.ins)
        if part.ins == INS_GET_RESPONSE and self._rest:
            return self._reply(self._rest, extended=part.extended)
        self._rest = b""
        if part.cla & _CHAINED:
            self._chain += part.data
            return OK.to_bytes(2, "big")
        whole, self._chain = self._chain + part.data, b""
        command = Command(part.cla, part.ins, part.p1, part.p2, whole, part.extended)
        return self._reply(self._dispatch(command), extended=part.extended)

    def _dispatch(self, command: Command) -> bytes:
        if command.ins == INS_SELECT and command.cla & 0x80 == 0 and command.p1 == 0x04:
            self._current = _find_applet(self.applets, command.data)
            return self._current.select()
        if self._current is None:
            raise CardError(UNKNOWN_INSTRUCTION)
        return self._current.handle(command)

    def _reply(self, data: bytes, *, extended: bool) -> bytes:
        if extended or len(data) <= _LONGEST_SHORT_REPLY:
            self._rest = b""
            return data + OK.to_bytes(2, "big")
        now, self._rest = data[:_LONGEST_SHORT_REPLY], data[_LONGEST_SHORT_REPLY:]
        return now + bytes([0x61, min(len(self._rest), 0xFF)])


def tlv(tag: int, value: bytes) -> bytes:
    """One BER-TLV object."""
    name = tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")
    size = len(value)
    if size < 0x80:
        return name + bytes([size]) + value
    width = (size.bit_length() + 7) // 8
    return name + bytes([0x80 | width]) + size.to_bytes(width, "big") + value


def parse_tlvs(data: bytes) -> dict[int, bytes]:
    """The BER-TLV objects side by side in `data`, by tag."""
    found: dict[int, bytes] = {}
    while data:
        width = 1
        if data[0] & 0x1F == 0x1F:
            width = 2 if len(data) > 1 and data[1] < 0x80 else 3
        tag, data = int.from_bytes(data[:width], "big"), data[width:]
        size, data = _take_length(data)
        if size > len(data):
            raise CardError(INCORRECT_DATA)
        found[tag], data = data[:size], data[size:]
    return found


def _take_length(data: bytes) -> tuple[int, bytes]:
    if not data:
        raise CardError(INCORRECT_DATA)
    first, data = data[0], data[1:]
    if first < 0x80:
        return first, data
    width = first & 0x7F
    return int.from_bytes(data[:width], "big"), data[width:]


def _find_applet(applets: Sequence[Applet], aid: bytes) -> Applet:
    for applet in applets:
        if aid and (applet.aid.startswith(aid) or aid.startswith(applet.aid)):
            return applet
    raise CardError(NOT_FOUND)


def _parse_command(raw: bytes) -> Command:
    if len(raw) < 4:
        raise CardError(WRONG_LENGTH)
    (cla, ins, p1, p2), body = raw[:4], raw[4:]
    if len(body) > 2 and body[0] == 0:  # ISO 7816-4 5.1, extended length fields
        size = int.from_bytes(body[1:3], "big")
        data = body[3 : 3 + size] if len(body) > 3 else b""
        return Command(cla, ins, p1, p2, data, extended=True)
    if len(body) <= 1:
        return Command(cla, ins, p1, p2, b"")
    size, rest = body[0], body[1:]
    if len(rest) not in (size, size + 1):
        raise CardError(WRONG_LENGTH)
    return Command(cla, ins, p1, p2, rest[:size])
