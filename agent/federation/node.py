"""The node's message loop: joins, polls, has messages answered, and comes back from whatever happens to the link."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

import structlog

from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.wire import Frame, Refusal
from agent.federation.faults import (
    ActivationRefusedError,
    CallRefusedError,
    LinkError,
    NotRecognisedError,
    RefusedError,
    RunEndedError,
    StoppedError,
)
from agent.federation.fleet import (
    HEARTBEAT_INTERVAL_S,
    Delivery,
    Fleet,
    Reply,
    build_refusal,
    build_reply,
    pack_delivery,
    unpack_delivery,
)
from agent.federation.membership import MembershipStore
from agent.federation.pace import Backoff, PollPace

RETRY_FIRST_S = 0.25
RETRY_CAP_S = 5.0
KEY_RETRY_CAP_S = 1.0
"""A key that was put back is used again within this."""
HEARTBEAT_SHARE = 0.7
CONFIRM_AFTER_S = 5.0
"""From an answer until its message is confirmed, whereupon the SuperLink forgets its content. An answer can be quicker
than its message's last objects, and the error that these then meet ends the ServerApp that sends them."""
STALL_S = 300.0
"""A loop that has not turned for so long, with no message in work, hangs."""

log = structlog.get_logger()


class Link(StrEnum):
    """How the node stands to its SuperLink."""

    JOINING = "joining"  # no session
    ONLINE = "online"
    LOST = "lost"  # a session that may still stand, but no answer
    STOPPED = "stopped"


class Event(StrEnum):
    """What happens to the link."""

    JOINED = "joined"
    RESUMED = "resumed"
    UNREACHABLE = "unreachable"
    REJECTED = "rejected"  # signature or node id not recognised
    REFUSED = "refused"  # activation or another call refused
    CRIPPLED = "crippled"  # our key or disk does not answer
    STOP = "stop"


TRANSITIONS: Mapping[tuple[Link, Event], Link] = MappingProxyType(
    {
        (Link.JOINING, Event.JOINED): Link.ONLINE,
        (Link.JOINING, Event.UNREACHABLE): Link.JOINING,
        (Link.JOINING, Event.REJECTED): Link.JOINING,
        (Link.JOINING, Event.REFUSED): Link.JOINING,
        (Link.JOINING, Event.CRIPPLED): Link.JOINING,
        (Link.ONLINE, Event.UNREACHABLE): Link.LOST,
        (Link.ONLINE, Event.REJECTED): Link.JOINING,
        (Link.ONLINE, Event.REFUSED): Link.ONLINE,
        (Link.ONLINE, Event.CRIPPLED): Link.LOST,
        (Link.LOST, Event.RESUMED): Link.ONLINE,
        (Link.LOST, Event.UNREACHABLE): Link.LOST,
        (Link.LOST, Event.REJECTED): Link.JOINING,
        (Link.LOST, Event.REFUSED): Link.JOINING,
        (Link.LOST, Event.CRIPPLED): Link.LOST,
        **{(link, Event.STOP): Link.STOPPED for link in Link},
    }
)


class Answerer(Protocol):
    """What answers frames; the node knows nothing of studies."""

    def answer(self, frame: Frame) -> Frame:
        """Answer one frame.

        Raises:
            RefusedError: With what the other side may know, and the cause for the log.
        """
        ...

    def check_still_stands(self, frame: Frame) -> None:
        """Check that the answer to a frame, which could not be sent at once, may still leave.

        Args:
            frame: As it was asked, without its payload.

        Raises:
            RefusedError: It may not.
        """
        ...


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A snapshot for people and for the service manager.

    Args:
        link: How the node stands to its SuperLink.
        node_id: Its name there, once known.
        answering: Study, stage and round in work, as text; empty when idle.
        trouble: The last failure, until something works again.
    """

    link: Link
    node_id: int | None = None
    answering: str = ""
    trouble: SecureHealthError | None = None


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How fast the node polls, in seconds; see `PollPace`."""

    fast_poll_s: float = 0.04
    idle_poll_s: float = 2.0


