"""Builds the agent's parts and joins them; everything else takes what it needs as arguments."""

from __future__ import annotations

import importlib
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.wire import Stage
from agent.data.catalog import Dataset
from agent.federation.credentials import NodeKey
from agent.federation.fleet import Fleet, SuperLinkEndpoint
from agent.federation.membership import MembershipStore
from agent.federation.node import Node, NodeSettings, NodeStatus
from agent.federation.plain import PlainHandler
from agent.federation.rounds import OpenHandler, Rounds
from agent.federation.studies import OpenWorker, StudyShelf, Worker
from agent.trust.study import Study


@dataclass(frozen=True, slots=True)
class Agent:
    """The wired agent.

    Args:
        node: The message loop.
        rounds: What answers; closed to end all training.
        fleet: The conversation with the SuperLink.
    """

    node: Node
    rounds: Rounds
    fleet: Fleet


def wire_agent(
    config: AgentConfig,
    key: NodeKey,
    clock: Clock,
    *,
    stop: threading.Event,
    open_worker: OpenWorker,
    on_change: Callable[[NodeStatus], None],
) -> Agent:
    """Build all parts from the configuration; nothing is started.

    Raises:
        OperatorError: The root certificates cannot be used.
    """
    dice = random.Random()  # noqa: S311 - jitter, no secret
    endpoint = SuperLinkEndpoint(
        config.superlink.address,
        config.superlink.root_certificates,
        proxy=config.superlink.proxy,
        max_frame_bytes=config.federation.max_message_bytes,
    )
    fleet = Fleet(endpoint, key, clock, stop=stop, dice=dice)
    shelf = StudyShelf(
        config.studies.directory, config.data.catalog, site=config.node.site, open_worker=open_worker, clock=clock
    )
    plain_allowed = config.node.environment == "demo" and config.federation.allow_plain
    rounds = Rounds(shelf, {Stage.OPEN: OpenHandler(), Stage.PLAIN: PlainHandler(allowed=plain_allowed)})
    memory = MembershipStore(
        config.node.state_directory / "fleet", config.superlink.address, fleet.signed.public_key_pem
    )
    settings = NodeSettings(config.federation.fast_poll_s, config.federation.idle_poll_s)
    node = Node(fleet, rounds, memory, clock, stop=stop, dice=dice, settings=settings, on_change=on_change)
    return Agent(node, rounds, fleet)


def worker_opener(config: AgentConfig) -> OpenWorker:
    """How a training worker is started."""

    def open_worker(study: Study, model: Path, dataset: Dataset) -> Worker:
        # Loaded with the first study, so that a start stays quick.
        client = importlib.import_module("agent.training.client")
        return cast("Worker", client.TrainingWorker.start(study, model, dataset, device=config.training.device))

    return open_worker
