from __future__ import annotations

import os
import threading

import httpx
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from agent.core.errors import HardwareError, PeerProtocolError
from agent.core.wire import PART_FIELD, Frame, Refusal, Stage
from agent.federation.faults import (
    ActivationRefusedError,
    CallRefusedError,
    NotRecognisedError,
    RunEndedError,
    StoppedError,
    UnreachableError,
)
from agent.federation.fleet import (
    Delivery,
    Fleet,
    build_refusal,
    build_reply,
    pack_delivery,
    unpack_delivery,
)
from tests.simulators.clock import SetClock
from tests.simulators.played_superlink import (
    ACTIVATION_FAILED,
    NODE_ID,
    RUN_NOT_RUNNING,
    PlayedSuperLink,
    failing,
    flower_error,
    http_body,
    http_status,
)

FRAME = Frame("study", Stage.PLAIN, 1, header={"kind": "train"}, payload=b"numbers")
UNREACHABLE = failing(UnreachableError("fleet.unreachable", "Played.", next_step="Wait."))


def _receive(fleet: Fleet) -> Delivery:
    delivery = fleet.receive()
    assert delivery is not None
    return delivery


@pytest.fixture
def joined(fleet: Fleet) -> Fleet:
    fleet.activate()
    return fleet


def test_a_frame_travels_both_ways(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    delivery = _receive(joined)
    assert joined.fetch(delivery) == FRAME
    joined.send(build_reply(delivery, FRAME))
    joined.confirm(delivery)
    assert superlink.answers() == [FRAME]
    assert superlink.replies[0].metadata.reply_to_message_id == delivery.message_id
    assert superlink.confirmed == [delivery.message_id]


def test_an_ordinary_message_takes_seven_calls(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(Frame("study", Stage.PLAIN, payload=bytes(4_000_000)))
    superlink.calls.clear()
    delivery = _receive(joined)
    joined.send(build_reply(delivery, joined.fetch(delivery)))
    joined.confirm(delivery)
    assert len(superlink.calls) == 7


def test_a_frame_of_several_parts_travels(joined: Fleet, superlink: PlayedSuperLink) -> None:
    frame = Frame("study", Stage.PLAIN, payload=os.urandom(9 << 20))
    superlink.offer_frame(frame)
    assert joined.fetch(_receive(joined)) == frame


def test_equal_parts_are_one_object_and_still_a_whole_frame(joined: Fleet, superlink: PlayedSuperLink) -> None:
    frame = Frame("study", Stage.PLAIN, payload=bytes(11 << 20))
    superlink.offer_frame(frame)
    delivery = _receive(joined)
    assert joined.fetch(delivery) == frame
    joined.send(build_reply(delivery, frame))
    assert superlink.answers() == [frame]


def test_a_refusal_says_one_word(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    joined.send(build_refusal(_receive(joined), Refusal.DECLINED))
    assert superlink.answers() == [Refusal.DECLINED]


def test_nothing_to_do_is_none(joined: Fleet) -> None:
    assert joined.receive() is None


def test_objects_that_come_late_are_waited_for(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    for name in superlink.objects:
        superlink.late[name] = 3
    assert joined.fetch(_receive(joined)) == FRAME


def test_objects_that_never_come_make_the_message_malformed(
    joined: Fleet, superlink: PlayedSuperLink, clock: SetClock
) -> None:
    superlink.offer_frame(FRAME)
    for name in superlink.objects:
        superlink.late[name] = 1000
    superlink.script("pull-object", *[lambda _: clock.move(10)] * 20)
    with pytest.raises(PeerProtocolError):
        joined.fetch(_receive(joined))
    assert superlink.calls.count("pull-object") < 20


def test_a_stop_ends_the_wait_for_objects(joined: Fleet, superlink: PlayedSuperLink, stop: threading.Event) -> None:
    superlink.offer_frame(FRAME)
    for name in superlink.objects:
        superlink.late[name] = 1000
    stop.set()
    with pytest.raises(StoppedError):
        joined.fetch(_receive(joined))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"frame-0": ConfigRecord({"other": b"x"})}),
        RecordDict({"frame-0": ConfigRecord({PART_FIELD: "text"})}),
        RecordDict({"frame-0": ConfigRecord({PART_FIELD: b"x", "more": 1})}),
        RecordDict({"frame-1": ConfigRecord({PART_FIELD: b"x"})}),
        RecordDict({"frame-0": MetricRecord({"a": 1})}),
        RecordDict({"frame-0": ArrayRecord()}),
        RecordDict({"frame-0": ConfigRecord({PART_FIELD: b"no frame"})}),
    ],
    ids=["empty", "other-field", "text", "second-field", "gap", "metrics", "arrays", "no-frame"],
)
def test_a_message_of_another_shape_is_malformed(
    joined: Fleet, superlink: PlayedSuperLink, content: RecordDict
) -> None:
    superlink.offer(content)
    with pytest.raises(PeerProtocolError):
        joined.fetch(_receive(joined))


