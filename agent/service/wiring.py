"""Builds the agent's parts and joins them; everything else takes what it needs as arguments."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.wire import Stage
from agent.data.catalog import Dataset
from agent.federation.credentials import NodeKey
from agent.federation.fleet import Fleet, SuperLinkEndpoint
from agent.federation.membership import MembershipStore
from agent.federation.node import Node, NodeSettings, NodeStatus
from agent.federation.plain import PlainHandler
from agent.federation.rounds import OpenHandler, Rounds, StageHandler
from agent.federation.secure import STAGES, SecureHandler, SecureSettings
from agent.federation.studies import OpenWorker, StudyShelf, Worker
from agent.identity.key import HardwareKey
from agent.identity.session import SessionKeeper, Subject
from agent.trust.peers import PinnedPeers, consortium_digest, node_name
from agent.trust.roster import load_roster
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
    keeper: SessionKeeper | None,
    stop: threading.Event,
    open_worker: OpenWorker,
    on_change: Callable[[NodeStatus], None],
) -> Agent:
    """Build all parts from the configuration; nothing is started.

    Args:
        config: The configuration.
        key: Signs for this node at the SuperLink.
        clock: The service's.
        keeper: Holds the session key; None without a roster, where only unprotected demonstrations run.
        stop: Ends everything once set.
        open_worker: Starts a training worker.
        on_change: Told of every change of the node's status.

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
    handlers: dict[Stage, StageHandler] = {
        Stage.OPEN: OpenHandler(),
        Stage.PLAIN: PlainHandler(allowed=plain_allowed),
        **_secure_handlers(config, clock, keeper, stop),
    }
    rounds = Rounds(shelf, handlers)
    memory = MembershipStore(
        config.node.state_directory / "fleet", config.superlink.address, fleet.signed.public_key_pem
    )
    settings = NodeSettings(config.federation.fast_poll_s, config.federation.idle_poll_s)
    node = Node(fleet, rounds, memory, clock, stop=stop, dice=dice, settings=settings, on_change=on_change)
    return Agent(node, rounds, fleet)


def session_keeper(config: AgentConfig, key: HardwareKey, clock: Clock) -> SessionKeeper | None:
    """What keeps this box's session key; None where the configuration names no roster with a coordinator.

    Raises:
        OperatorError: The roster cannot be used.
    """
    if config.roster is None:
        return None
    roster = load_roster(config.roster.file)
    if roster.coordinator is None:
        return None
    subject = Subject(consortium_digest(roster.coordinator), config.node.site, node_name(key.key_id))
    return SessionKeeper(key, subject, clock=clock, timestamp_version=lambda: 0)


def _secure_handlers(
    config: AgentConfig, clock: Clock, keeper: SessionKeeper | None, stop: threading.Event
) -> dict[Stage, StageHandler]:
    """Secure aggregation, where a roster is pinned."""
    if keeper is None or config.roster is None:
        return {}
    roster = load_roster(config.roster.file)
    settings = SecureSettings(
        site=config.node.site,
        state=config.node.state_directory,
        peers=PinnedPeers(roster, clock),
        coordinator=roster.coordinator_key(),
        session=keeper.current,
        stopping=stop.is_set,
    )
    return dict.fromkeys(STAGES, SecureHandler(settings))


def worker_opener(config: AgentConfig) -> OpenWorker:
    """How a training worker is started."""

    def open_worker(study: Study, model: Path, dataset: Dataset) -> Worker:
        from agent.training.client import TrainingWorker  # noqa: PLC0415 - with the first study: a start stays quick

        return TrainingWorker.start(study, model, dataset, device=config.training.device)

    return open_worker
