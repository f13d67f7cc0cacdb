"""A server as one process: what it takes of strangers, where it listens, and how it ends in order when told to."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override

from agent.web.connection import PatientProtocol

KEEP_ALIVE_S: Final = 15


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes.

    Args:
        protocol: Of its connections.
        connections: Open at one time.
        header_bytes: Of one request.
        grace_s: For requests under way at the end; connections that only idle keep a TLS server waiting for all of it.
    """

    protocol: type[PatientProtocol]
    connections: int
    header_bytes: int
    grace_s: int


def configured(app: ASGIApp, limits: Limits, certificate: Path | None, key: Path | None) -> uvicorn.Config:
    """What uvicorn is told.

    Args:
        app: Answers.
        limits: Of the server.
        certificate: PEM, with the chain above it; None answers without TLS.
        key: Its key, PEM, unencrypted.

    Raises:
        OSError, ValueError: There is no such certificate.
    """
    config = uvicorn.Config(
        app,
        http=limits.protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # an address that a stranger may write down himself limits nobody
        server_header=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=limits.grace_s,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def listening(address: str, backlog: int) -> socket.socket:
    """Listen at `host:port`.

    Raises:
        OSError, ValueError, OverflowError: It cannot.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=backlog)


def answer(
    config: uvicorn.Config,
    listener: socket.socket,
    *,
    ready: Callable[[], None],
    ending: Callable[[], None] = lambda: None,
) -> None:
    """Answer until SIGTERM or SIGINT, and close the listener.

    Args:
        config: Of the server.
        listener: It listens already.
        ready: Called once it answers.
        ending: Called when it was told to end, before requests under way are answered.
    """
    # uvicorn raises the signal that ended it once more when it has ended: there is something to close after it.
    with _quiet_end(), listener:
        _Server(config, ready, ending).run(sockets=[listener])


@contextmanager
def _quiet_end() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ending = ending

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets)
