"""The long-running process: starts the parts, watches over them, and stops them within five seconds."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from agent.core.clock import Clock, SystemClock
from agent.core.config import AgentConfig, load_config
from agent.core.errors import HardwareError, SoftwareError
from agent.core.logging import configure_logging
from agent.federation.journal import JOURNAL_PURPOSE
from agent.federation.studies import OpenWorker
from agent.identity.key import HardwareKey, open_key
from agent.identity.link import link_key
from agent.identity.session import RenewalPolicy, SessionKeeper, SessionState
from agent.identity.vault import Vault
from agent.service.control import ControlDesk, ControlSocket
from agent.service.safekeeping import load_vault
from agent.service.state import AgentStatus, StatusBoard, locked_state, store_status
from agent.service.watchdog import ServiceManager
from agent.service.wiring import Agent, session_keeper, wire_agent, worker_opener

LEAVE_LIMIT_S = 3.5
"""How long the loop may take to say goodbye; whatever it still waits for then is left behind."""
KEY_RETRY_S = 1.0
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
) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        config_path: The configuration file.
        opener: Makes what starts training workers.
        renewal: How long the box's key vouches at a time; by its kind when None.

    Returns:
        0 after a clean stop.

    Raises:
        SecureHealthError: It cannot start, or had to give up; the service manager starts it again.
    """
    configure_logging()
    config = load_config(config_path)
    signals, manager = StopSignals(), ServiceManager(os.environ)
    with signals.installed(), locked_state(config.node.state_directory):
        store_status(config.node.state_directory, AgentStatus("starting"))  # the last process may have been killed
        secrets, clock = _wait_for_secrets(config, signals, manager), SystemClock()
        if secrets is not None:
            keeper = session_keeper(config, secrets.key, clock, renewal=renewal)
            _serve(config, secrets, clock, keeper, opener(config), signals, manager)
        manager.stopping()
        store_status(config.node.state_directory, AgentStatus("stopped"))
    return 0


def _wait_for_secrets(config: AgentConfig, signals: StopSignals, manager: ServiceManager) -> BoxSecrets | None:
    """Open vault and key, waiting for hardware that is not there yet; None when told to stop first.

    Raises:
        HardwareError: The disk is another box's: no waiting helps.
    """
    reported = ""
    while not signals.stop.is_set():
        try:
            # The vault first: a disk in another box is told from a box whose key was never made.
            vault = load_vault(config)
            return BoxSecrets(open_key(config.key.uri), vault)
        except HardwareError as error:
            if error.code == "identity.sealed_elsewhere":
                raise
            if reported != error.code:
                log.warning("key_missing", error=error)
            reported = error.code
            manager.status(f"waiting for the key: {error.sentence}")
            manager.wait_longer(10 * KEY_RETRY_S)
            waiting = AgentStatus("waiting", None, "", error.code, error.sentence, error.next_step)
            store_status(config.node.state_directory, waiting)
            signals.wait(KEY_RETRY_S)
    return None


def _serve(
    config: AgentConfig,
    secrets: BoxSecrets,
    clock: Clock,
    keeper: SessionKeeper | None,
    open_worker: OpenWorker,
    signals: StopSignals,
    manager: ServiceManager,
) -> None:
    def publish(status: AgentStatus) -> None:
        store_status(config.node.state_directory, status)
        manager.status(status.line)

    board = StatusBoard(publish)
    agent = wire_agent(
        config,
        link_key(secrets.key, secrets.vault),
        clock,
        keeper=keeper,
        journal_key=secrets.vault.key_for(JOURNAL_PURPOSE),
        stop=signals.stop,
        open_worker=open_worker,
        on_change=board.note_node,
    )
    _tend_session(keeper, board)
    loop = threading.Thread(target=agent.node.run, name="node", daemon=True)
    loop.start()
    desk = ControlDesk(keeper, board.current)
    try:
        with ControlSocket(config.node.state_directory, desk.answer, clock):
            manager.ready()
            log.info(
                "agent_ready",
                site=config.node.site,
                superlink=config.superlink.address,
                key=secrets.key.kind.value,
                sealed=secrets.vault.sealed,
            )
            _watch(agent, loop, signals, manager, tend=lambda: _tend_session(keeper, board))
    finally:
        signals.stop.set()
        manager.stopping()
        agent.rounds.close()
        loop.join(LEAVE_LIMIT_S)
        agent.fleet.close()
    log.info("agent_stopped", clean=not loop.is_alive())


def _tend_session(keeper: SessionKeeper | None, board: StatusBoard) -> None:
    """Renew the session if it is time, and say so where that takes a person."""
    if keeper is None:
        return
    status = keeper.tick()
    if board.note_session(status) and status.state is SessionState.NEEDS_PERSON:
        log.warning("session_needs_person", sentence=status.sentence, next_step=status.next_step)


def _watch(
    agent: Agent, loop: threading.Thread, signals: StopSignals, manager: ServiceManager, *, tend: Callable[[], None]
) -> None:
    """Wait for the end, tending the session and telling the service manager that we live while we do."""
    tick_s = min(TICK_S, (manager.watchdog_s or 3 * TICK_S) / 3)
    while not signals.wait(tick_s):
        if not loop.is_alive():
            raise SoftwareError(
                "service.loop_ended",
                "The message loop ended by itself.",
                next_step="Report it with the log; the service manager starts the agent again.",
            )
        tend()
        if agent.node.is_turning():
            manager.alive()
