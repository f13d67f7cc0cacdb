"""The node's side of Flower's Fleet interface (protobuf over HTTPS), in terms of frames.

Nothing else in the agent imports Flower beyond `flwr.app`. Flower's own connection (`http_request_response`) ends the
process when the SuperLink rejects it, and waits as long as the SuperLink likes; this one does neither.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from google.protobuf.message import DecodeError

from agent.core.clock import Clock
from agent.core.errors import PeerProtocolError
from agent.core.wire import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PART_BYTES,
    PART_FIELD,
    REFUSAL_ERROR_CODE,
    Frame,
    Refusal,
    encode_frame,
    join_parts,
    parse_frame,
    part_names,
    split_parts,
)
from agent.federation.credentials import NodeKey, SignedTimestamp
from agent.federation.exchange import BoundedExchange, ExchangeLimits
from agent.federation.faults import (
    ActivationRefusedError,
    CallRefusedError,
    LinkError,
    NotRecognisedError,
    OversizeAnswerError,
    RunEndedError,
    StoppedError,
    UnreachableError,
)
from agent.federation.pace import Backoff

HEARTBEAT_INTERVAL_S = 10.0
"""The shortest that the SuperLink allows: after twice this it calls a silent node dead, and lets its key in again."""
CALL_TRIES = 3
RETRY_FIRST_S = 0.1
RETRY_CAP_S = 1.0
OBJECT_FIRST_S = 0.03
OBJECT_CAP_S = 0.5
OBJECT_LIMIT_S = 60.0
"""A message is visible before its objects are; its sender is given this long to finish."""
OBJECT_HEAD_BYTES = 1024
"""What Flower adds to a part, at most."""
CLOCK_TOLERANCE_S = 60.0
"""From here on a rejection is put down to the clocks; the SuperLink's own limits are 5 s ahead and 305 s behind."""
SHORT_CALL_S = 1.5
"""Limit of calls that only do the SuperLink a favour (taking leave)."""
NODE_ACTIVATION_FAILED = 2004
RUN_STATUS_NOT_ALLOWED = 2007
"""Of `flwr.supercore.error.ApiErrorCode`; importing that loads a web framework: 10 MB, of no use to an agent."""

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
_MALFORMED_OBJECT = (DecodeError, KeyError, IndexError, OverflowError, RecursionError, TypeError, ValueError)
_PASSING_STATUS = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class SuperLinkEndpoint:
    """Where the SuperLink is, and what is accepted from it.

    Args:
        address: `host:port`.
        root_certificates: PEM file of the only roots trusted.
        proxy: `http://host:port` of the hospital's proxy.
        max_frame_bytes: Greatest frame taken in.
        exchange: Bounds of one request.
    """

    address: str
    root_certificates: Path
    proxy: str | None = None
    max_frame_bytes: int = MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
    exchange: ExchangeLimits = field(default_factory=ExchangeLimits)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that the SuperLink handed to this node, still without its content."""

    message: Message = field(repr=False)
    tree: ObjectTree = field(repr=False)

    @property
    def message_id(self) -> str:
        """The SuperLink's name for it."""
        return str(self.message.metadata.message_id)


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished reply; sending it again after a failure sends only what is still missing."""

    delivery: Delivery
    message: Message = field(repr=False)
    tree: ObjectTree = field(repr=False)
    objects: Mapping[str, bytes] = field(repr=False)


class _Signer:
    """Adds the signed timestamp to every request, then sends it through our own exchange instead of Flower's."""

    def __init__(self, signed: SignedTimestamp, exchange: BoundedExchange) -> None:
        self._signed = signed
        self._exchange = exchange

    def intercept(self, context: ProtobufRequestContext, _: ProtobufCall) -> httpx.Response:
        timestamp, signature = self._signed.current()
        context.request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._signed.public_key_base64
        context.request.headers[TIMESTAMP_HEADER] = timestamp
        context.request.headers[FLEET_HTTP_SIGNATURE_HEADER] = signature
        return self._exchange.send(context.request)


