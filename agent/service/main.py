"""The long-running process: starts the parts, watches over them, and stops them within five seconds."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import structlog

from agent.core.clock import Clock, SystemClock
from agent.core.config import AgentConfig, load_config
from agent.core.errors import HardwareError, OperatorError, SecureHealthError, SoftwareError
from agent.core.logging import configure_logging
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord, other_key
from agent.federation.journal import JOURNAL_PURPOSE
from agent.federation.studies import OpenWorker
from agent.identity.key import HardwareKey, init_key, open_key
from agent.identity.link import link_key
from agent.identity.session import RenewalPolicy, SessionKeeper, SessionState
from agent.identity.vault import Vault
from agent.service.affiliation import Affiliation, check_single, enrolled_affiliation, pinned_affiliation
from agent.service.control import ControlDesk, ControlSocket
from agent.service.examining import ExaminationDesk, examiner
from agent.service.governing import Governance, open_governance
from agent.service.health import HealthReport, run_self_test
from agent.service.heartbeat import HEARTBEAT_S, Pulse, heart_of
from agent.service.metrics import MetricsFile, metrics_path
from agent.service.requests import Handler
from agent.service.safekeeping import load_vault
from agent.service.state import AgentStatus, StatusBoard, load_status, locked_state, store_status
from agent.service.sticks import ENROL_HERE, judge_stick
from agent.service.trust import REFRESH_S
from agent.service.watchdog import ServiceManager
from agent.service.wiring import Agent, session_keeper, wire_agent, worker_opener
from agent.statements.roots import public_key_bytes
from agent.trust.fingerprint import box_words
from agent.trust.peers import node_name

LEAVE_LIMIT_S = 3.5
"""How long the loop may take to say goodbye; whatever it still waits for then is left behind."""
KEY_RETRY_S = 1.0
TRUST_RETRY_S = 5.0
ENROLMENT_TICK_S = 0.25
TICK_S = 1.0
"""A key that was pulled out vouches again within two seconds of its return."""

log = structlog.get_logger()


class StopSignals:
    """SIGTERM and SIGINT as something to wait for; the handlers themselves do nothing."""

    def __init__(self) -> None:
        self._reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        self.stop = threading.Event()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch both signals inside the block; only from the main thread."""
        old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        # Setting an Event in a handler could deadlock with a wait on it: the interpreter writes a byte instead.
        old_fd = signal.set_wakeup_fd(self._writer.fileno())
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Wait for a signal; returns whether one has come."""
        if not self.stop.is_set() and select.select([self._reader], [], [], seconds)[0]:
            self.stop.set()
        return self.stop.is_set()


@dataclass(frozen=True, slots=True)
class BoxSecrets:
    """What the agent must have before it can start.

    Args:
        key: The box's own.
        vault: Its secrets at rest.
    """

    key: HardwareKey
    vault: Vault


def run_agent(
    config_path: Path,
    *,
    opener: Callable[[AgentConfig], OpenWorker] = worker_opener,
    renewal: RenewalPolicy | None = None,
    refresh_s: float = REFRESH_S,
    heartbeat_s: float = HEARTBEAT_S,
) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        config_path: The configuration file.
        opener: Makes what starts training workers.
        renewal: How long the box's key vouches at a time; by its kind when None.
        refresh_s: How often an enrolled box asks its consortium's repository.
        heartbeat_s: How often it tells its registrar how it does.

    Returns:
        0 after a clean stop.

    Raises:
        SecureHealthError: It cannot start, or had to give up; the service manager starts it again.
    """
    configure_logging()
    config = load_config(config_path)
    signals, manager = StopSignals(), ServiceManager(os.environ)
    clock, state = SystemClock(), config.node.state_directory
    pulse = Pulse(heartbeat_s, clock.monotonic_s())
    path = metrics_path(os.environ)
    metrics = MetricsFile(path, partial(load_status, state))
    health = HealthReport(None if path is None else path.parent, os.getpid(), run_self_test)
    with signals.installed(), locked_state(state), metrics:
        store_status(state, AgentStatus("starting"))  # the last process may have been killed
        life = _Life(config, clock, signals, manager, opener(config), renewal, refresh_s, pulse, health)
        while not signals.stop.is_set():
            life.live()
        manager.stopping()
        health.withdraw()
        store_status(state, AgentStatus("stopped"))
    return 0