@pytest.mark.parametrize(
    "damage",
    [
        b"RecordDict  100000\x00" + b"[" * 100_000,
        b"",
        b"ConfigRecord",
        b"ConfigRecord  3\x00abc",
        b"Message  0\x00",
        b"\xff\xfe",
    ],
)
def test_a_damaged_object_is_malformed(joined: Fleet, superlink: PlayedSuperLink, damage: bytes) -> None:
    superlink.offer_frame(FRAME)
    superlink.objects = dict.fromkeys(superlink.objects, damage)
    with pytest.raises(PeerProtocolError):
        joined.fetch(_receive(joined))


def test_an_object_that_the_superlink_lost_is_malformed(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    superlink.objects.clear()
    with pytest.raises(PeerProtocolError):
        joined.fetch(_receive(joined))


@pytest.mark.parametrize(
    "tree",
    [
        ObjectTree(object_id="a"),
        ObjectTree(object_id="a", children=[ObjectTree(object_id="b"), ObjectTree(object_id="c")]),
        ObjectTree(
            object_id="a",
            children=[
                ObjectTree(object_id="b", children=[ObjectTree(object_id="c", children=[ObjectTree(object_id="d")])])
            ],
        ),
        ObjectTree(object_id="a", children=[ObjectTree(object_id="b", children=[ObjectTree(object_id="c")] * 100)]),
    ],
    ids=["leaf", "two-contents", "too-deep", "too-many"],
)
def test_a_tree_of_another_shape_is_refused_before_anything_is_pulled(
    joined: Fleet, superlink: PlayedSuperLink, tree: ObjectTree
) -> None:
    superlink.offer_frame(FRAME)
    delivery = Delivery(_receive(joined).message, tree)
    with pytest.raises(PeerProtocolError):
        joined.fetch(delivery)
    assert "pull-object" not in superlink.calls


def test_a_passing_failure_is_tried_again(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("pull-messages", UNREACHABLE, http_status(503))
    assert joined.receive() is None
    assert superlink.calls.count("pull-messages") == 3


def test_a_lasting_failure_is_unreachable_after_three_tries(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("pull-messages", *[UNREACHABLE] * 5)
    with pytest.raises(UnreachableError):
        joined.receive()
    assert superlink.calls.count("pull-messages") == 3


def test_a_stop_ends_the_retries(joined: Fleet, superlink: PlayedSuperLink, stop: threading.Event) -> None:
    stop.set()
    superlink.script("pull-messages", *[UNREACHABLE] * 5)
    with pytest.raises(UnreachableError):
        joined.receive()
    assert superlink.calls.count("pull-messages") == 1


def test_a_broken_reply_is_taken_up_where_it_broke_off(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    reply = build_reply(_receive(joined), FRAME)
    superlink.script("push-object", lambda _: None, *[UNREACHABLE] * 3)
    with pytest.raises(UnreachableError):
        joined.send(reply)
    before = superlink.calls.count("push-object")
    joined.send(reply)
    assert superlink.answers() == [FRAME]
    assert superlink.calls.count("push-object") - before == len(reply.objects) - 1


def test_a_reply_that_is_never_kept_is_given_up(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    reply = build_reply(_receive(joined), FRAME)
    superlink.keeps_objects = False
    with pytest.raises(CallRefusedError):
        joined.send(reply)


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        (flower_error(ACTIVATION_FAILED), ActivationRefusedError, "fleet.activation_refused"),
        (flower_error(RUN_NOT_RUNNING), RunEndedError, "fleet.run_ended"),
        (flower_error(9999), CallRefusedError, "fleet.call_refused"),
        (http_status(401), NotRecognisedError, "fleet.not_recognised"),
        (http_status(401, {"date": "no date"}), NotRecognisedError, "fleet.not_recognised"),
        (http_status(401, {"date": "Sun, 01 Mar 2026 13:00:00 GMT"}), NotRecognisedError, "fleet.clock_wrong"),
        (http_status(307, {"location": "https://elsewhere"}), CallRefusedError, "fleet.call_refused"),
        (http_status(404), CallRefusedError, "fleet.call_refused"),
        (http_body(400, b"[" * 100_000), CallRefusedError, "fleet.call_refused"),
        (http_body(400, b"\xff"), CallRefusedError, "fleet.call_refused"),
    ],
)
def test_each_answer_has_its_meaning(
    fleet: Fleet, superlink: PlayedSuperLink, script: object, kind: type[Exception], code: str
) -> None:
    superlink.script("activate-node", script)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        fleet.activate()
    assert getattr(caught.value, "code") == code  # noqa: B009 - the kind varies
    assert superlink.calls.count("activate-node") == 1


def test_a_wrong_clock_is_told_with_its_offset(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("activate-node", http_status(401, {"date": "Sun, 01 Mar 2026 13:00:00 GMT"}))
    with pytest.raises(NotRecognisedError, match="differ by -3600 s"):
        fleet.activate()


def test_a_server_error_may_pass(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("activate-node", http_status(500))
    assert fleet.activate() == NODE_ID


def test_an_answer_that_is_no_protobuf_is_refused(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("pull-messages", lambda request: httpx.Response(200, content=b"\xff", request=request))
    with pytest.raises(CallRefusedError):
        joined.receive()


def test_before_joining_no_call_is_made(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    with pytest.raises(NotRecognisedError):
        fleet.receive()
    assert superlink.calls == []


def test_a_forgotten_node_learns_it_from_its_heartbeat(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.node_id += 1
    with pytest.raises(NotRecognisedError):
        joined.heartbeat()


def test_a_key_that_is_gone_is_a_hardware_error(
    joined: Fleet, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> bytes:
        raise HardwareError("identity.gone", "The key is gone.", next_step="Put it back.")

    clock.move(60)
    monkeypatch.setattr(joined.signed, "_sign", gone)
    with pytest.raises(HardwareError):
        joined.receive()


def test_a_delivery_survives_a_restart(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    delivery = unpack_delivery(pack_delivery(_receive(joined)))
    joined.send(build_refusal(delivery, Refusal.BUSY))
    assert superlink.answers() == [Refusal.BUSY]


def test_a_damaged_delivery_is_malformed() -> None:
    for damage in (b"\xff\xff\xff", b"\x08"):
        with pytest.raises(PeerProtocolError):
            unpack_delivery(damage)


def test_every_request_carries_the_same_signed_timestamp_within_seconds(
    joined: Fleet, superlink: PlayedSuperLink
) -> None:
    for _ in range(50):
        joined.receive()
    joined.heartbeat()
    assert len({headers["flwr-signature"] for headers in superlink.headers}) == 1
    assert joined.signed.signatures == 1


def test_leaving_is_one_short_call(joined: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("deactivate-node", *[UNREACHABLE] * 3)
    with pytest.raises(UnreachableError):
        joined.deactivate()
    assert superlink.calls.count("deactivate-node") == 1
