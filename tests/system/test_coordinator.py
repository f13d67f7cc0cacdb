"""The coordinator as Flower runs it, over a real SuperLink, against nodes that speak the real Fleet interface."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest

from agent.core.errors import NetworkError, OperatorError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.fleet import Delivery, Reply, _finish, build_reply
from agent.trust.model import parse_model
from provisioning.authority.superlink import SuperLinkConnection
from provisioning.coordinator.directory import Assignment, CoordinatorDirectory
from provisioning.coordinator.fab import DIRECTORY_KEY, has_ended, launch_run, stop_run, write_app
from provisioning.coordinator.progress import read_events
from tests.simulators.played_node import STEP, Behaviour, PlayedNode, PlayedTraining, refusing
from tests.simulators.played_study import PARAMETERS, prepare_directory
from tests.simulators.superlink import RunningSuperLink, free_port, wait_until

pytestmark = pytest.mark.slow

ROWS = 10
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSuperLink]:
    with RunningSuperLink.start(tmp_path_factory.mktemp("superlink")) as running:
        yield running


class Federation:
    """One study and its nodes at a SuperLink that other tests use too; so its sites have names of their own."""

    def __init__(
        self,
        superlink: RunningSuperLink,
        path: Path,
        *,
        size: int = 4,
        **changes: Any,  # noqa: ANN401 - any part of a study
    ) -> None:
        self.superlink = superlink
        number = next(NUMBERS)
        self.sites = tuple(f"site-{number}-{letter}" for letter in "abcdefg"[:size])
        self.directory: CoordinatorDirectory
        self.assignment: Assignment
        self.directory, self.assignment = prepare_directory(path / "coordinator", self.sites, **changes)
        self.nodes = {
            site: PlayedNode(superlink, site, self.assignment.study, PlayedTraining(float(k), ROWS))
            for k, site in enumerate(self.sites)
        }
        self.run_id = 0

    def node(self, letter: str) -> PlayedNode:
        return self.nodes[next(site for site in self.sites if site.endswith(letter))]

    def start(self) -> None:
        for node in self.nodes.values():
            node.join()
        self.launch()

    def launch(self) -> None:
        self.run_id = launch_run(self.superlink.connection, self.directory.path)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.directory.progress)[0] if event["event"] == name]

    def wait_for(self, name: str, *, count: int = 1, limit_s: float = 60.0) -> list[dict[str, Any]]:
        def there() -> bool:
            return len(self.events(name)) >= count

        try:
            wait_until(there, limit_s=limit_s, what=f"{count} x {name}")
        except RuntimeError as error:
            raise AssertionError(
                f"{error}\n{self.directory.progress.read_text()}\n{self.superlink.log[-4000:]}"
            ) from error
        return self.events(name)

    def wait_for_end(self, *, limit_s: float = 30.0) -> str:
        wait_until(lambda: bool(self.ending), limit_s=limit_s, what="the run ends at the SuperLink")
        return self.ending or ""

    @property
    def ending(self) -> str | None:
        return has_ended(self.superlink.connection, self.run_id)

    @property
    def trained(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return parse_model(self.directory.trained_model.read_bytes()).parameters

    def expected(self, *, rounds: int) -> float:
        value = 1.0
        for _ in range(rounds):
            value += STEP * (float(np.mean(range(len(self.sites)))) - value)
        return value

    def close(self) -> None:
        if self.run_id and not self.ending:
            stop_run(self.superlink.connection, self.run_id)
        for node in self.nodes.values():
            node.vanish()


Maker = Callable[..., Federation]


@pytest.fixture
def federations(superlink: RunningSuperLink, tmp_path: Path) -> Iterator[Maker]:
    made: list[Federation] = []

    def make(**changes: Any) -> Federation:  # noqa: ANN401 - any part of a study
        made.append(Federation(superlink, tmp_path / f"federation-{len(made)}", **changes))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def in_round(number: int, misbehave: Behaviour, *, stage: Stage = Stage.PLAIN) -> Behaviour:
    """Misbehaves in one round, once; else as usual."""
    left = [True]

    def behaviour(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        if frame.stage is stage and frame.round == number and left:
            left.clear()
            return misbehave(node, delivery, frame)
        return [node.usual(delivery, frame)]

    return behaviour


def vanishing(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
    node.vanish()
    return []


def silent(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
    return []


def answering(**changes: Any) -> Behaviour:  # noqa: ANN401 - any field of a frame
    """Answers with another frame than the right one."""

    def behaviour(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        return [build_reply(delivery, replace(node.training.answer(node.study, frame), **changes))]

    return behaviour


def test_a_study_runs_over_the_superlink_and_leaves_a_trained_model(federations: Maker) -> None:
    federation = federations(rounds=5)
    federation.start()

    federation.wait_for("finished")

    np.testing.assert_allclose(federation.trained, np.full(PARAMETERS, federation.expected(rounds=5)), rtol=1e-6)
    result = json.loads(federation.directory.result.read_text())
    assert result["final"]["cohort"] == list(federation.sites)
    assert [record["round"] for record in result["history"]] == [1, 2, 3, 4, 5]
    assert federation.wait_for_end() == "completed"
    rounds = [("plain", number) for number in range(1, 7)]
    assert all(node.seen == [("open", 0), *rounds, ("close", 0)] for node in federation.nodes.values())


def test_flowers_own_command_starts_the_same_coordinator(federations: Maker, tmp_path: Path) -> None:
    federation = federations(rounds=1)
    for node in federation.nodes.values():
        node.join()

    app = write_app(tmp_path / "app")
    federation.run_id = federation.superlink.connection.start_run(app, {DIRECTORY_KEY: str(federation.directory.path)})

    federation.wait_for("finished")


def test_waiting_a_node_that_vanishes_in_mid_round_is_in_the_sum_when_it_is_back(federations: Maker) -> None:
    federation = federations(rounds=3)
    lost = federation.node("b")
    lost.behaviour = in_round(2, vanishing)
    federation.start()

    (event,) = federation.wait_for("lost")
    assert (event["site"], event["round"]) == (lost.site, 2)
    lost.join()
    federation.wait_for("finished")

    assert [event["site"] for event in federation.events("returned")] == [lost.site]
    assert all(event["cohort"] == list(federation.sites) for event in federation.events("round"))
    np.testing.assert_allclose(federation.trained, np.full(PARAMETERS, federation.expected(rounds=3)), rtol=1e-6)


def test_continuing_the_round_goes_on_without_a_node_that_vanished(federations: Maker) -> None:
    federation = federations(rounds=3, secagg={"dropout": "continue"})
    lost = federation.node("b")
    lost.behaviour = in_round(2, vanishing)
    federation.start()

    federation.wait_for("finished")

    cohorts = [event["cohort"] for event in federation.events("round")]
    others = [site for site in federation.sites if site != lost.site]
    assert cohorts == [list(federation.sites), others, others, others]


def test_a_coordinator_killed_in_mid_run_is_resumed_at_its_round(federations: Maker) -> None:
    federation = federations(rounds=6)
    gate = threading.Event()

    def hold(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        gate.wait(60)
        return [node.usual(delivery, frame)]

    federation.node("c").behaviour = in_round(4, hold)
    federation.start()
    federation.wait_for("round", count=3)
    wait_until(lambda: ("plain", 4) in federation.node("c").seen, limit_s=30, what="round 4 is asked")

    for process in serverapps(federation.superlink):
        process.kill()
    gate.set()
    federation.launch()
    federation.wait_for("finished")

    assert [event["round"] for event in federation.events("started")] == [1, 4]
    assert [event["round"] for event in federation.events("round")] == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(federation.trained, np.full(PARAMETERS, federation.expected(rounds=6)), rtol=1e-6)


def test_a_run_that_is_stopped_can_be_resumed(federations: Maker) -> None:
    federation = federations(rounds=40)
    federation.start()
    federation.wait_for("round", count=3)

    stop_run(federation.superlink.connection, federation.run_id)
    assert federation.wait_for_end().startswith("stopped")
    wait_until(lambda: not serverapps(federation.superlink), limit_s=60, what="the ServerApp ends")
    done = len(federation.events("round"))
    federation.launch()
    federation.wait_for("round", count=done + 2)

    assert federation.events("started")[-1]["round"] in {done, done + 1}


def test_a_node_that_stays_silent_pauses_the_study_at_the_deadline(federations: Maker) -> None:
    federation = federations(rounds=3, round_deadline_s=4.0)
    federation.node("d").behaviour = in_round(2, silent)
    federation.start()

    (event,) = federation.wait_for("paused")

    assert event["code"] == "coordinator.deadline_missed"
    assert federation.node("d").site in event["sentence"]
    ending = federation.wait_for_end()
    assert ending.startswith("failed")
    assert federation.node("d").site in ending
    federation.launch()
    federation.wait_for("finished")


def test_nodes_that_answer_wrongly_are_left_out_of_that_round_only(federations: Maker) -> None:
    federation = federations(rounds=6, size=7, secagg={"dropout": "continue"})
    not_finite = np.full(PARAMETERS, np.inf, dtype="<f4").tobytes()
    federation.node("a").behaviour = in_round(1, answering(payload=not_finite))
    federation.node("b").behaviour = in_round(2, answering(round=1))
    federation.node("c").behaviour = in_round(3, answering(payload=b"short"))
    federation.node("d").behaviour = in_round(4, answering(header={"weight": 10**9, "words": b""}))
    federation.node("e").behaviour = in_round(5, refusing(Refusal.DECLINED))
    federation.start()

    federation.wait_for("finished")

    missing = [set(federation.sites) - set(event["cohort"]) for event in federation.events("round")]
    assert missing == [{federation.node(letter).site} for letter in "abcde"] + [set(), set()]
    assert [event["code"] for event in federation.events("faulty")] == [
        "coordinator.bad_answer",
        "coordinator.stray_answer",
        "coordinator.bad_answer",
        "coordinator.bad_answer",
    ]
    assert [event["refusal"] for event in federation.events("refused")] == ["declined"]


def test_a_message_that_is_no_frame_is_a_fault_of_its_sender_alone(federations: Maker) -> None:
    federation = federations(rounds=2, secagg={"dropout": "continue"})

    def garbage(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        proper = node.usual(delivery, frame)
        right, wrong = b"SEH1", b"XXXX"
        objects = {key: content.replace(right, wrong) for key, content in proper.objects.items()}
        return [rebuilt(delivery, objects)]

    federation.node("a").behaviour = in_round(1, garbage)
    federation.start()

    federation.wait_for("finished")

    assert federation.events("round")[0]["cohort"] == list(federation.sites[1:])
    assert [event["code"] for event in federation.events("faulty")] == ["wire.malformed"]


def test_a_node_that_answers_twice_is_counted_once(federations: Maker) -> None:
    federation = federations(rounds=2)

    def twice(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        honest = node.training.answer(node.study, frame)
        other = replace(honest, payload=np.full(PARAMETERS, 1000.0, dtype="<f4").tobytes())
        return [build_reply(delivery, honest), build_reply(delivery, other)]

    federation.node("a").behaviour = in_round(1, twice)
    federation.start()

    federation.wait_for("finished")

    np.testing.assert_allclose(federation.trained, np.full(PARAMETERS, federation.expected(rounds=2)), rtol=1e-6)
    assert not federation.events("faulty")


def test_a_node_that_breaks_off_in_mid_upload_holds_up_nobody(federations: Maker) -> None:
    federation = federations(rounds=2, round_deadline_s=6.0, secagg={"dropout": "continue"})

    def half(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        # Content of its own: the SuperLink would find equal content that others have sent.
        update = np.random.default_rng().normal(size=PARAMETERS).astype("<f4").tobytes()
        announce_only(node, build_reply(delivery, replace(node.training.answer(node.study, frame), payload=update)))
        return []

    federation.node("a").behaviour = in_round(1, half)
    federation.start()

    first, *_ = federation.wait_for("round")

    assert first["cohort"] == list(federation.sites[1:])
    assert first["seconds"] < 8.0
    federation.wait_for("finished")
    assert federation.events("round")[1]["cohort"] == list(federation.sites)


def test_a_refused_opening_is_asked_again_until_it_is_granted(federations: Maker) -> None:
    federation = federations(rounds=1)
    federation.node("a").behaviour = in_round(0, refusing(Refusal.NOT_PERMITTED, stage=Stage.OPEN), stage=Stage.OPEN)
    federation.start()

    federation.wait_for("finished")

    assert [(event["site"], event["refusal"]) for event in federation.events("refused")] == [
        (federation.node("a").site, "not-permitted")
    ]


# A TLS connection that the killed server cut in mid-handshake is closed when it is collected, with a warning.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_a_superlink_killed_in_mid_run_costs_the_run_but_not_the_study(tmp_path: Path) -> None:
    with RunningSuperLink.start(tmp_path / "superlink", in_memory=False) as superlink:
        federation = Federation(superlink, tmp_path, rounds=5)
        federation.start()
        federation.wait_for("round", count=2)
        superlink.kill()
        superlink.restart()
        done = len(federation.events("round"))
        federation.launch()
        federation.wait_for("finished", limit_s=120)

        assert federation.events("started")[-1]["round"] >= done
        np.testing.assert_allclose(federation.trained, np.full(PARAMETERS, federation.expected(rounds=5)), rtol=1e-6)
        for node in federation.nodes.values():
            node.vanish()


def test_what_a_superlink_refuses_or_does_not_answer_is_said(superlink: RunningSuperLink, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="refuses"):
        stop_run(superlink.connection, 12345)
    nobody = SuperLinkConnection(tmp_path, f"127.0.0.1:{free_port()}", superlink.root_certificate)
    with pytest.raises(NetworkError, match="cannot be reached"):
        launch_run(nobody, tmp_path)


def serverapps(superlink: RunningSuperLink) -> list[psutil.Process]:
    """The ServerApp processes that this SuperLink started."""
    assert superlink.process is not None
    found = []
    for process in psutil.Process(superlink.process.pid).children(recursive=True):
        try:
            if any("flwr-serverapp" in word for word in process.cmdline()) and process.status() != "zombie":
                found.append(process)
        except psutil.NoSuchProcess:
            time.sleep(0)
    return found


def rebuilt(delivery: Delivery, objects: dict[str, bytes]) -> Reply:
    """A reply whose parts were tampered with before they were named by their hashes."""
    part = next(content for content in objects.values() if content.startswith(b"ConfigRecord"))
    record = ConfigRecord.inflate(part, {})
    return _finish(delivery, Message(RecordDict({"frame-0": record}), reply_to=delivery.message))


def announce_only(node: PlayedNode, reply: Reply) -> None:
    """Announce a reply to the SuperLink, and never send what is in it."""
    assert node._fleet is not None
    request = PushMessagesRequest(
        node=node._fleet._node,
        messages_list=[message_to_proto(reply.message)],
        message_object_trees=[reply.tree],
        clientapp_runtime_list=[0.0],
    )
    node._fleet._client.PushMessages(request)
