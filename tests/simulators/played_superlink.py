"""A SuperLink in a few lines, in the test's own process, that can lie and fail as a test wishes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from agent.core.wire import (
    PART_FIELD,
    REFUSAL_ERROR_CODE,
    Frame,
    Refusal,
    encode_frame,
    join_parts,
    parse_frame,
    split_parts,
)

NODE_ID = 77
ACTIVATION_FAILED, RUN_NOT_RUNNING = 2004, 2007

Script = Callable[[httpx.Request], httpx.Response | None]


def flower_error(code: int, status: int = 412) -> Script:
    """Answer with a Flower error."""
    return lambda request: httpx.Response(status, json={"code": code, "detail": "played"}, request=request)


def http_status(status: int, headers: dict[str, str] | None = None) -> Script:
    """Answer with a bare status."""
    return lambda request: httpx.Response(status, headers=headers, request=request)


def http_body(status: int, body: bytes) -> Script:
    """Answer with any body."""
    return lambda request: httpx.Response(status, content=body, request=request)


def failing(error: Exception) -> Script:
    """Fail as the exchange would."""

    def fail(_: httpx.Request) -> httpx.Response | None:
        raise error

    return fail


@dataclass(slots=True)
class PlayedSuperLink:
    """Its memory, and scripts that are used up one a call of that name before it answers properly again."""

    node_id: int = NODE_ID
    online: bool = False
    waiting: list[tuple[Message, ObjectTree]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)
    replies: list[Message] = field(default_factory=list)
    pushed: dict[str, bytes] = field(default_factory=dict)
    confirmed: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    scripts: dict[str, list[Script]] = field(default_factory=dict)
    run_id: int = 5
    keeps_objects: bool = True

    def exchange(self, *_: object, **__: object) -> PlayedExchange:
        """Stands in for `BoundedExchange`."""
        return PlayedExchange(self)

    def script(self, call: str, *scripts: Script) -> None:
        """Use these for the next calls of that name."""
        self.scripts.setdefault(call, []).extend(scripts)

    def offer(self, content: RecordDict) -> None:
        """Queue a message with any content."""
        sent_at = time.time()
        metadata = Metadata(self.run_id, "", 1, self.node_id, "", "", sent_at, 3600.0, "query")
        message = make_message(metadata, content=content)
        with no_object_id_recompute():
            tree = get_object_tree(message)
            self.objects |= {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
        message.metadata.__dict__["_message_id"] = tree.object_id
        message.content = RecordDict()
        self.waiting.append((message, tree))

    def offer_frame(self, frame: Frame | bytes) -> None:
        """Queue a frame."""
        data = frame if isinstance(frame, bytes) else encode_frame(frame)
        records = {name: ConfigRecord({PART_FIELD: part}) for name, part in split_parts(data).items()}
        self.offer(RecordDict(records))

    def answers(self) -> list[Frame | Refusal]:
        """What has come back, read as the coordinator would."""
        return [self._read(reply) for reply in self.replies]

    def _read(self, reply: Message) -> Frame | Refusal:
        whole = inflate_object_from_contents(reply.metadata.message_id, dict(self.pushed))
        assert isinstance(whole, Message)
        if whole.has_error():
            assert whole.error.code == REFUSAL_ERROR_CODE
            return Refusal(whole.error.reason)
        return parse_frame(join_parts({name: record[PART_FIELD] for name, record in whole.content.items()}))

    def answer(self, request: httpx.Request) -> httpx.Response:
        """One call."""
        call = request.url.path.rsplit("/", 1)[-1]
        self.calls.append(call)
        self.headers.append(dict(request.headers))
        if self.scripts.get(call):
            scripted = self.scripts[call].pop(0)(request)
            if scripted is not None:
                return scripted
        done = getattr(self, "_" + call.replace("-", "_"))(request.content)
        return httpx.Response(200, content=done.SerializeToString(), request=request)

    def _activate_node(self, data: bytes) -> ActivateNodeResponse:
        assert ActivateNodeRequest.FromString(data).public_key.startswith(b"-----BEGIN PUBLIC KEY")
        self.online = True
        return ActivateNodeResponse(node_id=self.node_id)

    def _deactivate_node(self, data: bytes) -> DeactivateNodeResponse:
        assert DeactivateNodeRequest.FromString(data).node_id == self.node_id
        self.online = False
        return DeactivateNodeResponse()

    def _send_node_heartbeat(self, data: bytes) -> SendNodeHeartbeatResponse:
        known = SendNodeHeartbeatRequest.FromString(data).node.node_id == self.node_id
        self.online = self.online or known
        return SendNodeHeartbeatResponse(success=known)

    def _pull_messages(self, data: bytes) -> PullMessagesResponse:
        assert PullMessagesRequest.FromString(data).node.node_id == self.node_id
        if not self.waiting:
            return PullMessagesResponse()
        message, tree = self.waiting.pop(0)
        return PullMessagesResponse(messages_list=[message_to_proto(message)], message_object_trees=[tree])

    def _pull_object(self, data: bytes) -> PullObjectResponse:
        object_id = PullObjectRequest.FromString(data).object_id
        if object_id not in self.objects:
            return PullObjectResponse(object_found=False)
        if self.late[object_id] > 0:
            self.late[object_id] -= 1
            return PullObjectResponse(object_found=True, object_available=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=self.objects[object_id])

    def _push_messages(self, data: bytes) -> PushMessagesResponse:
        request = PushMessagesRequest.FromString(data)
        message = message_from_proto(request.messages_list[0])
        if message.metadata.message_id not in {reply.metadata.message_id for reply in self.replies}:
            self.replies.append(message)
        missing = [name for name in _names(request.message_object_trees[0]) if name not in self.pushed]
        return PushMessagesResponse(objects_to_push=missing, session_id="session")

    def _push_object(self, data: bytes) -> PushObjectResponse:
        request = PushObjectRequest.FromString(data)
        if self.keeps_objects and request.session_id == "session":
            self.pushed[request.object_id] = request.object_content
        return PushObjectResponse(stored=self.keeps_objects)

    def _confirm_message_received(self, data: bytes) -> ConfirmMessageReceivedResponse:
        self.confirmed.append(ConfirmMessageReceivedRequest.FromString(data).message_object_id)
        return ConfirmMessageReceivedResponse()


def _names(tree: ObjectTree) -> list[str]:
    return [name for child in tree.children for name in _names(child)] + [tree.object_id]


@dataclass(slots=True)
class PlayedExchange:
    """The exchange to a played SuperLink."""

    superlink: PlayedSuperLink

    def send(self, request: httpx.Request) -> httpx.Response:
        """One exchange."""
        return self.superlink.answer(request)

    def close(self) -> None:
        """Nothing to close."""