@dataclass(slots=True)
class _Work:
    """The one message in hand: taken, then answered, then sent.

    Args:
        fetched: Whether its content was taken in; what was not may still be on its way.
        asked: What the reply answers, without its payload; None where it is a refusal.
    """

    delivery: Delivery | None = None
    reply: Reply | None = None
    asked: Frame | None = None
    fetched: bool = True


class Node:
    """One node's message loop. `run` blocks until `stop` is set."""

    def __init__(
        self,
        fleet: Fleet,
        answerer: Answerer,
        memory: MembershipStore,
        clock: Clock,
        *,
        stop: threading.Event,
        dice: random.Random,
        settings: NodeSettings | None = None,
        on_change: Callable[[NodeStatus], None] | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            fleet: The conversation with the SuperLink.
            answerer: Answers frames.
            memory: What outlives this process.
            clock: For pacing.
            stop: Ends the loop once set.
            dice: Source of jitter.
            settings: Pacing.
            on_change: Told every new status, from the loop's thread.
        """
        settings = settings or NodeSettings()
        self._fleet = fleet
        self._answerer = answerer
        self._memory = memory
        self._clock = clock
        self._stop = stop
        self._pace = PollPace(settings.fast_poll_s, settings.idle_poll_s, dice)
        self._backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S, dice)
        self._key_backoff = Backoff(RETRY_FIRST_S, KEY_RETRY_CAP_S, dice)
        self._dice = dice
        self._on_change = on_change or (lambda _: None)
        self._work = _Work()
        self._unconfirmed: deque[tuple[float, Delivery]] = deque()
        self._rejected_heartbeat: NotRecognisedError | None = None
        self._turned_s = clock.monotonic_s()
        self._status = NodeStatus(Link.JOINING)
        self._steps: Mapping[Link, Callable[[], float]] = {
            Link.JOINING: self._join,
            Link.LOST: self._resume,
            Link.ONLINE: self._serve,
        }

    @property
    def status(self) -> NodeStatus:
        """How things stand."""
        return self._status

    def is_turning(self) -> bool:
        """Whether the loop is alive; a message in work counts as alive, for its own limits end it."""
        return bool(self._status.answering) or self._clock.monotonic_s() - self._turned_s < STALL_S

    def run(self) -> None:
        """Serve until told to stop, then take leave."""
        self._remember_last_session()
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        heart.start()
        while not self._stop.is_set():
            self._turned_s = self._clock.monotonic_s()
            self._stop.wait(self._turn())
        self._take_leave()

    def _turn(self) -> float:
        """Take one step; returns how long to wait before the next, in seconds."""
        try:
            wait_s = self._steps[self._status.link]()
        except StoppedError:
            return 0.0
        except (LinkError, HardwareError) as error:
            return self._fail(error)
        if self._status.trouble is not None and self._status.link is Link.ONLINE:
            self._show(trouble=None)
        self._backoff.reset()
        self._key_backoff.reset()
        return wait_s

    def _join(self) -> float:
        known_id = self._fleet.node_id
        try:
            node_id = self._fleet.activate()
        except ActivationRefusedError:
            if known_id is None:
                raise
            self._fleet.heartbeat()  # a session of ours that still stands needs no activation
            node_id = known_id
        self._keep(lambda: self._memory.store_node_id(node_id))
        # The SuperLink gave us another name: it has forgotten whatever it had asked of the old one.
        if known_id not in {None, node_id}:
            self._drop_work("superlink_forgot")
        self._apply(Event.JOINED, node_id=node_id)
        return 0.0

    def _resume(self) -> float:
        self._fleet.heartbeat()
        self._apply(Event.RESUMED, node_id=self._fleet.node_id)
        return 0.0

    def _serve(self) -> float:
        if (rejected := self._rejected_heartbeat) is not None:
            self._rejected_heartbeat = None
            raise rejected
        self._confirm_due()
        if self._work.reply is None and self._work.delivery is None:
            self._work.delivery = self._fleet.receive()
            if self._work.delivery is None:
                return self._pace.wait_s(self._clock.monotonic_s())
        self._pace.message_at(self._clock.monotonic_s())
        try:
            self._finish_work()
        except (RunEndedError, CallRefusedError) as error:
            self._drop_work(error.code)
        self._pace.message_at(self._clock.monotonic_s())
        return 0.0

    def _finish_work(self) -> None:
        """Do what is left to do about the message in hand; a lost link leaves the rest for later."""
        work = self._work
        if work.reply is None and work.delivery is not None:
            packed = pack_delivery(work.delivery)
            self._keep(lambda: self._memory.store_in_hand(packed))
            work.reply = self._reply_to(work.delivery)
        elif work.reply is not None and work.asked is not None:
            work.reply = self._recheck(work.reply, work.asked)
        if work.reply is None:
            return
        self._fleet.send(work.reply)
        self._work = _Work()
        self._keep(self._memory.forget_in_hand)
        if work.fetched:
            self._unconfirmed.append((self._clock.monotonic_s() + CONFIRM_AFTER_S, work.reply.delivery))

    def _confirm_due(self) -> None:
        while self._unconfirmed and self._unconfirmed[0][0] <= self._clock.monotonic_s():
            _, delivery = self._unconfirmed.popleft()
            with suppress(RunEndedError, CallRefusedError):  # the SuperLink has forgotten it by itself
                self._fleet.confirm(delivery)

    def _reply_to(self, delivery: Delivery) -> Reply:
        try:
            frame = self._fleet.fetch(delivery)
        except PeerProtocolError as error:
            log.warning("message_malformed", error=error)
            self._work.fetched = False
            return build_refusal(delivery, Refusal.MALFORMED)
        self._show(answering=f"{frame.study} {frame.stage.value} {frame.round}")
        begin_s = self._clock.monotonic_s()
        try:
            reply = build_reply(delivery, self._answerer.answer(frame))
            self._work.asked = replace(frame, payload=b"")
        except RefusedError as refused:
            return self._refuse(delivery, frame, refused.refusal, refused.cause)
        # A fault of ours in one message must not take the node out of the federation.
        except Exception as error:  # noqa: BLE001 - the last line of defence; the trace goes to the log
            return self._refuse(delivery, frame, Refusal.INTERNAL, error)
        finally:
            self._show(answering="")
        log.info(
            "message_answered",
            study=frame.study,
            stage=frame.stage.value,
            round=frame.round,
            seconds=round(self._clock.monotonic_s() - begin_s, 3),
        )
        return reply

    def _recheck(self, reply: Reply, asked: Frame) -> Reply:
        """A reply that had to wait for the link: what let it leave may have been withdrawn meanwhile."""
        try:
            self._answerer.check_still_stands(asked)
        except RefusedError as refused:
            answer = self._refuse(reply.delivery, asked, refused.refusal, refused.cause)
        except Exception as error:  # noqa: BLE001 - as in `_reply_to`; nothing leaves that could not be looked at
            answer = self._refuse(reply.delivery, asked, Refusal.INTERNAL, error)
        else:
            return reply
        self._work.asked = None
        return answer

    def _refuse(self, delivery: Delivery, frame: Frame, refusal: Refusal, cause: Exception) -> Reply:
        if self._stop.is_set():
            refusal = Refusal.BUSY  # we broke it off ourselves
        known = isinstance(cause, SecureHealthError)
        log.warning(
            "message_refused",
            study=frame.study,
            stage=frame.stage.value,
            round=frame.round,
            refusal=refusal.value,
            error=cause if known else repr(cause),
            exc_info=None if known else cause,
        )
        return build_refusal(delivery, refusal)

    def _fail(self, error: SecureHealthError) -> float:
        """Note a failed step; returns how long to wait."""
        known = self._status.trouble
        if known is None or known.code != error.code:
            log.warning("link_trouble", link=self._status.link.value, error=error)
        crippled = isinstance(error, HardwareError)
        self._apply(Event.CRIPPLED if crippled else _event_of(error), trouble=error)
        if error.code == "fleet.tls_refused":
            self._reload_trust()
        return (self._key_backoff if crippled else self._backoff).next_s()

    def _reload_trust(self) -> None:
        try:
            self._fleet.reconnect()
        except OperatorError as error:
            self._show(trouble=error)

    def _apply(self, event: Event, **changes: object) -> None:
        link = TRANSITIONS[self._status.link, event]
        if link is not self._status.link:
            log.info("link_changed", link=link.value, cause=event.value, node_id=self._fleet.node_id)
        self._show(link=link, **changes)

    def _show(self, **changes: object) -> None:
        fields = {name: getattr(self._status, name) for name in NodeStatus.__slots__}
        self._status = NodeStatus(**(fields | changes))
        self._on_change(self._status)

    def _beat(self) -> None:
        """Keep the session alive while the loop's thread works; what fails here the loop meets by itself."""
        while not self._stop.wait(HEARTBEAT_INTERVAL_S * HEARTBEAT_SHARE * self._dice.uniform(0.8, 1.0)):
            if self._status.link is not Link.ONLINE:
                continue
            try:
                self._fleet.heartbeat()
            except NotRecognisedError as error:
                self._rejected_heartbeat = error
            except (LinkError, HardwareError, StoppedError) as error:
                log.debug("heartbeat_failed", error=error)

    def _remember_last_session(self) -> None:
        """Take up what the last process left: its session, and the message that it had in hand."""
        self._fleet.node_id = self._memory.load_node_id()
        if self._fleet.node_id is None:
            return
        self._show(link=Link.LOST, node_id=self._fleet.node_id)
        packed = self._memory.load_in_hand()
        if packed is None:
            return
        try:
            self._work.reply = build_refusal(unpack_delivery(packed), Refusal.BUSY)
        except PeerProtocolError as error:
            log.warning("in_hand_unreadable", error=error)
            self._keep(self._memory.forget_in_hand)

    def _keep(self, store: Callable[[], None]) -> None:
        """Remember something for the next process; without it that one merely waits longer."""
        try:
            store()
        except OSError as error:
            log.warning("state_not_kept", error=_disk_trouble(error))

    def _drop_work(self, why: str) -> None:
        if self._work.reply is not None or self._work.delivery is not None:
            log.warning("message_dropped", why=why)
        self._work = _Work()
        self._keep(self._memory.forget_in_hand)

    def _take_leave(self) -> None:
        """Send what is finished and say goodbye, once each; nobody waits for us any more."""
        link = self._status.link
        self._apply(Event.STOP)
        if link is not Link.ONLINE:
            return
        work = self._work
        if work.reply is None and work.delivery is not None:
            work.reply = build_refusal(work.delivery, Refusal.BUSY)
        try:
            self._finish_work()
            self._fleet.deactivate()
        except (LinkError, HardwareError, StoppedError) as error:
            log.info("left_without_goodbye", error=repr(error))


def _event_of(error: SecureHealthError) -> Event:
    if isinstance(error, NotRecognisedError):
        return Event.REJECTED
    if isinstance(error, (ActivationRefusedError, CallRefusedError, RunEndedError)):
        return Event.REFUSED
    return Event.UNREACHABLE


def _disk_trouble(error: OSError) -> SecureHealthError:
    return HardwareError(
        "node.disk",
        f"The node cannot write its state: {error}.",
        next_step="Free space on the disk, or have it checked; the node goes on as soon as it can write.",
    )
