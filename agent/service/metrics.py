"""The agent's metrics for the hospital's own monitoring: a file for the node exporter, since a box opens no port.

They say how the agent does, as its status does; nothing in them is of data, studies or rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from agent.core.files import show
from agent.core.version import software_version
from agent.federation.node import Link
from agent.identity.session import SessionState
from agent.service.periodic import Periodic
from agent.service.state import AgentStatus

METRICS_NAME: Final = "metrics.prom"
WRITE_EVERY_S: Final = 15.0
FIRST_S: Final = 3.0
"""Not while the agent starts."""

log = structlog.get_logger()


def metrics_path(environ: Mapping[str, str]) -> Path | None:
    """Where the file goes: into the directory that the service manager made (systemd.exec(5)); None without one."""
    directory = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(directory) / METRICS_NAME if directory else None


def render_metrics(status: AgentStatus, *, resident_bytes: int, started_s: float) -> bytes:
    """The file's text, in Prometheus' own format.

    Args:
        status: How the agent does.
        resident_bytes: Memory that it holds.
        started_s: When it was started, in seconds since 1970.
    """
    from prometheus_client import CollectorRegistry, Gauge, Info, generate_latest  # noqa: PLC0415 - after the start

    registry = CollectorRegistry(auto_describe=False)
    labels = {"version": software_version(), "site": status.site}
    Info("seh_agent", "The agent's release, and the hospital that it works for.", registry=registry).info(labels)

    def gauge(name: str, what: str, value: float) -> None:
        Gauge(f"seh_agent_{name}", what, registry=registry).set(value)

    link = Gauge("seh_agent_link_state", "How it stands to the SuperLink.", ["state"], registry=registry)
    for state in Link:
        link.labels(state.value).set(status.link == state)
    session = Gauge("seh_agent_session_state", "What its key can prove.", ["state"], registry=registry)
    for each in SessionState:
        session.labels(each.value).set(status.session == each)
    gauge("needs_person", "Whether somebody has to come to the box.", status.needs_person)
    gauge("trouble", "Whether something is wrong; `seh-agent status` says what.", bool(status.trouble))
    gauge("session_expiry_timestamp_seconds", "Until when its key vouches; 0: not.", status.session_expires_s or 0)
    gauge("heartbeat_timestamp_seconds", "When the registrar took a heartbeat; 0: never.", status.heard_s or 0)
    gauge("start_time_seconds", "When it was started.", started_s)
    gauge("resident_memory_bytes", "Memory that it holds.", resident_bytes)
    return bytes(generate_latest(registry))


class MetricsFile:
    """Writes the file again and again, in a thread of its own, for as long as the `with` block lasts.

    Args:
        path: The file; None writes nothing.
        status: How the agent does; None while nobody knows.
        every_s: How often.
    """

    def __init__(
        self, path: Path | None, status: Callable[[], AgentStatus | None], *, every_s: float = WRITE_EVERY_S
    ) -> None:
        self._path = path
        self._status = status
        self._started_s = time.time()
        self._writing = Periodic("metrics", self.write, every_s=every_s, first_s=FIRST_S)

    def write(self) -> None:
        """Write it once; monitoring that finds no file, or an old one, says so by itself."""
        status = self._status()
        if self._path is None or status is None:
            return
        try:
            show(self._path, render_metrics(status, resident_bytes=_resident_bytes(), started_s=self._started_s))
        except OSError as error:
            log.debug("metrics_not_written", reason=str(error))

    def __enter__(self) -> Self:
        if self._path is not None:
            self._writing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._path is not None:
            self._writing.__exit__(kind, value, trace)
            self._path.unlink(missing_ok=True)  # an agent that is stopped has no metrics


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # proc(5)
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
