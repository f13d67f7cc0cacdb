"""Flower's grid as a line: the one place that knows how messages and their objects travel through the SuperLink.

It does what Flower's `grid.push_messages` and `grid.pull_messages` do, over the same client, for two reasons. Flower
pulls the objects of one message after the other, and sleeps a second and more where one is not there yet; a node that
breaks off in mid-upload would hold up all others for minutes. And Flower pushes a message's parts before its head, so
that a quick node's answer and the rest of the push get into each other's way.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar, cast

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

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
    split_parts,
)
from provisioning.coordinator.exchange import Attendance, Letter

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import HttpGrid

    from provisioning.coordinator.peers import SiteNames

MESSAGE_TYPE = "query"
"""Flower's own type for messages that are neither training nor evaluation to it."""
FETCH_WORKERS = 4
OBJECT_LIMIT_S = 60.0
"""A message is visible before its objects are; its sender is given this long to finish."""
OBJECT_FIRST_S = 0.01
OBJECT_CAP_S = 0.3
SHARED_BYTES = 64 << 10
"""A payload shared by several frames is worth an object of its own from this size on."""
PART_NAME = "frame-{}"
MAX_PARTS = -(-(MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES) // PART_BYTES)
_SUPERLINK = Node(node_id=SUPERLINK_NODE_ID)
_MALFORMED_OBJECT = (KeyError, IndexError, TypeError, ValueError)

ObjectT = TypeVar("ObjectT", ConfigRecord, RecordDict)


@dataclass(slots=True)
class FlowerLine:
    """Carries frames over a ServerApp's grid.

    Args:
        grid: What Flower hands to the ServerApp.
        sites: The study's sites.
        names: For which site a node of some name at the SuperLink speaks.
        nodes: Node ids of sites that the names do not give.
        run_id: The run that messages belong to.
    """

    grid: HttpGrid
    sites: frozenset[str]
    names: SiteNames
    nodes: Mapping[str, int]
    run_id: int
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FETCH_WORKERS, "fetch"), repr=False)
    _fetching: dict[str, Future[Letter]] = field(default_factory=dict, repr=False)
    _read: list[str] = field(default_factory=list, repr=False)  # answers that were read since the last push
    _over: list[str] = field(default_factory=list, repr=False)  # answers that were read before it

    def attendance(self) -> Mapping[str, Attendance]:
        """The nodes that are online, by site; of several for one site, the one that joined first."""
        site_of, names = {node_id: site for site, node_id in self.nodes.items()}, self.names()
        present: dict[str, Attendance] = {}
        for node in sorted(self.grid.get_nodes(), key=lambda node: str(node.last_activated_at)):
            site = site_of.get(int(node.node_id), names.get(str(node.name), ""))
            if site in self.sites and self.nodes.get(site, node.node_id) == node.node_id:
                present.setdefault(site, Attendance(int(node.node_id), str(node.last_activated_at)))
        return present

    def push(self, frames: Mapping[int, Frame], *, ttl_s: float) -> tuple[Mapping[int, str], int]:
        """Send frames; equal contents travel to the SuperLink once."""
        self._over += self._read
        self._read = []
        contents = pack_frames(list(frames.values()))
        with no_object_id_recompute():
            messages = [
                Message(content, dst_node_id=node_id, message_type=MESSAGE_TYPE, ttl=ttl_s)
                for node_id, content in zip(frames, contents, strict=True)
            ]
            message_ids = self._announce(messages)
        sent = {node_id: message_id for node_id, message_id in zip(frames, message_ids, strict=True) if message_id}
        return sent, sum(map(_size_of, contents))

    def _announce(self, messages: Sequence[Message]) -> list[str]:
        """Announce messages, then send their objects; returns the ids, empty where the SuperLink knows no such node.

        The parts of the frames go last. A node that has its frame answers and lets the message be forgotten, and what
        of it had not been stored by then could not be any more.
        """
        objects: dict[str, InflatableObject] = {}
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            objects |= get_all_nested_objects(message)
        answer = self._client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
                message_object_trees=[get_object_tree(message) for message in messages],
            )
        )
        wanted = [(object_id, objects[object_id]) for object_id in answer.objects_to_push]
        parts = [isinstance(item, ConfigRecord) for _, item in wanted]
        # Deflated in this thread: only here does Flower remember the hashes that it has computed.
        deflated = [(object_id, item.deflate()) for object_id, item in wanted]
        for last in (False, True):
            batch = [item for item, is_part in zip(deflated, parts, strict=True) if is_part is last]
            list(self._pool.map(lambda item: self._store(answer.session_id, *item), batch))
        return [str(message_id) for message_id in answer.message_ids]

    def _store(self, session_id: str, object_id: str, content: bytes) -> None:
        """Send one object; one that the SuperLink does not keep is noticed by its message's loss."""
        self._client.PushObject(
            PushObjectRequest(
                node=_SUPERLINK,
                run_id=self.run_id,
                session_id=session_id,
                object_id=object_id,
                object_content=content,
            )
        )

    def collect(self, message_ids: Sequence[str], *, wait_s: float) -> list[Letter]:
        """Fetch the answers that are there; where there is none, wait for up to `wait_s` and return."""
        unanswered = [message_id for message_id in message_ids if message_id not in self._fetching]
        letters = self._poll(unanswered) if unanswered else []
        if not letters:
            self._wait(wait_s)
        done = [message_id for message_id, future in self._fetching.items() if future.done()]
        return letters + [self._fetching.pop(message_id).result() for message_id in done]

    def close(self) -> None:
        """Let go of everything under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _wait(self, wait_s: float) -> None:
        if self._fetching:
            wait(self._fetching.values(), timeout=wait_s, return_when=FIRST_COMPLETED)
        elif self._over:
            self._confirm(self._over.pop())
        else:
            time.sleep(wait_s)

    def _poll(self, message_ids: Sequence[str]) -> list[Letter]:
        """Ask once for the heads of answers; start fetching the contents of those that have some."""
        answer = self._client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        letters = []
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            head = message_from_proto(proto)
            asked = str(head.metadata.reply_to_message_id)
            self._read.append(tree.object_id)
            if head.has_error():
                letters.append(
                    _read_error(asked, head.error, from_superlink=int(head.metadata.src_node_id) == SUPERLINK_NODE_ID)
                )
            else:
                self._fetching[asked] = self._pool.submit(self._fetch, asked, tree)
        return letters

    def _fetch(self, asked: str, tree: ObjectTree) -> Letter:
        try:
            data = join_parts(self._parts(tree))
            frame = parse_frame(data)
        except PeerProtocolError as error:
            return Letter(asked, fault=error)
        except TimeoutError:
            return Letter(asked, lost="its answer broke off")
        return Letter(asked, frame=frame, size=len(data))

    def _parts(self, tree: ObjectTree) -> dict[str, bytes]:
        """Pull the parts of a frame.

        The message's head came with the poll already, and the record dict between it and the parts only names them:
        where there is one part, two of the three objects need not be pulled.
        """
        contents = tree.children[0] if len(tree.children) == 1 else ObjectTree()
        if not 1 <= len(contents.children) <= MAX_PARTS or any(leaf.children for leaf in contents.children):
            raise _malformed("content of another shape")
        records = {leaf.object_id: self._inflate(ConfigRecord, leaf.object_id, {}) for leaf in contents.children}
        if len(records) == 1:
            return {"frame-0": _part_of(*records.values())}
        record_dict = self._inflate(RecordDict, contents.object_id, records)
        if len(record_dict) > MAX_PARTS:  # one object under many names would grow when joined
            raise _malformed("too many parts")
        return {name: _part_of(record) for name, record in record_dict.items()}

    def _inflate(self, kind: type[ObjectT], object_id: str, children: Mapping[str, ConfigRecord]) -> ObjectT:
        content = self._pull(object_id)
        try:
            return kind.inflate(content, dict(children))
        except _MALFORMED_OBJECT as error:
            raise _malformed("an object that cannot be read") from error

    def _pull(self, object_id: str) -> bytes:
        """Pull one object, waiting for it where its sender is still at it.

        Raises:
            TimeoutError: It did not come, or the SuperLink has given it up.
        """
        request = PullObjectRequest(node=_SUPERLINK, run_id=self.run_id, object_id=object_id)
        deadline_s, pause_s = time.monotonic() + OBJECT_LIMIT_S, OBJECT_FIRST_S
        while True:
            answer = self._client.PullObject(request)
            if answer.object_available:
                return bytes(answer.object_content)
            if not answer.object_found or time.monotonic() > deadline_s:
                raise TimeoutError
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, OBJECT_CAP_S)

    def _confirm(self, object_id: str) -> None:
        """Tell the SuperLink that it may forget an answer's content.

        Not before the next question has been sent, and then in a moment without other work: the node may still be
        sending the last small objects of its answer when we have all that we need of it.
        """
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=_SUPERLINK, run_id=self.run_id, message_object_id=object_id)
        )

    @property
    def _client(self) -> RuntimeHttpClient:
        # The grid offers no way to order what is pushed, to poll heads alone, or to bound waits; its client does.
        return self.grid._runtime_client  # noqa: SLF001 - see above; a test against the real SuperLink guards it


def pack_frames(frames: Sequence[Frame]) -> list[RecordDict]:
    """Wrap frames for Flower, which sends equal records once, however many messages hold them.

    A frame sent to several nodes is one record dict. Where frames differ only before their payload, the payload is cut
    off into records of its own, so that a model that goes to every node with a header of its own still travels once.

    Returns:
        The content of each frame's message, in the order of `frames`.
    """
    payload_of = {id(frame): frame.payload for frame in frames}
    uses = Counter(map(id, payload_of.values()))
    packed: dict[int, RecordDict] = {}
    tails: dict[int, list[ConfigRecord]] = {}
    for frame in frames:
        payload = id(frame.payload)
        if id(frame) in packed:
            continue
        if uses[payload] > 1 and len(frame.payload) >= SHARED_BYTES:
            head = encode_frame(replace(frame, payload=b""))
            if payload not in tails:
                tails[payload] = _records_of(frame.payload)
            packed[id(frame)] = _named([_record_of(head), *tails[payload]])
        else:
            packed[id(frame)] = _named(_records_of(encode_frame(frame)))
    return [packed[id(frame)] for frame in frames]


def _records_of(data: bytes | memoryview) -> list[ConfigRecord]:
    return [_record_of(part) for part in split_parts(data).values()]


def _record_of(part: bytes) -> ConfigRecord:
    return ConfigRecord({PART_FIELD: part})


def _named(records: Sequence[ConfigRecord]) -> RecordDict:
    return RecordDict({PART_NAME.format(number): record for number, record in enumerate(records)})


def _size_of(content: RecordDict) -> int:
    return sum(len(cast("bytes", record[PART_FIELD])) for record in content.values())


def _part_of(record: ConfigRecord) -> bytes:
    part = record.get(PART_FIELD)
    if len(record) != 1 or not isinstance(part, bytes):
        raise _malformed("a record of another kind")
    return part


def _read_error(asked: str, error: Error, *, from_superlink: bool) -> Letter:
    if from_superlink:
        return Letter(asked, lost=str(error.reason))
    if error.code == REFUSAL_ERROR_CODE and error.reason in set(Refusal):
        return Letter(asked, refusal=Refusal(error.reason))
    return Letter(asked, fault=_malformed(f"an error of its own ({error.code})"))


def _malformed(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "coordinator.malformed_answer",
        f"An answer could not be read: it has {what}.",
        next_step="Nothing was done with it. If it repeats, that site's box runs an incompatible version.",
    )
