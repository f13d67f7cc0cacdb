"""What the node lives through at a real SuperLink: kill -9 on either side, in the middle, and clocks that are wrong."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.wire import Frame, Refusal, Stage
from agent.federation.fleet import Fleet, SuperLinkEndpoint
from agent.federation.membership import MembershipStore
from agent.federation.node import Link, Node
from tests.simulators.grid import FlowerError, TestGrid
from tests.simulators.hospital import STUDY_ID, RunningHospital
from tests.simulators.superlink import RunningSuperLink, wait_until

pytestmark = pytest.mark.slow

TRAIN = Frame(STUDY_ID, Stage.PLAIN, 1, header={"kind": "train"}, payload=np.ones(10, dtype="<f4").tobytes())


def _wait_for_work(box: RunningHospital) -> None:
    wait_until(lambda: box.status is not None and bool(box.status.answering), limit_s=30, what="work")


def test_a_node_killed_in_mid_round_is_back_at_once_and_says_so(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink") as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
        TestGrid.start(superlink) as grid,
    ):
        box.register(superlink)
        box.start(training_s=600)
        box.wait_for_link()
        message = grid.push(box.node_id, TRAIN)
        _wait_for_work(box)
        box.kill()
        box.start()
        # The lost session stands for another 20 s; it is taken up again, not waited for.
        assert box.wait_for_link() < 15
        assert grid.pull(message, limit_s=10) == Refusal.BUSY
        assert isinstance(grid.ask(box.node_id, TRAIN), Frame)


def test_a_node_that_lost_its_memory_is_back_when_the_old_session_lapses(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink") as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
    ):
        box.register(superlink)
        box.start()
        box.wait_for_link()
        box.kill()
        (tmp_path / "box" / "state" / "fleet" / "membership.json").unlink()
        box.start()
        # Until the new process speaks, what the killed one said of its link still stands.
        wait_until(lambda: bool(box.events("link_trouble")), limit_s=60, what="the refusal is told")
        assert box.events("link_trouble")[-1]["error"] == "fleet.activation_refused"
        assert box.wait_for_link(limit_s=60) < 40


def test_a_superlink_killed_in_mid_round_gets_the_finished_answer_when_it_is_back(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink", in_memory=False) as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
    ):
        box.register(superlink)
        box.start(training_s=4)
        box.wait_for_link()
        grid = TestGrid.start(superlink)
        grid.push(box.node_id, TRAIN)
        _wait_for_work(box)
        superlink.kill()
        grid.close()
        box.wait_for_link("lost")
        superlink.restart()
        assert box.wait_for_link() < 15
        # The work was done once, and its answer delivered or dropped because its run died with the SuperLink.
        wait_until(lambda: box.status is not None and not box.status.answering, limit_s=60, what="the answer's end")
        assert len(box.events("message_answered")) == 1
        with TestGrid.start(superlink) as again:
            assert isinstance(again.ask(box.node_id, TRAIN), Frame)


def test_a_superlink_that_lost_its_memory_is_joined_again_once_the_key_is_registered(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink") as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
    ):
        box.register(superlink)
        box.start()
        box.wait_for_link()
        superlink.kill()
        box.wait_for_link("lost")
        superlink.restart()
        box.wait_for_link("joining")
        names = superlink.register_again()
        assert box.wait_for_link() < 15
        assert box.status is not None
        assert box.status.node_id == names[box.node_id]
        with TestGrid.start(superlink) as grid:
            assert isinstance(grid.ask(names[box.node_id], TRAIN), Frame)


def test_a_node_started_before_its_superlink_waits_for_it(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink", in_memory=False) as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
    ):
        box.register(superlink)
        superlink.stop()
        box.start()
        wait_until(
            lambda: box.status is not None and box.status.trouble == "fleet.unreachable", limit_s=60, what="no answer"
        )
        superlink.restart()
        assert box.wait_for_link() < 15


def test_a_node_that_was_killed_for_good_is_reported_within_half_a_minute(tmp_path: Path) -> None:
    with (
        RunningSuperLink.start(tmp_path / "superlink") as superlink,
        RunningHospital.prepare(tmp_path / "box", superlink) as box,
        TestGrid.start(superlink) as grid,
    ):
        box.register(superlink)
        box.start(training_s=600)
        box.wait_for_link()
        message = grid.push(box.node_id, TRAIN)
        _wait_for_work(box)
        box.kill()
        answer = grid.pull(message, limit_s=35)
        assert isinstance(answer, FlowerError)
        assert answer.code == 5


class _WrongClock:
    """A clock that is wrong by `offset`."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def monotonic_s(self) -> float:
        return time.monotonic()


class _Echo:
    def answer(self, frame: Frame) -> Frame:
        return frame

    def check_still_stands(self, frame: Frame) -> None:
        """It does."""


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_set_wrong_locks_the_node_out_and_heals_when_it_is_right(tmp_path: Path, hours: int) -> None:
    key, clock, stop, dice = ec.generate_private_key(ec.SECP256R1()), _WrongClock(), threading.Event(), random.Random(1)
    with RunningSuperLink.start(tmp_path / "superlink") as superlink:
        superlink.register(key.public_key())
        endpoint = SuperLinkEndpoint(superlink.address, superlink.root_certificate)
        fleet = Fleet(endpoint, key, clock, stop=stop, dice=dice)
        memory = MembershipStore(tmp_path / "state", superlink.address, fleet.signed.public_key_pem)
        node = Node(fleet, _Echo(), memory, clock, stop=stop, dice=dice)
        thread = threading.Thread(target=node.run)
        thread.start()
        try:
            wait_until(lambda: node.status.link is Link.ONLINE, limit_s=60, what="online")
            clock.offset = timedelta(hours=hours)
            wait_until(lambda: node.status.link is Link.JOINING, limit_s=60, what="locked out")
            trouble = node.status.trouble
            assert trouble is not None
            assert trouble.code == "fleet.clock_wrong"
            assert abs(trouble.details["offset_s"] - hours * 3600) < 30  # type: ignore[operator]
            clock.offset = timedelta()
            wait_until(lambda: node.status.link is Link.ONLINE, limit_s=60, what="online again")
        finally:
            stop.set()
            thread.join(10)
            fleet.close()
    assert not thread.is_alive()
