"""Every parser: what it writes it reads, and no bytes make it do anything but refuse."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame, Stage, encode_frame, parse_frame
from agent.secagg import messages
from agent.secagg.messages import (
    AbortCertificate,
    AdvertiseReply,
    AdvertiseRequest,
    AgreeReply,
    AgreeRequest,
    Answer,
    Bundle,
    MaskedInputReply,
    MaskedInputRequest,
    RelayedUpload,
    RevealReply,
    RevealRequest,
    Revelation,
    UploadHeader,
)
from tests.simulators.cohort import Cohort, make_terms, relay

D = b"d" * 32
BUNDLES = tuple(Bundle(site, D, b"certificate", b"signature") for site in ("a", "b", "c"))
UPLOAD = UploadHeader("a", D, D, D * 6, D, b"signature")
REVELATION = Revelation(("b",), D * 2, D * 2, b"", b"", b"")


class Message(Protocol):
    """What every message can do."""

    def header(self) -> dict[str, object]: ...


Parser = Callable[[Mapping[str, object], bytes], Message]
EXAMPLES: list[tuple[Parser, Message, bytes]] = [
    (messages.parse_advertise_request, AdvertiseRequest(b"r" * 16), b""),
    (messages.parse_advertise_reply, AdvertiseReply(b"r" * 16, BUNDLES[0], (3, 1)), b""),
    (messages.parse_advertise_reply, AdvertiseReply(b"r" * 16, BUNDLES[0]), b""),
    (
        messages.parse_masked_input_request,
        MaskedInputRequest(b"r" * 16, BUNDLES, D, b"{}", b"s", AbortCertificate(D, {"a": b"s", "b": b"t"}), b"1234"),
        b"1234",
    ),
    (messages.parse_masked_input_request, MaskedInputRequest(b"r" * 16, BUNDLES, D, b"", b"s", None, b""), b""),
    (messages.parse_masked_input_reply, MaskedInputReply(D, UPLOAD, D * 3, b"s" * 112, b"12345678"), b"12345678"),
    (
        messages.parse_agree_request,
        AgreeRequest(D, False, (RelayedUpload(UPLOAD, b""), RelayedUpload(replace(UPLOAD, site="b"), b"share"))),
        b"",
    ),
    (messages.parse_agree_request, AgreeRequest(b"", True), b""),
    (messages.parse_agree_reply, AgreeReply(D, "a", Answer.COMPLETE, revelation=REVELATION), b""),
    (messages.parse_agree_reply, AgreeReply(D, "a", Answer.AGREED, b"s"), b""),
    (messages.parse_agree_reply, AgreeReply(D, "a", Answer.ABORTED, b"s"), b""),
    (messages.parse_reveal_request, RevealRequest(D, (("a", b"s"), ("a", b"s"))), b""),
    (messages.parse_reveal_reply, RevealReply(D, "a", replace(REVELATION, pair_shares=D, own_seeds=D)), b""),
]
PARSERS = sorted({example[0] for example in EXAMPLES}, key=lambda parser: parser.__name__)
IDS = [f"{parser.__name__}-{number}" for number, (parser, _, __) in enumerate(EXAMPLES)]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=100)
    | st.sampled_from([D, b"r" * 16, "a", "complete", "aborted", b""])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@pytest.mark.parametrize(("parse", "message", "payload"), EXAMPLES, ids=IDS)
def test_what_is_written_is_read(parse: Parser, message: Message, payload: bytes) -> None:
    frame = parse_frame(encode_frame(Frame("study", Stage.OPEN, header=message.header(), payload=payload)))
    assert parse(frame.header, bytes(frame.payload)) == message


@pytest.mark.parametrize(("parse", "message", "payload"), EXAMPLES, ids=IDS)
def test_a_field_too_many_or_too_few_is_refused(parse: Parser, message: Message, payload: bytes) -> None:
    header = message.header()
    for name in header:
        with pytest.raises(PeerProtocolError, match="fields"):
            parse({key: value for key, value in header.items() if key != name}, payload)
    with pytest.raises(PeerProtocolError, match="fields"):
        parse({**header, "extra": 1}, payload)


@pytest.mark.parametrize(("parse", "message", "payload"), EXAMPLES, ids=IDS)
def test_a_payload_of_the_wrong_kind_is_refused(parse: Parser, message: Message, payload: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse(message.header(), payload + b"x")


def paths(value: object) -> list[tuple[object, ...]]:
    """Where something stands in a header, at any depth."""
    if isinstance(value, dict):
        return [(key, *rest) for key, item in value.items() for rest in [(), *paths(item)]]
    if isinstance(value, list):
        return [(index, *rest) for index, item in enumerate(value) for rest in [(), *paths(item)]]
    return []


def planted(value: object, path: tuple[object, ...], new: object) -> object:
    """A copy with something else at one place."""
    if not path:
        return new
    if isinstance(value, dict):
        return {key: planted(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
    assert isinstance(value, list)
    return [planted(item, path[1:], new) if index == path[0] else item for index, item in enumerate(value)]


@given(st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=400, deadline=None)
def test_a_message_with_anything_planted_anywhere_parses_to_itself_or_is_refused(
    example: tuple[Parser, Message, bytes], data: st.DataObject
) -> None:
    parse, message, payload = example
    header = message.header()
    path = data.draw(st.sampled_from(paths(header)))
    altered = planted(header, path, data.draw(VALUES))
    assert isinstance(altered, dict)
    try:
        parsed = parse(altered, payload)
    except PeerProtocolError as error:
        assert error.code in {"secagg.malformed", "secagg.duplicate_site"}  # noqa: PT017 - no other refusal is a parser's
    else:
        assert parsed.header() == altered


@pytest.mark.slow
@given(st.sampled_from(PARSERS), st.dictionaries(st.text(max_size=12), VALUES, max_size=7), st.binary(max_size=32))
@settings(max_examples=300, deadline=None)
def test_arbitrary_headers_are_refused(parse: Parser, header: dict[str, object], payload: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        parse(header, payload)


@given(st.binary(max_size=300), st.sampled_from(EXAMPLES), st.data())
@settings(max_examples=400, deadline=None)
def test_arbitrary_bytes_on_the_wire_are_refused_or_parse(
    junk: bytes, example: tuple[Parser, Message, bytes], data: st.DataObject
) -> None:
    parse, message, payload = example
    raw = bytearray(encode_frame(Frame("study", Stage.AGREE, header=message.header(), payload=payload)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place : place + data.draw(st.integers(0, 4))] = junk[: data.draw(st.integers(0, 8))]
    for wire in (bytes(raw), junk):
        try:
            frame = parse_frame(wire)
            parse(frame.header, bytes(frame.payload))
        except PeerProtocolError:
            continue


LIMITS: list[tuple[Parser, dict[str, object]]] = [
    (messages.parse_masked_input_request, {"bundles": [["a", D, b"c" * 8193, b"s"]]}),
    (messages.parse_masked_input_request, {"configuration": b"c" * ((1 << 16) + 1)}),
    (messages.parse_masked_input_request, {"bundles": [[f"{k:04}", D, b"c", b"s"] for k in range(101)]}),
    (messages.parse_reveal_request, {"agreements": [["a", b"s"]] * 101}),
    (messages.parse_reveal_request, {"agreements": [["a", b"s" * 81]]}),
    (messages.parse_masked_input_reply, {"shares": b"s" * (100 * (100 * 32 + 16) + 1)}),
    (messages.parse_reveal_reply, {"revelation": [["a"] * 101, D, b"", b"", b"", b""]}),
    (messages.parse_reveal_reply, {"revelation": [[], D * 10_001, b"", b"", b"", b""]}),
    (messages.parse_advertise_request, {"run": b"r" * 17}),
]


@pytest.mark.parametrize(("parse", "change"), LIMITS)
def test_limits_are_ours(parse: Parser, change: dict[str, object]) -> None:
    message, payload = next((message, payload) for known, message, payload in EXAMPLES if known is parse)
    with pytest.raises(PeerProtocolError):
        parse({**message.header(), **change}, payload)


def test_sites_must_be_sorted_and_distinct() -> None:
    message = MaskedInputRequest(b"r" * 16, BUNDLES[::-1], D, b"", b"s", None, b"")
    with pytest.raises(PeerProtocolError, match="sorted"):
        messages.parse_masked_input_request(message.header(), b"")
    doubled = replace(message, bundles=(BUNDLES[0], BUNDLES[0]))
    with pytest.raises(PeerProtocolError) as raised:
        messages.parse_masked_input_request(doubled.header(), b"")
    assert raised.value.code == "secagg.duplicate_site"


# Real messages of a real round, mutated byte by byte, against real state machines.


# Places as fractions: signatures vary in length from run to run.
MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=3)


def mutated(frame: Frame, mutations: list[tuple[float, int]]) -> Frame | None:
    """The frame after a few bytes of its wire form changed; None where it is no frame any more."""
    raw = bytearray(encode_frame(frame))
    for place, change in mutations:
        raw[int(place * len(raw))] ^= change
    try:
        return parse_frame(bytes(raw))
    except PeerProtocolError:
        return None


@given(st.sampled_from(list(Stage)[2:5]), MUTATIONS)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_node_answers_a_mutated_message_by_a_refusal_only(stage: Stage, mutations: list[tuple[float, int]]) -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    session = cohort.hospitals["site-000"].session
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    frame, door = opened.masked_input_request(), session.accept
    if stage is Stage.ADVERTISE:
        frame, door = cohort.server.advertise_request(), session.advertise  # type: ignore[assignment]
    if stage is Stage.AGREE:
        cohort.upload(opened, cohort.inputs())
        frame, door = opened.agree_requests()["site-000"], session.agree  # type: ignore[assignment]
    altered = mutated(frame, mutations)
    if altered is None or encode_frame(altered) == encode_frame(frame):
        return
    before = session.state
    try:
        door(altered)
    except PeerProtocolError:
        assert session.state is before
    else:
        # Leg 0 promises nothing yet: another run, round or attempt in its request is just another run.
        assert stage is Stage.ADVERTISE


@given(MUTATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_counts_no_mutated_upload(mutations: list[tuple[float, int]]) -> None:
    cohort = Cohort(make_terms(4))
    cohort.advertise()
    opened = cohort.server.begin_round(1, cohort.model_bytes(1))
    session = cohort.hospitals["site-000"].session
    session.accept(relay(opened.masked_input_request()))
    frame = session.masked_input(cohort.inputs()["site-000"]).frame
    altered = mutated(replace(frame, payload=b""), mutations)
    if altered is None or dict(altered.header) == dict(relay(frame).header):
        return
    with pytest.raises(PeerProtocolError):
        opened.receive_masked_input("site-000", replace(altered, payload=frame.payload))
    assert opened.uploaded == ()


def test_headers_travel_as_plain_canonical_cbor() -> None:
    for _, message, __ in EXAMPLES:
        data = cbor2.dumps(message.header(), canonical=True)
        assert cbor2.load(io.BytesIO(data)) == message.header()
