"""What the fleet wire leans on in Flower's private interface: names, arguments, constants.

A new Flower release that breaks one of these is refused here, not in a hospital.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, HEARTBEAT_PATIENCE, TIMESTAMP_TOLERANCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from agent.federation import credentials, fleet


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("ActivateNode", fleet_pb2.ActivateNodeRequest),
        ("DeactivateNode", fleet_pb2.DeactivateNodeRequest),
        ("SendNodeHeartbeat", heartbeat_pb2.SendNodeHeartbeatRequest),
        ("PullMessages", fleet_pb2.PullMessagesRequest),
        ("PushMessages", fleet_pb2.PushMessagesRequest),
        ("PullObject", message_pb2.PullObjectRequest),
        ("PushObject", message_pb2.PushObjectRequest),
        ("ConfirmMessageReceived", message_pb2.ConfirmMessageReceivedRequest),
    ],
)
def test_every_call_goes_through_our_interceptor_and_never_through_flowers_own_client(
    method: str, request_type: type[Any]
) -> None:
    seen: list[httpx.Request] = []

    class Ours:
        def intercept(self, context: ProtobufRequestContext, _: object) -> httpx.Response:
            seen.append(context.request)
            return httpx.Response(200, content=b"", request=context.request)

    client = FleetHttpClient("https://superlink.invalid", interceptors=[Ours()], verify=False)
    getattr(client, method)(request_type())
    client.close()
    assert len(seen) == 1
    assert seen[0].url.host == "superlink.invalid"


def test_a_failed_status_is_raised_by_the_client_as_httpx_does() -> None:
    class Refusing:
        def intercept(self, context: ProtobufRequestContext, _: object) -> httpx.Response:
            return httpx.Response(412, content=b"why", request=context.request)

    client = FleetHttpClient("https://superlink.invalid", interceptors=[Refusing()], verify=False)
    with pytest.raises(httpx.HTTPStatusError) as caught:
        client.PullMessages(fleet_pb2.PullMessagesRequest())
    client.close()
    assert caught.value.response.text == "why"


def test_constants_agree_with_ours() -> None:
    assert fleet.HEARTBEAT_INTERVAL_S == HEARTBEAT_MIN_INTERVAL
    assert HEARTBEAT_PATIENCE == 2
    assert credentials.REUSE_S < TIMESTAMP_TOLERANCE / 10
    assert fleet.NODE_ACTIVATION_FAILED == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
    assert fleet.RUN_STATUS_NOT_ALLOWED == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED


def test_an_error_is_read_from_its_json() -> None:
    read = FlowerError.from_json('{"code": 2004, "detail": "no"}')
    assert read is not None
    assert read.code == 2004
    assert FlowerError.from_json("<html>") is None


def test_a_message_is_named_by_the_hash_of_its_head_and_its_tree_has_three_levels() -> None:
    metadata = Metadata(5, "", 1, 7, "", "", 1.8e9, 3600.0, "query")
    message = make_message(metadata, RecordDict({"frame-0": ConfigRecord({"bytes": b"x"})}))
    with no_object_id_recompute():
        tree = get_object_tree(message)
        objects = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
    assert all(get_object_id(data) == name for name, data in objects.items())
    assert list(objects)[-1] == tree.object_id
    assert [len(tree.children), len(tree.children[0].children)] == [1, 1]


def test_a_message_survives_its_protobuf_with_its_name() -> None:
    metadata = Metadata(5, "id", 1, 7, "", "group", 1.8e9, 3600.0, "query", src_task_id=3)
    back = message_from_proto(message_to_proto(make_message(metadata, RecordDict())))
    assert dataclasses.asdict(_Head.of(back)) == dataclasses.asdict(_Head.of(make_message(metadata, RecordDict())))


def test_a_reply_goes_back_where_its_message_came_from() -> None:
    metadata = Metadata(5, "id", 1, 7, "", "group", 1.8e9, 3600.0, "query", src_task_id=3)
    for content in (RecordDict(), Error(100, "declined")):
        reply = Message(content, reply_to=make_message(metadata, RecordDict()))
        head = _Head.of(reply)
        assert (head.src_node_id, head.dst_node_id, head.reply_to_message_id, head.dst_task_id) == (7, 1, "id", 3)


def test_inflating_takes_content_and_children() -> None:
    for kind in (ConfigRecord, RecordDict):
        assert list(inspect.signature(kind.inflate).parameters) == ["object_content", "children"]


@dataclasses.dataclass(frozen=True)
class _Head:
    run_id: int
    message_id: str
    src_node_id: int
    dst_node_id: int
    reply_to_message_id: str
    group_id: str
    message_type: str
    src_task_id: int | None
    dst_task_id: int | None

    @classmethod
    def of(cls, message: Message) -> _Head:
        return cls(*(getattr(message.metadata, item.name) for item in dataclasses.fields(cls)))
