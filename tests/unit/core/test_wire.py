from __future__ import annotations

import contextlib
import struct

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import wire
from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame, Stage, encode_frame, join_parts, parse_frame, split_parts

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_frames = st.builds(
    Frame,
    study=st.from_regex(r"[a-z0-9]{1,63}", fullmatch=True),
    stage=st.sampled_from(Stage),
    round=st.integers(0, (1 << 31) - 1),
    attempt=st.integers(1, (1 << 31) - 1),
    header=st.dictionaries(st.text(max_size=8), _plain, max_size=5),
    payload=st.binary(max_size=200),
)


def _with_head(head: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">4sI", wire.MAGIC, len(head)) + head + payload


def _head(**changes: object) -> bytes:
    fields = {"study": "s", "stage": "open", "round": 0, "attempt": 1, "header": {}} | changes
    return cbor2.dumps(fields)


def _parse_or_refuse(data: bytes) -> None:
    with contextlib.suppress(PeerProtocolError):
        parse_frame(data)


@given(_frames)
def test_a_frame_survives_the_wire(frame: Frame) -> None:
    back = parse_frame(encode_frame(frame))
    assert (back.study, back.stage, back.round, back.attempt) == (frame.study, frame.stage, frame.round, frame.attempt)
    assert dict(back.header) == dict(frame.header)
    assert bytes(back.payload) == frame.payload


def test_the_payload_is_a_view_not_a_copy() -> None:
    data = bytearray(encode_frame(Frame("s", Stage.PLAIN, payload=b"abc")))
    back = parse_frame(memoryview(data))
    data[-1] = ord("z")
    assert bytes(back.payload) == b"abz"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_peer_error(data: bytes) -> None:
    _parse_or_refuse(data)


@given(st.binary(max_size=300), st.binary(max_size=10))
def test_any_header_bytes_are_a_frame_or_a_peer_error(head: bytes, payload: bytes) -> None:
    _parse_or_refuse(_with_head(head, payload))


@given(st.data())
def test_one_changed_byte_never_breaks_the_parser(data: st.DataObject) -> None:
    encoded = bytearray(encode_frame(data.draw(_frames)))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    _parse_or_refuse(bytes(encoded))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(_head(stage="unheard-of"), id="unknown-stage"),
        pytest.param(_head(stage=[]), id="stage-that-is-a-list"),
        pytest.param(_head(study="s" * 64), id="long-study"),
        pytest.param(_head(study=3), id="study-that-is-a-number"),
        pytest.param(_head(round=-1), id="negative-round"),
        pytest.param(_head(round=True), id="round-that-is-a-truth"),
        pytest.param(_head(round=1 << 31), id="huge-round"),
        pytest.param(_head(attempt=0), id="attempt-zero"),
        pytest.param(_head(header=[]), id="header-that-is-a-list"),
        pytest.param(_head(header={1: 2}), id="header-with-a-number-as-name"),
        pytest.param(_head(header={"a": {b"b": 1}}), id="inner-map-with-bytes-as-name"),
        pytest.param(_head(header={"big": 1 << 70}), id="number-without-bounds"),
        pytest.param(_head(header={"s": cbor2.CBORSimpleValue(99)}), id="simple-value"),
        pytest.param(_head(header={"u": cbor2.undefined}), id="undefined"),
        pytest.param(_head() + b"\x00", id="trailing-byte"),
        pytest.param(cbor2.dumps([1]), id="list-instead-of-map"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_bad_header_is_refused(head: bytes) -> None:
    with pytest.raises(PeerProtocolError) as caught:
        parse_frame(_with_head(head))
    assert caught.value.code == "wire.malformed"


def test_no_tag_of_any_kind_is_followed() -> None:
    for tag in (0, 1, 2, 4, 25, 28, 29, 30, 35, 36, 37, 256, 258, 260, 9999):
        value = b"\xd9" + tag.to_bytes(2, "big") + b"\x80"
        with pytest.raises(PeerProtocolError):
            parse_frame(_with_head(b"\xa1" + cbor2.dumps("header") + value))


def test_a_header_that_refers_to_itself_is_refused() -> None:
    shared = bytes.fromhex("d81c81d81d00")
    head = _head().replace(cbor2.dumps("header") + b"\xa0", cbor2.dumps("header") + b"\xa1\x61a" + shared)
    with pytest.raises(PeerProtocolError):
        parse_frame(_with_head(head))


def test_deep_nesting_is_refused() -> None:
    value: object = 0
    for _ in range(200):
        value = [value]
    with pytest.raises(PeerProtocolError):
        parse_frame(_with_head(_head(header={"deep": value})))


def test_lengths_beyond_the_limits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_PAYLOAD_BYTES", 10)
    monkeypatch.setattr(wire, "MAX_HEADER_BYTES", 100)
    parse_frame(_with_head(_head(), bytes(10)))
    with pytest.raises(PeerProtocolError):
        parse_frame(_with_head(_head(), bytes(11)))
    with pytest.raises(PeerProtocolError):
        parse_frame(_with_head(_head(header={"a": "b" * 100})))


@given(st.binary(max_size=100), st.integers(1, 40))
def test_parts_join_to_what_was_split(data: bytes, part_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PART_BYTES", part_bytes)
        parts = split_parts(data)
        assert all(len(part) <= part_bytes for part in parts.values())
        assert join_parts(dict(reversed(parts.items()))) == data


def test_ordinary_frames_travel_as_one_part() -> None:
    assert list(split_parts(bytes(4_000_100))) == ["frame-0"]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"frame-1": b"a"},
        {"frame-0": b"a", "frame-2": b"b"},
        {"frame-0": b"a", "other": b"b"},
        {"frame-0": "text"},
        {"frame-0": bytes(wire.PART_BYTES + 1)},
    ],
    ids=["none", "first-missing", "gap", "stranger", "text", "too-large"],
)
def test_records_that_are_no_parts_are_refused(parts: dict[str, bytes]) -> None:
    with pytest.raises(PeerProtocolError):
        join_parts(parts)
