"""Command and response APDUs over any card connection: command chaining, GET RESPONSE, BER-TLV.

Source: ISO/IEC 7816-4:2020, 5.3.3 (chaining), 5.4.2 (TLV), 11.8.1 (GET RESPONSE). Only short APDUs are sent: every card
and every reader takes those.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

from agent.core.errors import HardwareError

MAX_RESPONSE_BYTES = 1 << 16
_CHAINED = 0x10
_MAX_DATA_BYTES = 0xFF
_INS_SELECT = 0xA4
_INS_GET_RESPONSE = 0xC0
_SW1_MORE = 0x61
_SW1_WRONG_LE = 0x6C


class SW(IntEnum):
    """Status words that are told apart (ISO/IEC 7816-4, table 6; SP 800-73-4 Part 2)."""

    OK = 0x9000
    WRONG_LENGTH = 0x6700
    SECURITY_STATUS_NOT_SATISFIED = 0x6982
    AUTHENTICATION_BLOCKED = 0x6983
    CONDITIONS_NOT_SATISFIED = 0x6985
    INCORRECT_DATA = 0x6A80
    FUNCTION_NOT_SUPPORTED = 0x6A81
    NOT_FOUND = 0x6A82
    WRONG_P1_P2 = 0x6A86
    REFERENCE_NOT_FOUND = 0x6A88
    INVALID_INSTRUCTION = 0x6D00


NOT_THERE = frozenset({SW.NOT_FOUND, SW.REFERENCE_NOT_FOUND, SW.FUNCTION_NOT_SUPPORTED, SW.INVALID_INSTRUCTION})
"""The card has no such object, key or command."""


class CardConnection(Protocol):
    """An open way to one card."""

    def transmit(self, command: bytes) -> bytes:
        """Send one command APDU; return the response data and the two status bytes.

        Raises:
            HardwareError: The card is gone.
        """
        ...


class APDUError(HardwareError):
    """A card answered a command with a status word other than 9000.

    Args:
        instruction: INS byte of the command.
        sw: Status word.
        data: Response data that came with it.
    """

    def __init__(self, instruction: int, sw: int, data: bytes) -> None:
        super().__init__(
            "identity.card_refused",
            f"The card refused a command (INS {instruction:02X}, status {sw:04X}).",
            next_step="Take the card out, put it back and try again; if it repeats, the card is not what it should be.",
            instruction=instruction,
            sw=sw,
        )
        self.sw = sw
        self.data = data


class SmartcardProtocol:
    """Whole commands and responses over a connection that carries 255 bytes at a time."""

    def __init__(self, connection: CardConnection) -> None:
        self._connection = connection

    def select(self, aid: bytes) -> bytes:
        """Make the application `aid` the current one; return its file control information.

        Raises:
            APDUError: The card has no such application.
        """
        return self.send(_INS_SELECT, 0x04, 0x00, aid)

    def send(self, instruction: int, p1: int, p2: int, data: bytes = b"", *, cla: int = 0x00) -> bytes:
        """Send a command of any length; return the response data, at most `MAX_RESPONSE_BYTES`.

        Raises:
            APDUError: Any status word but 9000.
            HardwareError: The card is gone, or its answer makes no sense.
        """
        response, sw = self.exchange(instruction, p1, p2, data, cla=cla)
        if sw != SW.OK:
            raise APDUError(instruction, sw, response)
        return response

    def exchange(self, instruction: int, p1: int, p2: int, data: bytes = b"", *, cla: int = 0x00) -> tuple[bytes, int]:
        """As `send`, but every status word is an answer: (response data, status word)."""
        while len(data) > _MAX_DATA_BYTES:
            part, data = data[:_MAX_DATA_BYTES], data[_MAX_DATA_BYTES:]
            response, sw = self._exchange(bytes([cla | _CHAINED, instruction, p1, p2, len(part)]) + part)
            if sw != SW.OK:
                return response, sw
        body = bytes([len(data)]) + data if data else b""
        return self._collect(bytes([cla, instruction, p1, p2]) + body)

    def _collect(self, command: bytes) -> tuple[bytes, int]:
        response, sw = self._exchange(command + b"\x00")
        if sw >> 8 == _SW1_WRONG_LE:  # the card names the length that it wants to be asked for
            response, sw = self._exchange(command + bytes([sw & 0xFF]))
        whole = response
        while sw >> 8 == _SW1_MORE:
            response, sw = self._exchange(bytes([0x00, _INS_GET_RESPONSE, 0x00, 0x00, sw & 0xFF]))
            whole += response
            if len(whole) > MAX_RESPONSE_BYTES or not (response or sw == SW.OK):
                raise bad_answer("it does not end")
        return whole, sw

    def _exchange(self, command: bytes) -> tuple[bytes, int]:
        response = self._connection.transmit(command)
        if len(response) < 2:
            raise bad_answer("it has no status word")
        return response[:-2], int.from_bytes(response[-2:], "big")


def tlv(tag: int, value: bytes = b"") -> bytes:
    """Encode one BER-TLV data object."""
    name = tag.to_bytes((tag.bit_length() + 7) // 8 or 1, "big")
    size = len(value)
    if size < 0x80:
        return name + bytes([size]) + value
    width = (size.bit_length() + 7) // 8
    return name + bytes([0x80 | width]) + size.to_bytes(width, "big") + value


def parse_tlvs(data: bytes) -> dict[int, bytes]:
    """Parse BER-TLV data objects that stand side by side; of a repeated tag, the first counts.

    Raises:
        HardwareError: The bytes are no such objects.
    """
    found: dict[int, bytes] = {}
    while data:
        tag, data = _take_tag(data)
        size, data = _take_length(data)
        if size > len(data):
            raise bad_answer("a data object is cut short")
        found.setdefault(tag, data[:size])
        data = data[size:]
    return found


def parse_tlv(data: bytes, *tags: int) -> bytes:
    """The value of the data object at the end of a path of nested tags.

    Raises:
        HardwareError: It is not there.
    """
    for tag in tags:
        inner = parse_tlvs(data).get(tag)
        if inner is None:
            raise bad_answer(f"the data object {tag:X} is missing")
        data = inner
    return data


def bad_answer(what: str) -> HardwareError:
    """The failure of a card that does not keep to its own standard."""
    return HardwareError(
        "identity.card_answer",
        f"The card's answer makes no sense: {what}.",
        next_step="Take the card out, put it back and try again; if it repeats, use another card.",
    )


def _take_tag(data: bytes) -> tuple[int, bytes]:
    width = 1
    if data[0] & 0x1F == 0x1F:  # further tag bytes follow while bit 8 is set
        while width < min(len(data), 4) and (width == 1 or data[width - 1] & 0x80):
            width += 1
        if width == 1 or data[width - 1] & 0x80:
            raise bad_answer("a tag is cut short")
    return int.from_bytes(data[:width], "big"), data[width:]


def _take_length(data: bytes) -> tuple[int, bytes]:
    if not data:
        raise bad_answer("a length is missing")
    first, data = data[0], data[1:]
    if first < 0x80:
        return first, data
    width = first & 0x7F
    if not 0 < width <= min(len(data), 3):
        raise bad_answer("a length is out of range")
    return int.from_bytes(data[:width], "big"), data[width:]
