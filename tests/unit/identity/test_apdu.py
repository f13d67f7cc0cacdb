from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import HardwareError
from agent.identity.apdu import (
    MAX_RESPONSE_BYTES,
    SW,
    APDUError,
    SmartcardProtocol,
    parse_tlv,
    parse_tlvs,
    tlv,
)
from tests.simulators.card import Command, VirtualCard

ECHO_AID = bytes.fromhex("F0000000010203")


class Echo:
    """An applet that answers with what it was sent, or as often as it was asked."""

    aid = ECHO_AID

    def select(self) -> bytes:
        return b""

    def reset(self) -> None:
        return

    def handle(self, command: Command) -> bytes:
        return command.data * command.p1


def echo() -> SmartcardProtocol:
    protocol = SmartcardProtocol(VirtualCard(Echo()))
    protocol.select(ECHO_AID)
    return protocol


@given(tag=st.sampled_from([0x53, 0x70, 0x7C, 0x7F49, 0x5FC105]), value=st.binary(max_size=70_000))
def test_tlv_round_trip(tag: int, value: bytes) -> None:
    assert parse_tlvs(tlv(tag, value)) == {tag: value}


@given(st.binary(max_size=64))
def test_tlv_parser_takes_any_bytes(data: bytes) -> None:
    with contextlib.suppress(HardwareError):
        assert sum(map(len, parse_tlvs(data).values())) <= len(data)


def test_first_of_a_repeated_tag_counts() -> None:
    assert parse_tlvs(tlv(0x70, b"one") + tlv(0x70, b"two")) == {0x70: b"one"}


def test_nested_object_that_is_missing() -> None:
    with pytest.raises(HardwareError, match="82 is missing"):
        parse_tlv(tlv(0x7C, tlv(0x81, b"")), 0x7C, 0x82)


@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 511, 3000])
def test_commands_and_answers_of_any_length(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert echo().send(0x01, 1, 0, data) == data


def test_status_word_becomes_an_error_with_its_number() -> None:
    with pytest.raises(APDUError) as failure:
        echo().select(bytes.fromhex("A000000308"))
    assert failure.value.sw == SW.NOT_FOUND


class Scripted:
    """A connection that gives prepared answers, the last one for ever."""

    def __init__(self, *answers: bytes) -> None:
        self.sent: list[bytes] = []
        self._answers = list(answers)

    def transmit(self, command: bytes) -> bytes:
        self.sent.append(command)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def test_asks_again_with_the_length_that_the_card_names() -> None:
    connection = Scripted(b"\x6c\x04", b"four\x90\x00")
    assert SmartcardProtocol(connection).send(0xF8, 0, 0) == b"four"
    assert [command[-1] for command in connection.sent] == [0x00, 0x04]


@pytest.mark.parametrize("answer", [bytes(200) + b"\x61\xff", b"\x61\xff"])
def test_answer_without_an_end_is_cut_off(answer: bytes) -> None:
    connection = Scripted(answer)
    with pytest.raises(HardwareError, match="does not end"):
        SmartcardProtocol(connection).send(0xCB, 0x3F, 0xFF)
    assert len(connection.sent) <= MAX_RESPONSE_BYTES // 200 + 2


@pytest.mark.parametrize("answer", [b"", b"\x90"])
def test_answer_without_a_status_word(answer: bytes) -> None:
    with pytest.raises(HardwareError, match="no status word"):
        SmartcardProtocol(Scripted(answer)).send(0x20, 0, 0x80)
