"""Builds the agent's parts and joins them; everything else takes what it needs as arguments."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.wire import Stage
from agent.data.catalog import Dataset
from agent.federation.board import RoundBoard
from agent.federation.credentials import NodeKey
from agent.federation.fleet import Fleet, SuperLinkEndpoint
from agent.federation.membership import MembershipStore
from agent.federation.node import Node, NodeSettings, NodeStatus
from agent.federation.plain import PlainHandler
from agent.federation.rounds import LateHandler, OpenHandler, Rounds, StageHandler
from agent.federation.studies import OpenWorker, StudyShelf, Worker
from agent.identity.key import HardwareKey
from agent.identity.link import link_key, opens_by_itself
from agent.identity.session import RenewalPolicy, SessionKeeper, Subject
from agent.service.affiliation import Affiliation
from agent.service.governing import Governance
from agent.service.safekeeping import load_vault, session_keys
from agent.trust.study import Study

_SECURE_STAGES = (Stage.ADVERTISE, Stage.MASKED_INPUT, Stage.AGREE, Stage.REVEAL)


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
    affiliation: Affiliation,
    key: NodeKey,
    clock: Clock,
    *,
    keeper: SessionKeeper | None,
    journal_key: bytes,
    stop: threading.Event,
    open_worker: OpenWorker,
    on_change: Callable[[NodeStatus], None],
    governance: Governance | None = None,
) -> Agent:
    """Build all parts from the configuration; nothing is started.

    Args:
        config: The configuration.
        affiliation: Where the box belongs.
        key: Signs for this node at the SuperLink.
        clock: The service's.
        keeper: Holds the session key; None without a roster, where only unprotected demonstrations run.
        journal_key: Protects the record of rounds, from the box's vault.
        stop: Ends everything once set.
        open_worker: Starts a training worker.
        on_change: Told of every change of the node's status.
        governance: Decides what runs; None in demonstrations without it.

    Raises:
        OperatorError: The root certificates cannot be used.
    """
    dice = random.Random()  # noqa: S311 - jitter, no secret
    endpoint = SuperLinkEndpoint(
        affiliation.superlink,
        affiliation.root_certificates,
        proxy=config.network.proxy,
        max_frame_bytes=config.federation.max_message_bytes,
    )
    fleet = Fleet(endpoint, key, clock, stop=stop, dice=dice)
    shelf = StudyShelf(
        affiliation.studies,
        config.data.catalog,
        site=affiliation.site,
        open_worker=open_worker,
        clock=clock,
        gate=None if governance is None else governance.gate,
    )
    plain_allowed = affiliation.allows_plain and config.federation.allow_plain and governance is None
    board = RoundBoard(clock) if governance is None else governance.board
    handlers: dict[Stage, StageHandler] = {
        Stage.OPEN: OpenHandler(),
        Stage.PLAIN: PlainHandler(allowed=plain_allowed),
        **_secure_handlers(config, affiliation, keeper, stop, journal_key, governance, shelf, board),
    }
    rounds = Rounds(shelf, handlers, board)
    memory = MembershipStore(config.node.state_directory / "fleet", affiliation.superlink, fleet.signed.public_key_pem)
    settings = NodeSettings(config.federation.fast_poll_s, config.federation.idle_poll_s)
    node = Node(fleet, rounds, memory, clock, stop=stop, dice=dice, settings=settings, on_change=on_change)
    return Agent(node, rounds, fleet)


def link_of(config: AgentConfig, key: HardwareKey) -> ec.EllipticCurvePublicKey:
    """The key by which the SuperLink knows this box, for the operator to register; the box's vault is made for it.

    Args:
        config: The box's.
        key: The box's.

    Raises:
        SecureHealthError: The vault cannot be opened.
    """
    return key.public_key() if opens_by_itself(key) else link_key(key, load_vault(config)).public_key()


def session_keeper(
    config: AgentConfig,
    affiliation: Affiliation,
    key: HardwareKey,
    clock: Clock,
    *,
    renewal: RenewalPolicy | None = None,
) -> SessionKeeper | None:
    """What keeps this box's session key; None where it has no company to show it to.

    Args:
        config: The configuration.
        affiliation: Where the box belongs.
        key: The box's.
        clock: The service's.
        renewal: How long a session counts; by the key's kind when None.

    Raises:
        OperatorError: The TPM that shall hold session keys cannot be used.
    """
    company = affiliation.company
    if company is None:
        return None
    return SessionKeeper(
        key,
        Subject(company.digest, affiliation.site, company.node),
        clock=clock,
        timestamp_version=company.timestamp_version,
        policy=renewal,
        new_session_key=session_keys(config),
    )


def _secure_handlers(
    config: AgentConfig,
    affiliation: Affiliation,
    keeper: SessionKeeper | None,
    stop: threading.Event,
    journal_key: bytes,
    governance: Governance | None,
    shelf: StudyShelf,
    board: RoundBoard,
) -> dict[Stage, StageHandler]:
    """Secure aggregation, where there is company for it."""
    company = affiliation.company
    if keeper is None or company is None:
        return {}

    def make_handler() -> StageHandler:
        # With the first round: a box that waits for one holds no protocol.
        from agent.federation.secure import Governed, SecureHandler, SecureSettings  # noqa: PLC0415

        return SecureHandler(
            SecureSettings(
                site=affiliation.site,
                state=config.node.state_directory,
                peers=company.peers,
                coordinator=company.coordinator,
                session=keeper.current,
                stopping=stop.is_set,
                journal_key=journal_key,
                governed=None if governance is None else Governed(governance.gate, shelf.check_still_permitted),
                on_sent=board.note_sent,
            )
        )

    return dict.fromkeys(_SECURE_STAGES, LateHandler(make_handler))


def worker_opener(config: AgentConfig) -> OpenWorker:
    """How a training worker is started."""

    def open_worker(study: Study, model: Path, dataset: Dataset, approved: str) -> Worker:
        from agent.training.client import TrainingWorker  # noqa: PLC0415 - with the first study: a start stays quick

        return TrainingWorker.start(
            study, model, dataset, approved, device=config.training.device, address=config.training.worker
        )

    return open_worker
