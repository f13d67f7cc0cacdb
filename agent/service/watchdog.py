"""Speaking to the service manager (systemd): ready, status, alive, stopping. Without one, every call does nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog

log = structlog.get_logger()


class ServiceManager:
    """The notification socket of sd_notify(3)."""

    def __init__(self, environment: Mapping[str, str], *, pid: int | None = None) -> None:
        """Prepare.

        Args:
            environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are read.
            pid: This process.
        """
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_s = _watchdog_s(environment, pid or os.getpid())
        """How long the service manager waits for a sign of life; None where it does not watch."""

    def ready(self) -> None:
        """The service is up."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + text.replace("\n", " "))

    def alive(self) -> None:
        """Restart the watchdog's clock."""
        self._send("WATCHDOG=1")

    def wait_longer(self, seconds: float) -> None:
        """Starting takes so much longer."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def stopping(self) -> None:
        """The service is going down."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # sd_notify(3): a leading @ stands for the abstract namespace's zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.connect(address)
                channel.send(text.encode())
        except OSError as error:
            log.warning("service_manager_unreachable", reason=str(error))


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    try:
        interval_us = int(environment.get("WATCHDOG_USEC", "0"))
        watched_pid = int(environment.get("WATCHDOG_PID", str(pid)))
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 and watched_pid == pid else None
