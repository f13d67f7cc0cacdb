"""What a node and a coordinator say to each other: one frame a message.

A frame is a small CBOR header (RFC 8949, a map with text keys) followed by one flat binary payload, so that a vector of
millions of numbers is neither copied nor parsed:

    b"SEH1" | u32be header length | header | payload
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import cbor2

from agent.core.cbor import decode_plain
from agent.core.errors import PeerProtocolError

MAGIC = b"SEH1"
MAX_HEADER_BYTES = 4 << 20
MAX_PAYLOAD_BYTES = 1 << 30
MAX_HEADER_DEPTH = 16
PART_BYTES = 4 << 20
"""A frame crosses Flower as records of at most this many bytes each: few objects, each small enough to send again."""
PART_FIELD = "bytes"
"""The one field of each such record."""
REFUSAL_ERROR_CODE = 100
"""Code of the Flower error whose reason is a `Refusal`; Flower's own codes lie below."""
_PART_NAME = "frame-{}"
_PREFIX = struct.Struct(">4sI")


class Stage(StrEnum):
    """What a message asks of a node; the reply carries the same stage."""

    OPEN = "open"  # fit of the local data set; no numbers leave
    PLAIN = "plain"  # an unprotected update: demonstration and bench only
    ADVERTISE = "advertise"  # secure aggregation, leg 0
    MASKED_INPUT = "masked-input"  # leg 1
    AGREE = "agree"  # leg 2
    REVEAL = "reveal"  # leg 3
    CLOSE = "close"  # the study's run has ended


class Refusal(StrEnum):
    """All that a node ever says about why it did not answer: a fixed list, so that no refusal is an oracle."""

    MALFORMED = "malformed"
    UNKNOWN_STUDY = "unknown-study"
    NOT_PERMITTED = "not-permitted"
    PROTOCOL = "protocol"  # a rule of the protocol was broken by the other side; the rule stays in the local log
    DECLINED = "declined"  # every cause that depends on data
    BUSY = "busy"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    Args:
        study: Which study it belongs to.
        stage: What is asked, or answered.
        round: 0 for what precedes training (moments), 1..rounds for training, rounds + 1 for the last evaluation.
        attempt: Counts from 1 within a round.
        header: Small values; for secure aggregation, the protocol message's own fields.
        payload: One flat vector, as bytes; empty where the stage has none.
    """

    study: str
    stage: Stage
    round: int = 0
    attempt: int = 1
    header: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    payload: bytes | memoryview = b""


def encode_frame(frame: Frame) -> bytes:
    """Encode `frame`; the inverse of `parse_frame`."""
    head = cbor2.dumps(
        {
            "study": frame.study,
            "stage": frame.stage.value,
            "round": frame.round,
            "attempt": frame.attempt,
            "header": dict(frame.header),
        },
        canonical=True,
    )
    return b"".join((_PREFIX.pack(MAGIC, len(head)), head, frame.payload))


def parse_frame(data: bytes | memoryview) -> Frame:
    """Parse one frame.

    Args:
        data: What came off the wire, at most `MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES` bytes.

    Returns:
        The frame; its payload is a view into `data`, not a copy.

    Raises:
        PeerProtocolError: The bytes are no frame, or exceed our limits.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise _malformed("shorter than its prefix")
    magic, head_size = _PREFIX.unpack_from(view)
    body = view[_PREFIX.size :]
    if magic != MAGIC:
        raise _malformed("unknown magic")
    if head_size > min(len(body), MAX_HEADER_BYTES) or len(body) - head_size > MAX_PAYLOAD_BYTES:
        raise _malformed("a length beyond the limits")
    return _frame_from(_load_map(bytes(body[:head_size])), body[head_size:])


def part_names(count: int) -> list[str]:
    """Names of the records of a frame in so many parts, in order."""
    return [_PART_NAME.format(k) for k in range(count)]


def split_parts(data: bytes | memoryview) -> dict[str, bytes]:
    """Cut an encoded frame into records for Flower: name of the record -> content of its one field `PART_FIELD`."""
    view = memoryview(data)
    starts = range(0, max(len(view), 1), PART_BYTES)
    names = part_names(len(starts))
    return {name: bytes(view[start : start + PART_BYTES]) for name, start in zip(names, starts, strict=True)}


def join_parts(parts: Mapping[str, bytes]) -> bytes:
    """Put an encoded frame together again; the inverse of `split_parts`.

    Raises:
        PeerProtocolError: The records are not exactly those of one frame, or exceed our limits.
    """
    names = part_names(len(parts))
    if not names or set(names) != parts.keys():
        raise _malformed("records that are not the parts of one frame")
    pieces = [parts[name] for name in names]
    if not all(isinstance(piece, bytes) and len(piece) <= PART_BYTES for piece in pieces):
        raise _malformed("a part that is too large or not bytes")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _load_map(head: bytes) -> dict[str, object]:
    try:
        value = decode_plain(head, max_depth=MAX_HEADER_DEPTH, text_keys=True)
    except ValueError as error:
        raise _malformed("a header that is not CBOR") from error
    if not isinstance(value, dict):
        raise _malformed("a header that is not one map")
    return value


def _is_plain(value: object) -> bool:
    """Whether a header value holds nothing but numbers, texts, bytes, lists and maps with text keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in {bool, int, float, str, bytes}


def _frame_from(value: dict[str, object], payload: memoryview) -> Frame:
    study, stage, header = value.get("study"), value.get("stage"), value.get("header")
    number, attempt = value.get("round"), value.get("attempt")
    if not (isinstance(study, str) and len(study) <= 63 and isinstance(stage, str) and stage in set(Stage)):
        raise _malformed("no known study or stage")
    if type(number) is not int or type(attempt) is not int or not (0 <= number < 1 << 31 and 1 <= attempt < 1 << 31):
        raise _malformed("a round or attempt out of range")
    if not isinstance(header, dict) or not _is_plain(header):
        raise _malformed("header fields that are not plain values under text names")
    return Frame(study, Stage(stage), number, attempt, MappingProxyType(header), payload)


def _malformed(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "wire.malformed",
        f"A message could not be read: it has {what}.",
        next_step="Nothing was done with it. If it repeats, the other side runs an incompatible version.",
    )
