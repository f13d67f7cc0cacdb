from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.core.errors import HardwareError, OperatorError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation import node as node_module
from agent.federation.faults import RefusedError, StoppedError, UnreachableError
from agent.federation.fleet import Fleet
from agent.federation.membership import MembershipStore
from agent.federation.node import TRANSITIONS, Event, Link, Node, NodeSettings, NodeStatus
from tests.simulators.clock import SetClock
from tests.simulators.played_superlink import (
    ACTIVATION_FAILED,
    NODE_ID,
    RUN_NOT_RUNNING,
    PlayedSuperLink,
    failing,
    flower_error,
    http_status,
)
from tests.simulators.superlink import wait_until

FRAME = Frame("study", Stage.PLAIN, 1, payload=b"numbers")
UNREACHABLE = failing(UnreachableError("fleet.unreachable", "Played.", next_step="Wait."))


@dataclass(slots=True)
class PlayedAnswerer:
    """Echoes frames, or does what a test wants."""

    act: Callable[[Frame], Frame] = lambda frame: frame
    check: Callable[[Frame], None] = lambda frame: None
    seen: list[Frame] = field(default_factory=list)

    def answer(self, frame: Frame) -> Frame:
        self.seen.append(frame)
        return self.act(frame)

    def check_still_stands(self, frame: Frame) -> None:
        self.check(frame)


@dataclass(slots=True)
class Bench:
    """A node in a thread, and what surrounds it."""

    superlink: PlayedSuperLink
    fleet: Fleet
    answerer: PlayedAnswerer
    memory: MembershipStore
    clock: SetClock
    stop: threading.Event
    statuses: list[NodeStatus] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> Node:
        self.stop.clear()
        node = Node(
            self.fleet,
            self.answerer,
            self.memory,
            self.clock,
            stop=self.stop,
            dice=random.Random(1),
            settings=NodeSettings(0.005, 0.01),
            on_change=self.statuses.append,
        )
        self.thread = threading.Thread(target=node.run, daemon=True)
        self.thread.start()
        return node

    def end(self) -> None:
        self.stop.set()
        if self.thread is not None:
            self.thread.join(5)
            assert not self.thread.is_alive()

    def wait_for_answers(self, count: int) -> list[Frame | Refusal]:
        wait_until(
            lambda: len(self.superlink.replies) >= count and self.memory.load_in_hand() is None,
            limit_s=5,
            what="answers",
            interval_s=0.005,
        )
        return self.superlink.answers()

    def links(self) -> list[Link]:
        """The states in order, without repetition."""
        return [
            status.link
            for index, status in enumerate(self.statuses)
            if index == 0 or self.statuses[index - 1].link is not status.link
        ]


