"""The long-running process: starts the parts, watches over them, and stops them within five seconds."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from agent.core.clock import SystemClock
from agent.core.config import AgentConfig, load_config
from agent.core.errors import HardwareError, SoftwareError
from agent.core.logging import configure_logging
from agent.federation.node import NodeStatus
from agent.federation.studies import OpenWorker
from agent.identity.key import HardwareKey, open_key
from agent.identity.session import SessionKeeper
from agent.service.state import AgentStatus, locked_state, status_of, store_status
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


def run_agent(config_path: Path, *, opener: Callable[[AgentConfig], OpenWorker] = worker_opener) -> int:
    """Run until SIGTERM or SIGINT.

    Args:
        config_path: The configuration file.
        opener: Makes what starts training workers.

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
        key = _wait_for_key(config, signals, manager)
        if key is not None:
            _serve(config, key, opener(config), signals, manager)
        manager.stopping()
        store_status(config.node.state_directory, AgentStatus("stopped"))
    return 0


def _wait_for_key(config: AgentConfig, signals: StopSignals, manager: ServiceManager) -> HardwareKey | None:
    """Open the node's key, waiting for hardware that is not there yet; None when told to stop first."""
    reported = ""
    while not signals.stop.is_set():
        try:
            return open_key(config.key.uri)
        except HardwareError as error:
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
    config: AgentConfig, key: HardwareKey, open_worker: OpenWorker, signals: StopSignals, manager: ServiceManager
) -> None:
    def on_change(status: NodeStatus) -> None:
        store_status(config.node.state_directory, status_of(status))
        manager.status(_describe(status))

    clock = SystemClock()
    keeper = session_keeper(config, key, clock)
    agent = wire_agent(
        config,
        key.signing_key,
        clock,
        keeper=keeper,
        stop=signals.stop,
        open_worker=open_worker,
        on_change=on_change,
    )
    if keeper is not None:
        keeper.tick()
    loop = threading.Thread(target=agent.node.run, name="node", daemon=True)
    loop.start()
    manager.ready()
    log.info("agent_ready", site=config.node.site, superlink=config.superlink.address, key=key.kind.value)
    try:
        _watch(agent, keeper, loop, signals, manager)
    finally:
        signals.stop.set()
        manager.stopping()
        agent.rounds.close()
        loop.join(LEAVE_LIMIT_S)
        agent.fleet.close()
    log.info("agent_stopped", clean=not loop.is_alive())


def _watch(
    agent: Agent, keeper: SessionKeeper | None, loop: threading.Thread, signals: StopSignals, manager: ServiceManager
) -> None:
    """Wait for the end, renewing the session key and telling the service manager that we live while we do."""
    tick_s = min(TICK_S, (manager.watchdog_s or 3 * TICK_S) / 3)
    while not signals.wait(tick_s):
        if not loop.is_alive():
            raise SoftwareError(
                "service.loop_ended",
                "The message loop ended by itself.",
                next_step="Report it with the log; the service manager starts the agent again.",
            )
        if keeper is not None:
            keeper.tick()
        if agent.node.is_turning():
            manager.alive()


def _describe(status: NodeStatus) -> str:
    if status.answering:
        return f"answering {status.answering}"
    return status.link.value if status.trouble is None else f"{status.link.value}: {status.trouble.sentence}"