@dataclass(frozen=True, slots=True)
class _Life:
    """One process: it waits for its key, then for a consortium, then serves; and again, where one of them changed.

    Args:
        config: The box's.
        clock: The service's.
        signals: Tell it to stop.
        manager: The service manager.
        open_worker: Starts a training worker.
        renewal: How long the box's key vouches at a time; by its kind when None.
        refresh_s: How often the repository is asked.
        pulse: How often the registrar is told how the box does.
        health: What whoever judges this release is told.
    """

    config: AgentConfig
    clock: Clock
    signals: StopSignals
    manager: ServiceManager
    open_worker: OpenWorker
    renewal: RenewalPolicy | None
    refresh_s: float
    pulse: Pulse
    health: HealthReport

    def live(self) -> None:
        """Do the next of these; returns when it is over, or when told to stop."""
        record = self._folder.load_record()
        check_single(self.config, record)
        secrets = self._wait_for_secrets(make_key=record is None and self.config.pinned is None)
        if secrets is None:
            return
        if self.config.pinned is not None:
            self._serve(secrets, pinned_affiliation(self.config, self.config.pinned, secrets.key, self.clock))
        elif record is None:
            self._wait_for_enrolment(secrets)
        elif record.key_id != secrets.key.key_id:
            self._wait(other_key(record), secrets.key)
        else:
            self._serve_enrolled(secrets, record)

    @property
    def _folder(self) -> EnrolmentFolder:
        return EnrolmentFolder.of(self.config.node.state_directory)

    def _publish(self, status: AgentStatus) -> None:
        store_status(self.config.node.state_directory, status)
        self.manager.status(status.line)
        self.health.note_link(status.link)

    def _ready(self, key: HardwareKey) -> None:
        self.manager.ready()
        self.health.ready(self.config, key)

    def _wait_for_secrets(self, *, make_key: bool) -> BoxSecrets | None:
        """Open vault and key, waiting for hardware that is not there yet; None when told to stop first.

        Args:
            make_key: Whether a key may be made where there is none: no hospital knows this box yet.

        Raises:
            HardwareError: The disk is another box's: no waiting helps.
        """
        reported = ""
        while not self.signals.stop.is_set():
            try:
                # The vault first: a disk in another box is told from a box whose key was never made.
                vault = load_vault(self.config)
                return BoxSecrets((init_key if make_key else open_key)(self.config.key.uri), vault)
            except (HardwareError, OperatorError) as error:
                waits = isinstance(error, HardwareError) or (make_key and error.code == "identity.person_needed")
                if not waits or error.code == "identity.sealed_elsewhere":
                    raise
                if reported != error.code:
                    log.warning("key_missing", error=error)
                reported = error.code
                self.manager.status(f"waiting for the key: {error.sentence}")
                self.manager.wait_longer(10 * KEY_RETRY_S)
                self.manager.alive()  # the agent may have been ready before
                next_step = ENROL_HERE if isinstance(error, OperatorError) else error.next_step
                waiting = AgentStatus("waiting", None, "", error.code, error.sentence, next_step)
                store_status(self.config.node.state_directory, waiting)
                self.signals.wait(KEY_RETRY_S)
        return None

    def _wait(self, error: SecureHealthError, key: HardwareKey) -> None:
        """Say what is wrong, and give it a moment to be put right."""
        self._publish(AgentStatus("waiting", None, "", error.code, error.sentence, error.next_step))
        self._ready(key)
        self.manager.alive()
        self.signals.wait(TRUST_RETRY_S)

    def _wait_for_enrolment(self, secrets: BoxSecrets) -> None:
        from agent.service.enrolling import Bearings, Enroller  # noqa: PLC0415 - an enrolled box needs none of it

        box = node_name(secrets.key.key_id)
        link = public_key_bytes(link_key(secrets.key, secrets.vault).public_key())
        fingerprint = box_words(*secrets.key.evidence_names(), link)

        def publish(bearings: Bearings) -> None:
            words = (bearings.code, bearings.sentence, bearings.next_step)
            status = AgentStatus(bearings.link, None, "", *words, box=box, box_words=fingerprint)
            if bearings.phone is not None:
                status = replace(status, phone_address=bearings.phone.address, phone_code=bearings.phone.grouped)
            self._publish(status)

        publish(Bearings())
        self._ready(secrets.key)
        log.info("waiting_for_enrolment", key=secrets.key.kind.value)
        with Enroller(self.config, secrets.key, secrets.vault, self.clock, publish) as enroller:
            enroller.resume()
            while self._folder.load_record() is None and not self.signals.wait(ENROLMENT_TICK_S):
                enroller.look()
                self.manager.alive()

    def _serve_enrolled(self, secrets: BoxSecrets, record: EnrolmentRecord) -> None:
        home = _Home(self.config, record)
        with ExitStack() as stack:
            try:
                affiliation = stack.enter_context(
                    enrolled_affiliation(self.config, record, self.clock, home.note, refresh_s=self.refresh_s)
                )
            except SecureHealthError as error:
                log.warning("trust_missing", error=error)
                self._wait(error, secrets.key)
                return
            self._serve(secrets, affiliation, home)

    def _serve(self, secrets: BoxSecrets, affiliation: Affiliation, home: _Home | None = None) -> None:
        keeper = session_keeper(self.config, affiliation, secrets.key, self.clock, renewal=self.renewal)
        board = StatusBoard(self._publish, site=affiliation.site, box=node_name(secrets.key.key_id))
        with ExitStack() as stack:
            try:
                governance = stack.enter_context(
                    open_governance(
                        self.config,
                        affiliation,
                        keeper,
                        secrets.key,
                        secrets.vault,
                        self.clock,
                        board.note_notice,
                    )
                )
            except SecureHealthError as error:
                log.warning("governance_missing", error=error)
                self._wait(error, secrets.key)
                return
            self._work(secrets, affiliation, keeper, board, governance, home)

    def _work(
        self,
        secrets: BoxSecrets,
        affiliation: Affiliation,
        keeper: SessionKeeper | None,
        board: StatusBoard,
        governance: Governance | None,
        home: _Home | None,
    ) -> None:
        stop = threading.Event()
        agent = wire_agent(
            self.config,
            affiliation,
            link_key(secrets.key, secrets.vault),
            self.clock,
            keeper=keeper,
            journal_key=secrets.vault.key_for(JOURNAL_PURPOSE),
            stop=stop,
            open_worker=self.open_worker,
            on_change=board.note_node,
            governance=governance,
        )
        _tend_session(keeper, board)
        loop = threading.Thread(target=agent.node.run, name="node", daemon=True)
        loop.start()
        doctor = ExaminationDesk(examiner(self.config, self.clock), self.clock)
        handlers: dict[str, Handler] = {"doctor": lambda _: doctor.answer()}
        handlers |= {} if governance is None else governance.handlers
        desk = ControlDesk(keeper, board.current, affiliation.accept_keys, handlers)
        heart = heart_of(self.config, affiliation, keeper, board, self.clock, self.pulse)
        try:
            with ControlSocket(self.config.node.state_directory, desk.answer, self.clock), heart:
                self._ready(secrets.key)
                log.info(
                    "agent_ready",
                    site=affiliation.site,
                    superlink=affiliation.superlink,
                    key=secrets.key.kind.value,
                    sealed=secrets.vault.sealed,
                )
                for _ in self._ticks(agent, loop):
                    _tend_session(keeper, board)
                    if affiliation.moved.is_set() or (home is not None and not home.tend(board)):
                        log.info("agent_rewired")
                        break
        finally:
            stop.set()
            if self.signals.stop.is_set():
                self.manager.stopping()
            agent.rounds.close()
            loop.join(LEAVE_LIMIT_S)
            agent.fleet.close()
        log.info("agent_stopped", clean=not loop.is_alive())

    def _ticks(self, agent: Agent, loop: threading.Thread) -> Iterator[None]:
        """Until the end, once a second, telling the service manager that we live while we do."""
        tick_s = min(TICK_S, (self.manager.watchdog_s or 3 * TICK_S) / 3)
        while not self.signals.wait(tick_s):
            if not loop.is_alive():
                raise SoftwareError(
                    "service.loop_ended",
                    "The message loop ended by itself.",
                    next_step="Report it with the log; the service manager starts the agent again.",
                )
            yield
            turning = agent.node.is_turning()
            self.health.note(agent=turning)
            if turning:
                self.manager.alive()


@dataclass(slots=True)
class _Home:
    """What an enrolled box watches beside its work.

    Args:
        config: The box's.
        record: Where it was enrolled when the agent was wired.
        notices: What the repository has to say, by topic.
    """

    config: AgentConfig
    record: EnrolmentRecord
    notices: dict[str, str] = field(default_factory=dict)

    def note(self, topic: str, text: str) -> None:
        """The repository's news, from another thread."""
        self.notices[topic] = text

    def tend(self, board: StatusBoard) -> bool:
        """Look at repository, stick and record; returns whether the box is still enrolled as it was."""
        for topic, text in list(self.notices.items()):
            board.note_notice(topic, text)
        stick = judge_stick(self.config, self.record)
        if stick:
            board.note_notice("stick", stick)
        return EnrolmentFolder.of(self.config.node.state_directory).load_record() == self.record


def _tend_session(keeper: SessionKeeper | None, board: StatusBoard) -> None:
    """Renew the session if it is time, and say so where that takes a person."""
    if keeper is None:
        return
    status = keeper.tick()
    if board.note_session(status) and status.state is SessionState.NEEDS_PERSON:
        log.warning("session_needs_person", sentence=status.sentence, next_step=status.next_step)