@pytest.fixture
def bench(
    superlink: PlayedSuperLink,
    fleet: Fleet,
    clock: SetClock,
    stop: threading.Event,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    monkeypatch.setattr(node_module, "RETRY_FIRST_S", 0.005)
    monkeypatch.setattr(node_module, "HEARTBEAT_INTERVAL_S", 0.05)
    memory = MembershipStore(tmp_path / "fleet", "superlink.test:9092", fleet.signed.public_key_pem)
    built = Bench(superlink, fleet, PlayedAnswerer(), memory, clock, stop)
    yield built
    built.end()


def _wait_for(node: Node, link: Link) -> None:
    wait_until(lambda: node.status.link is link, limit_s=5, what=link.value, interval_s=0.002)


def test_every_event_has_a_transition_from_every_living_state() -> None:
    impossible = {
        (Link.JOINING, Event.RESUMED),
        (Link.ONLINE, Event.JOINED),
        (Link.ONLINE, Event.RESUMED),
        (Link.LOST, Event.JOINED),
    }
    living = {(link, event) for link in Link for event in Event if link is not Link.STOPPED}
    assert living - impossible == {pair for pair in TRANSITIONS if pair[0] is not Link.STOPPED}


def test_every_state_leads_back_online_and_to_a_stop() -> None:
    reach = {
        link: {target for (start, _), target in TRANSITIONS.items() if start is link}
        for link in (Link.JOINING, Link.LOST)
    }
    for targets in reach.values():
        assert Link.ONLINE in targets
    assert all(TRANSITIONS[link, Event.STOP] is Link.STOPPED for link in Link)


def test_it_joins_answers_and_takes_leave(bench: Bench) -> None:
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert bench.wait_for_answers(1) == [FRAME]
    bench.end()
    assert not bench.superlink.online
    assert bench.links() == [Link.ONLINE, Link.STOPPED]
    assert bench.memory.load_node_id() == NODE_ID
    assert bench.memory.load_in_hand() is None


def test_a_malformed_message_is_refused_and_the_next_one_answered(bench: Bench) -> None:
    bench.superlink.offer_frame(b"no frame")
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert bench.wait_for_answers(2) == [Refusal.MALFORMED, FRAME]
    assert bench.answerer.seen == [FRAME]


def wait_for_polls(bench: Bench) -> None:
    """Until the node's loop has turned a few times."""
    polls = bench.superlink.calls.count("pull-messages")
    wait_until(lambda: bench.superlink.calls.count("pull-messages") > polls + 2, limit_s=5, what="polls")


def test_a_message_is_forgotten_at_the_superlink_once_its_sender_must_have_finished(bench: Bench) -> None:
    bench.superlink.offer_frame(FRAME)
    bench.start()
    bench.wait_for_answers(1)
    wait_for_polls(bench)
    assert bench.superlink.confirmed == []
    bench.clock.move(node_module.CONFIRM_AFTER_S)
    wait_until(lambda: len(bench.superlink.confirmed) == 1, limit_s=5, what="the confirmation")


def test_a_message_that_was_not_taken_in_is_never_confirmed(bench: Bench) -> None:
    bench.superlink.offer_frame(b"no frame")
    bench.superlink.offer_frame(FRAME)
    taken = bench.superlink.waiting[1][0].metadata.message_id
    bench.start()
    bench.wait_for_answers(2)
    wait_for_polls(bench)  # the node notes when a message is due once its answer has left
    bench.clock.move(node_module.CONFIRM_AFTER_S)
    wait_until(lambda: bool(bench.superlink.confirmed), limit_s=5, what="the confirmation")
    assert bench.superlink.confirmed == [taken]


def test_a_refusal_carries_its_word_and_nothing_of_its_cause(bench: Bench) -> None:
    def decline(_: Frame) -> Frame:
        cause = OperatorError("data.secret", "Row 17 of ward 3 is wrong.", next_step="Look.")
        raise RefusedError(Refusal.DECLINED, cause)

    bench.answerer.act = decline
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert bench.wait_for_answers(1) == [Refusal.DECLINED]
    assert not any(b"ward" in data for data in bench.superlink.pushed.values())


def test_a_fault_of_ours_is_internal_and_the_node_lives_on(bench: Bench) -> None:
    def fail_once(frame: Frame) -> Frame:
        bench.answerer.act = lambda other: other
        raise ZeroDivisionError("a secret")

    bench.answerer.act = fail_once
    bench.superlink.offer_frame(FRAME)
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert bench.wait_for_answers(2) == [Refusal.INTERNAL, FRAME]


def test_a_lost_superlink_is_resumed_without_joining_again(bench: Bench) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    bench.superlink.script("pull-messages", *[UNREACHABLE] * 3)
    _wait_for(node, Link.LOST)
    _wait_for(node, Link.ONLINE)
    assert bench.superlink.calls.count("activate-node") == 1


def test_a_superlink_without_memory_is_joined_again_under_a_new_name(bench: Bench) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    bench.superlink.node_id = NODE_ID + 1
    bench.superlink.script("pull-messages", http_status(401))
    wait_until(lambda: node.status.node_id == NODE_ID + 1, limit_s=5, what="the new name")
    assert bench.memory.load_node_id() == NODE_ID + 1


def test_a_heartbeat_that_is_not_recognised_makes_it_join_again(bench: Bench) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    bench.superlink.script("send-node-heartbeat", http_status(401))
    wait_until(lambda: bench.superlink.calls.count("activate-node") == 2, limit_s=5, what="joining again")
    _wait_for(node, Link.ONLINE)


def test_a_refused_activation_is_tried_until_the_old_session_lapses(bench: Bench) -> None:
    bench.superlink.script("activate-node", *[flower_error(ACTIVATION_FAILED)] * 4)
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    assert bench.superlink.calls.count("activate-node") == 5
    assert {status.trouble.code for status in bench.statuses if status.trouble} == {"fleet.activation_refused"}


def test_a_restarted_node_takes_its_session_up_again_without_activation(bench: Bench) -> None:
    bench.memory.store_node_id(NODE_ID)
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    assert "activate-node" not in bench.superlink.calls
    assert bench.superlink.online


def test_a_restarted_node_whose_name_is_forgotten_joins(bench: Bench) -> None:
    bench.memory.store_node_id(NODE_ID - 1)
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    assert node.status.node_id == NODE_ID


def test_a_session_that_still_stands_is_used_when_activation_is_refused(bench: Bench) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    bench.superlink.script("pull-messages", http_status(401))
    bench.superlink.script("activate-node", flower_error(ACTIVATION_FAILED))
    wait_until(lambda: bench.superlink.calls.count("activate-node") == 2, limit_s=5, what="a second activation")
    _wait_for(node, Link.ONLINE)
    assert bench.superlink.calls.count("activate-node") == 2


def test_a_message_in_hand_when_the_power_went_is_answered_busy_at_the_next_start(bench: Bench) -> None:
    bench.superlink.offer_frame(FRAME)
    fallen, released = threading.Event(), threading.Event()

    def fall(frame: Frame) -> Frame:
        fallen.set()
        released.wait(30)
        raise StoppedError

    bench.answerer.act = fall
    bench.start()
    assert fallen.wait(5)
    bench.answerer.act = lambda frame: frame
    old, bench.thread = bench.thread, None  # the old process is gone, with the message in its hand
    bench.start()
    assert bench.wait_for_answers(1) == [Refusal.BUSY]
    assert bench.memory.load_in_hand() is None
    bench.end()
    released.set()
    assert old is not None
    old.join(5)
    assert not old.is_alive()


def test_a_damaged_message_in_hand_does_not_stop_the_start(bench: Bench) -> None:
    bench.memory.store_node_id(NODE_ID)
    bench.memory.store_in_hand(b"\xff\xff")
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    assert bench.memory.load_in_hand() is None


def test_a_reply_outlives_a_dead_superlink_and_the_answer_is_not_computed_twice(bench: Bench) -> None:
    bench.superlink.offer_frame(FRAME)
    bench.superlink.script("push-object", *[UNREACHABLE] * 3)
    bench.superlink.script("send-node-heartbeat", *[UNREACHABLE] * 3)
    bench.start()
    assert bench.wait_for_answers(1) == [FRAME]
    assert bench.answerer.seen == [FRAME]


def _refuse(refusal: Refusal) -> Callable[[Frame], None]:
    def check(frame: Frame) -> None:
        raise RefusedError(refusal, OperatorError("played.withdrawn", "It was withdrawn.", next_step="None."))

    return check


def _break(frame: Frame) -> None:
    raise RuntimeError("played")


@pytest.mark.parametrize(
    ("check", "said"),
    [(_refuse(Refusal.NOT_PERMITTED), Refusal.NOT_PERMITTED), (_break, Refusal.INTERNAL)],
)
def test_a_reply_that_waited_for_the_link_leaves_only_if_it_still_may(
    bench: Bench, check: Callable[[Frame], None], said: Refusal
) -> None:
    bench.superlink.offer_frame(FRAME)
    bench.superlink.script("push-messages", *[UNREACHABLE] * 3)
    bench.answerer.check = check
    bench.start()
    assert bench.wait_for_answers(1) == [said]


def test_a_message_whose_content_broke_off_is_fetched_again(bench: Bench) -> None:
    bench.superlink.offer_frame(FRAME)
    bench.superlink.script("pull-object", *[UNREACHABLE] * 3)
    bench.start()
    assert bench.wait_for_answers(1) == [FRAME]


def test_a_reply_for_a_run_that_ended_is_dropped(bench: Bench) -> None:
    bench.superlink.script("push-messages", flower_error(RUN_NOT_RUNNING))
    bench.superlink.offer_frame(FRAME)
    bench.superlink.offer_frame(FRAME)
    bench.start()
    bench.wait_for_answers(1)
    assert len(bench.superlink.replies) == 1
    assert len(bench.answerer.seen) == 2


def test_a_missing_key_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)

    def gone(*_: object) -> tuple[str, str]:
        raise HardwareError("identity.gone", "The key is gone.", next_step="Put it back.")

    with monkeypatch.context() as pulled:
        pulled.setattr(bench.fleet.signed, "current", gone)
        _wait_for(node, Link.LOST)
        assert node.status.trouble is not None
        assert node.status.trouble.code == "identity.gone"
    _wait_for(node, Link.ONLINE)
    wait_until(lambda: node.status.trouble is None, limit_s=5, what="no trouble")


