"""A node in a thread of the test: speaks the Fleet interface through the agent's `Fleet`, and misbehaves at will.

Its training is played: each round moves every parameter a fixed part of the way to the site's own optimum.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import RegisterNodeRequest

from agent.core.clock import SystemClock
from agent.core.errors import SecureHealthError
from agent.core.wire import Frame, Refusal, Stage
from agent.federation.faults import ActivationRefusedError, LinkError, RunEndedError, StoppedError
from agent.federation.fleet import Delivery, Fleet, Reply, SuperLinkEndpoint, build_refusal, build_reply
from agent.trust.metrics import moments_layout, training_layout
from agent.trust.study import Study
from provisioning.coordinator.control import open_control
from tests.simulators.superlink import RunningSuperLink

POLL_S = 0.03
BEAT_S = 5.0
STEP = 0.25

Behaviour = Callable[["PlayedNode", Delivery, Frame], list[Reply]]


def register_quickly(superlink: RunningSuperLink, public_key: ec.EllipticCurvePublicKey, *, name: str) -> int:
    """Register a node's key without starting Flower's command line for it."""
    pem = public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with open_control(superlink.connection) as control:
        return int(control.RegisterNode(RegisterNodeRequest(public_key=pem, name=name)).node_id)


@dataclass(frozen=True, slots=True)
class PlayedTraining:
    """What a site's training gives.

    Args:
        optimum: Where the site's own data pull every parameter.
        rows: Its training rows.
    """

    optimum: float
    rows: int

    def answer(self, study: Study, frame: Frame) -> Frame:
        """Answer a frame of stage OPEN, PLAIN or CLOSE as a well-behaved node does."""
        if frame.stage is not Stage.PLAIN:
            return Frame(frame.study, frame.stage, frame.round, frame.attempt)
        if frame.header["kind"] == "moments":
            values = {"trained": float(self.rows)} | {
                f"{kind}:{spec.name}": self.rows * 0.5 for spec in study.data.features for kind in ("sum", "squares")
            }
            return self._plain(frame, moments_layout(study).encode(values).astype("<u8").tobytes(), b"")
        parameters = np.frombuffer(frame.payload, dtype="<f4")
        words = training_layout(study).encode(self._metrics(parameters)).astype("<u8").tobytes()
        training = frame.header["kind"] == "train"
        return self._plain(frame, words, self.update(parameters).tobytes() if training else b"")

    def update(self, parameters: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One round's step, shape as `parameters`."""
        return ((np.float32(self.optimum) - parameters) * np.float32(STEP)).astype("<f4")

    def _metrics(self, parameters: npt.NDArray[np.float32]) -> dict[str, float]:
        loss = float(np.mean((parameters - self.optimum) ** 2))
        return {"trained": self.rows, "evaluated": 10.0, "correct": 8.0, "loss": min(loss, 30.0) * 10}

    def _plain(self, frame: Frame, words: bytes, payload: bytes) -> Frame:
        header = {"weight": self.rows, "words": words}
        return Frame(frame.study, frame.stage, frame.round, frame.attempt, header, payload)


@dataclass(slots=True)
class PlayedNode:
    """One site's node.

    Args:
        superlink: Where it joins.
        site: Its name there.
        study: What it is asked about.
        training: How it answers.
        behaviour: Replaces the usual answer; returns what to send, in order (nothing: it stays silent).
    """

    superlink: RunningSuperLink
    site: str
    study: Study
    training: PlayedTraining
    behaviour: Behaviour | None = None
    seen: list[tuple[str, int]] = field(default_factory=list)
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    _gone: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _fleet: Fleet | None = None

    def join(self) -> Self:
        """Register, where that is still to be done, and start answering."""
        if self._fleet is None:
            register_quickly(self.superlink, self._key.public_key(), name=self.site)
        endpoint = SuperLinkEndpoint(self.superlink.address, self.superlink.root_certificate)
        self._gone = threading.Event()
        self._fleet = Fleet(endpoint, self._key, SystemClock(), stop=self._gone, dice=random.Random(1))
        self._thread = threading.Thread(target=self._serve, args=(self._fleet, self._gone), daemon=True)
        self._thread.start()
        return self

    def vanish(self) -> None:
        """Be gone without a word, as after a power cut."""
        self._gone.set()

    def leave(self) -> None:
        """Take leave as a node does that is stopped."""
        self.vanish()
        assert self._thread is not None
        assert self._fleet is not None
        self._thread.join(20)
        self._fleet.deactivate()

    def usual(self, delivery: Delivery, frame: Frame) -> Reply:
        """The answer of a well-behaved node."""
        return build_reply(delivery, self.training.answer(self.study, frame))

    def send(self, reply: Reply) -> None:
        """Send a reply; one that the SuperLink does not take is dropped."""
        assert self._fleet is not None
        try:
            self._fleet.send(reply)
        except LinkError:
            return

    def _serve(self, fleet: Fleet, gone: threading.Event) -> None:
        try:
            self._serve_until(fleet, gone)
        finally:
            fleet.close()

    def _serve_until(self, fleet: Fleet, gone: threading.Event) -> None:
        clock = SystemClock()
        self._activate(fleet, gone)
        beat_s = clock.monotonic_s()
        while not gone.is_set():
            try:
                if clock.monotonic_s() - beat_s > BEAT_S:
                    fleet.heartbeat()
                    beat_s = clock.monotonic_s()
                delivery = fleet.receive()
                if delivery is not None:
                    self._answer(fleet, delivery)
                    continue
            except RunEndedError:
                continue
            except (SecureHealthError, StoppedError):
                pass  # the SuperLink is down, a message's run was killed, or this node is being ended
            gone.wait(POLL_S)

    def _activate(self, fleet: Fleet, gone: threading.Event) -> None:
        while not gone.is_set():
            try:
                fleet.activate()
            except (ActivationRefusedError, StoppedError):
                gone.wait(0.3)
            else:
                return

    def _answer(self, fleet: Fleet, delivery: Delivery) -> None:
        frame = fleet.fetch(delivery)
        self.seen.append((frame.stage.value, frame.round))
        replies = [self.usual(delivery, frame)] if self.behaviour is None else self.behaviour(self, delivery, frame)
        if self._gone.is_set():
            return
        for reply in replies:
            self.send(reply)
        fleet.confirm(delivery)

    def __enter__(self) -> Self:
        return self.join()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vanish()


def refusing(refusal: Refusal, *, stage: Stage = Stage.PLAIN) -> Behaviour:
    """Refuses one stage."""

    def behaviour(node: PlayedNode, delivery: Delivery, frame: Frame) -> list[Reply]:
        return [build_refusal(delivery, refusal) if frame.stage is stage else node.usual(delivery, frame)]

    return behaviour