class Fleet:
    """One node's conversation with one SuperLink; heartbeats may come from another thread.

    Every method may raise `UnreachableError`, `NotRecognisedError`, `CallRefusedError`, `HardwareError` when the key
    does not answer, and `StoppedError` when it was waiting while the node was told to stop.
    """

    def __init__(
        self,
        endpoint: SuperLinkEndpoint,
        key: NodeKey,
        clock: Clock,
        *,
        stop: threading.Event,
        dice: random.Random,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            endpoint: Where to.
            key: Signs for this node.
            clock: For timestamps.
            stop: Ends every wait once set.
            dice: Source of jitter.

        Raises:
            OperatorError: The root certificates cannot be used.
        """
        self._endpoint = endpoint
        self._clock = clock
        self._stop = stop
        self._dice = dice
        self.signed = SignedTimestamp(key, clock)
        self.node_id: int | None = None
        self._exchange, self._client = self._connect(endpoint.exchange)

    def _connect(self, limits: ExchangeLimits) -> tuple[BoundedExchange, FleetHttpClient]:
        endpoint = self._endpoint
        exchange = BoundedExchange(endpoint.root_certificates, proxy=endpoint.proxy, limits=limits)
        # Flower's own HTTP client inside stays unused; `verify=False` only spares it loading certificates.
        client = FleetHttpClient(
            f"https://{endpoint.address}",
            interceptors=[_Signer(self.signed, exchange)],
            verify=False,
        )
        return exchange, client

    def reconnect(self) -> None:
        """Drop all connections and read the root certificates anew.

        Raises:
            OperatorError: The root certificates cannot be used.
        """
        fresh = self._connect(self._endpoint.exchange)
        old, (self._exchange, self._client) = (self._exchange, self._client), fresh
        for part in old:
            part.close()

    def close(self) -> None:
        """Close all connections; calls under way fail."""
        self._client.close()
        self._exchange.close()

    def activate(self) -> int:
        """Join; returns the node id.

        Raises:
            ActivationRefusedError: The key is not registered, or its last session has not lapsed.
        """
        request = ActivateNodeRequest(public_key=self.signed.public_key_pem, heartbeat_interval=HEARTBEAT_INTERVAL_S)
        self.node_id = int(self._call(self._client.ActivateNode, request).node_id)
        return self.node_id

    def heartbeat(self) -> None:
        """Say that we live. Also takes a session up again that nobody ended.

        Raises:
            NotRecognisedError: The SuperLink does not know this node id any more.
        """
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_INTERVAL_S)
        if not self._call(self._client.SendNodeHeartbeat, request).success:
            raise _not_recognised("it does not know this node any more")

    def deactivate(self) -> None:
        """Take leave, within `SHORT_CALL_S` a step, so that the SuperLink need not wait for our silence."""
        exchange, client = self._connect(self._endpoint.exchange.shortened(SHORT_CALL_S))
        try:
            self._call_once(client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))
        finally:
            client.close()
            exchange.close()

    def receive(self) -> Delivery | None:
        """Ask for one message."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        try:
            return Delivery(message_from_proto(answer.messages_list[0]), answer.message_object_trees[0])
        except _MALFORMED_OBJECT as error:
            raise _refused(f"a message without usable metadata ({error})") from error

    def fetch(self, delivery: Delivery) -> Frame:
        """Pull a message's content.

        Raises:
            PeerProtocolError: It is no frame, or larger than we take; nothing beyond the limits was pulled.
        """
        max_parts = -(-self._endpoint.max_frame_bytes // PART_BYTES)
        leaves, record_dict_id = _check_tree(delivery.tree, max_parts=max_parts)
        records: dict[str, ConfigRecord] = {}
        size = 0
        for object_id in leaves:
            content = self._pull(delivery, object_id)
            size += len(content)
            if size > self._endpoint.max_frame_bytes + len(leaves) * OBJECT_HEAD_BYTES:
                raise _malformed("more bytes than this node takes")
            records[object_id] = _parse_object(ConfigRecord, content, {})
        if record_dict_id == _expected_record_dict(leaves):  # the usual case: it need not be pulled to be known
            return _frame_of(dict(zip(part_names(len(leaves)), records.values(), strict=True)))
        record_dict = _parse_object(RecordDict, self._pull(delivery, record_dict_id), records)
        if len(record_dict) > max_parts:  # one object under many names would grow when joined
            raise _malformed("more parts than this node takes")
        return _frame_of(record_dict)

    def _pull(self, delivery: Delivery, object_id: str) -> bytes:
        backoff = Backoff(OBJECT_FIRST_S, OBJECT_CAP_S, self._dice)
        begin_s = self._clock.monotonic_s()
        request = PullObjectRequest(node=self._node, run_id=delivery.message.metadata.run_id, object_id=object_id)
        while True:
            try:
                answer = self._call(self._client.PullObject, request)
            except OversizeAnswerError as error:
                raise _malformed("an object larger than this node takes") from error
            if not answer.object_found:
                raise _malformed("content that the SuperLink does not hold")
            if answer.object_available:
                return bytes(answer.object_content)
            if self._clock.monotonic_s() - begin_s > OBJECT_LIMIT_S:
                raise _malformed("content that was never sent")
            if self._stop.wait(backoff.next_s()):
                raise StoppedError

    def confirm(self, delivery: Delivery) -> None:
        """Tell the SuperLink that it may forget a message's content."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=delivery.message.metadata.run_id, message_object_id=delivery.message_id
        )
        self._call(self._client.ConfirmMessageReceived, request)

    def send(self, reply: Reply) -> None:
        """Send a reply, or the rest of it where an earlier attempt broke off.

        Raises:
            RunEndedError: Nobody waits for it any more.
        """
        for _ in range(CALL_TRIES):
            answer = self._call(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(reply.message)],
                    message_object_trees=[reply.tree],
                    clientapp_runtime_list=[0.0],
                ),
            )
            wanted = set(answer.objects_to_push)
            if all(
                self._push(reply, object_id, answer.session_id) for object_id in reply.objects if object_id in wanted
            ):
                return
        raise _refused("a reply whose parts it does not keep")

    def _push(self, reply: Reply, object_id: str, session_id: str) -> bool:
        request = PushObjectRequest(
            node=self._node,
            run_id=reply.message.metadata.run_id,
            session_id=session_id,
            object_id=object_id,
            object_content=reply.objects[object_id],
        )
        return bool(self._call(self._client.PushObject, request).stored)

    @property
    def _node(self) -> Node:
        if self.node_id is None:
            raise _not_recognised("this node has not joined")
        return Node(node_id=self.node_id)

    def _call(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        """Call with a few quick retries; what lasts longer is the node's to wait for."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S, self._dice)
        while True:
            try:
                return self._call_once(method, request)
            except (UnreachableError, CallRefusedError) as error:
                lasting = isinstance(error, CallRefusedError) and not error.details.get("may_pass")
                if lasting or backoff.failures + 1 >= CALL_TRIES or self._stop.wait(backoff.next_s()):
                    raise

    def _call_once(self, method: Callable[[RequestT], ResponseT], request: RequestT) -> ResponseT:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            raise self._translate(error.response) from error
        except ValueError as error:
            raise _refused("an answer that is not protobuf") from error

    def _why_rejected(self, response: httpx.Response) -> NotRecognisedError:
        # Its clock is looked at for this sentence only: nothing that we sign ever follows it.
        try:
            theirs = parsedate_to_datetime(response.headers["date"])
            offset_s = (self._clock.now() - theirs).total_seconds()
        except (KeyError, TypeError, ValueError):
            offset_s = 0.0
        if abs(offset_s) > CLOCK_TOLERANCE_S:
            return _clock_wrong(offset_s)
        return _not_recognised("it rejects our signature or node id")

    def _translate(self, response: httpx.Response) -> LinkError:
        status = response.status_code
        if status in _PASSING_STATUS:
            return UnreachableError(
                "fleet.passing_status",
                f"The way to the SuperLink answers with HTTP status {status}.",
                next_step="The node keeps trying by itself. If it lasts, check the proxy and the SuperLink's host.",
            )
        if status == HTTPStatus.UNAUTHORIZED:
            self.signed.forget()
            return self._why_rejected(response)
        code = _flower_code(response.text)
        if code == NODE_ACTIVATION_FAILED:
            return ActivationRefusedError(
                "fleet.activation_refused",
                "The SuperLink does not let this node in: its key is not registered there, or its last session there "
                "has not lapsed yet.",
                next_step="The node keeps trying by itself. If it lasts over a minute, ask the operator to register "
                "this node's key, and check that no second box uses the same key.",
            )
        if code == RUN_STATUS_NOT_ALLOWED:
            return RunEndedError(
                "fleet.run_ended",
                "The run that a message belonged to has ended.",
                next_step="Nothing: the answer was dropped.",
            )
        may_pass = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return _refused(f"a call, with HTTP status {status}", flower_code=code, may_pass=may_pass)


def build_reply(delivery: Delivery, frame: Frame) -> Reply:
    """Wrap an answering frame."""
    parts = split_parts(encode_frame(frame))
    records = {name: ConfigRecord({PART_FIELD: part}) for name, part in parts.items()}
    return _finish(delivery, Message(RecordDict(records), reply_to=delivery.message))


def build_refusal(delivery: Delivery, refusal: Refusal) -> Reply:
    """Wrap a refusal; all that it says is one value of the fixed list."""
    return _finish(delivery, Message(Error(REFUSAL_ERROR_CODE, refusal.value), reply_to=delivery.message))


def _finish(delivery: Delivery, message: Message) -> Reply:
    with no_object_id_recompute():
        tree = get_object_tree(message)
        objects = {object_id: item.deflate() for object_id, item in get_all_nested_objects(message).items()}
    # The SuperLink names messages by the hash of their head; a reply's sender sets it.
    message.metadata.__dict__["_message_id"] = tree.object_id
    bare = message if message.has_error() else _without_content(message)
    return Reply(delivery, bare, tree, objects)


def _without_content(message: Message) -> Message:
    message.content = RecordDict()
    return message


def pack_delivery(delivery: Delivery) -> bytes:
    """Encode what is needed to answer a message after a restart; the inverse of `unpack_delivery`."""
    return bytes(message_to_proto(delivery.message).SerializeToString())


def unpack_delivery(data: bytes) -> Delivery:
    """Decode what `pack_delivery` encoded.

    Raises:
        PeerProtocolError: The bytes are damaged.
    """
    try:
        message = message_from_proto(ProtoMessage.FromString(data))
    except _MALFORMED_OBJECT as error:
        raise _malformed("a head that cannot be read") from error
    return Delivery(message, ObjectTree(object_id=message.metadata.message_id))


def _flower_code(text: str) -> int | None:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    code = said.get("code") if isinstance(said, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _check_tree(tree: ObjectTree, *, max_parts: int) -> tuple[list[str], str]:
    """Check that a message is a head, one record dict and at most `max_parts` records.

    Returns:
        Object ids of the records, and of the record dict.
    """
    if len(tree.children) != 1:
        raise _malformed("no content")
    record_dict = tree.children[0]
    if not 1 <= len(record_dict.children) <= max_parts or any(leaf.children for leaf in record_dict.children):
        raise _malformed("content of another shape, or larger than this node takes")
    return [leaf.object_id for leaf in record_dict.children], record_dict.object_id


ObjectT = TypeVar("ObjectT", ConfigRecord, RecordDict)


def _parse_object(kind: type[ObjectT], content: bytes, children: Mapping[str, ConfigRecord]) -> ObjectT:
    try:
        return kind.inflate(content, dict(children))
    except _MALFORMED_OBJECT as error:
        raise _malformed("an object that cannot be read") from error


def _expected_record_dict(leaves: list[str]) -> str:
    """Object id of a record dict that holds these records under the names of a frame's parts, in order."""
    stand_ins = {name: ConfigRecord({PART_FIELD: index}) for index, name in enumerate(part_names(len(leaves)))}
    content = bytes(RecordDict(stand_ins).deflate())
    for record, leaf in zip(stand_ins.values(), leaves, strict=True):
        content = content.replace(record.object_id.encode(), leaf.encode())
    return hashlib.sha256(content).hexdigest()


def _frame_of(records: Mapping[str, object]) -> Frame:
    parts = {}
    for name, record in records.items():
        if not isinstance(record, ConfigRecord) or record.keys() != {PART_FIELD}:
            raise _malformed("records of another kind")
        parts[name] = record[PART_FIELD]
    return parse_frame(join_parts(parts))


def _malformed(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "fleet.malformed",
        f"A message was refused: it has {what}.",
        next_step="Nothing was done with it. If it repeats, the coordinator runs an incompatible version.",
    )


def _not_recognised(why: str) -> NotRecognisedError:
    return NotRecognisedError(
        "fleet.not_recognised",
        f"The SuperLink does not recognise this node: {why}.",
        next_step="The node joins again by itself. If it lasts, ask the operator whether its key is still registered.",
    )


def _clock_wrong(offset_s: float) -> NotRecognisedError:
    return NotRecognisedError(
        "fleet.clock_wrong",
        f"This box's clock and the SuperLink's differ by {offset_s:.0f} s, so the SuperLink rejects what we sign.",
        next_step="Set this box's clock (or have its time service checked); the node joins again by itself.",
        offset_s=round(offset_s),
    )


def _refused(what: str, **details: object) -> CallRefusedError:
    return CallRefusedError(
        "fleet.call_refused",
        f"The SuperLink refuses or spoils {what}.",
        next_step="The node goes on with the next message. If it repeats, the SuperLink runs an incompatible version.",
        **details,
    )