def test_another_tls_root_makes_it_read_its_trust_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []
    monkeypatch.setattr(bench.fleet, "reconnect", lambda: read.append(True))
    refused = failing(UnreachableError("fleet.tls_refused", "Played.", next_step="Wait."))
    bench.superlink.script("activate-node", *[refused] * 6)
    _wait_for(bench.start(), Link.ONLINE)
    assert read


def test_a_full_disk_does_not_keep_it_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MembershipStore, "_store", full)
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert bench.wait_for_answers(1) == [FRAME]


def test_a_stop_in_the_middle_of_a_back_off_is_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "RETRY_FIRST_S", 5.0)
    bench.superlink.script("activate-node", *[UNREACHABLE] * 100)
    node = bench.start()
    wait_until(lambda: node.status.trouble is not None, limit_s=5, what="trouble")
    begin = time.monotonic()
    bench.end()
    assert time.monotonic() - begin < 1


def test_a_stop_during_work_says_busy_and_leaves(bench: Bench) -> None:
    working = threading.Event()

    def work(frame: Frame) -> Frame:
        working.set()
        bench.stop.wait(10)  # the service ends the worker when it stops
        raise RefusedError(Refusal.DECLINED, OperatorError("training.ended", "Ended.", next_step="Nothing."))

    bench.answerer.act = work
    bench.superlink.offer_frame(FRAME)
    bench.start()
    assert working.wait(5)
    bench.end()
    assert bench.superlink.answers() == [Refusal.BUSY]
    assert not bench.superlink.online


def test_heartbeats_go_on_while_a_message_is_in_work(bench: Bench) -> None:
    release = threading.Event()

    def work(frame: Frame) -> Frame:
        release.wait(10)
        return frame

    bench.answerer.act = work
    bench.superlink.offer_frame(FRAME)
    node = bench.start()
    wait_until(lambda: bool(node.status.answering), limit_s=5, what="work")
    before = bench.superlink.calls.count("send-node-heartbeat")
    wait_until(
        lambda: bench.superlink.calls.count("send-node-heartbeat") >= before + 3, limit_s=5, what="three heartbeats"
    )
    assert node.is_turning()
    release.set()


def test_a_loop_that_hangs_is_noticed(bench: Bench) -> None:
    node = bench.start()
    _wait_for(node, Link.ONLINE)
    bench.end()
    bench.clock.move(node_module.STALL_S + 1)
    assert not node.is_turning()
