"""The console as one process: it listens where the configuration says, and ends in order when told to."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override

from agent.console.connection import ImpatientProtocol
from agent.core.config import ConsoleSection
from agent.core.errors import OperatorError

MAX_CONNECTIONS: Final = 64
MAX_HEADER_BYTES: Final = 1 << 14
KEEP_ALIVE_S: Final = 15
GRACE_S: Final = 2


def serve(app: ASGIApp, settings: ConsoleSection, *, ready: Callable[[], None] = lambda: None) -> None:
    """Answer until SIGTERM or SIGINT.

    Args:
        app: Answers.
        settings: Where, and with which certificate.
        ready: Called once it listens.

    Raises:
        OperatorError: It cannot listen there, or has no certificate (`console.cannot_serve`).
    """
    try:
        config = _configured(app, settings)
        listener = _listen(settings.address)
    except (OSError, ValueError, OverflowError) as error:
        raise OperatorError(
            "console.cannot_serve",
            f"The console cannot answer at {settings.address}: {error}.",
            next_step="Correct [console] in the configuration, or stop what listens there.",
        ) from error
    # uvicorn raises the signal that ended it once more when it has ended: there is something to close after it.
    with _quiet_end(), listener:
        _Server(config, ready).run(sockets=[listener])


def server_of(app: ASGIApp, settings: ConsoleSection) -> uvicorn.Server:
    """A server that its caller starts and ends."""
    return uvicorn.Server(_configured(app, settings))


def _configured(app: ASGIApp, settings: ConsoleSection) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if settings.certificate is not None:
        tls = {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.private_key)}
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # an address that a stranger may write down himself limits nobody
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        **tls,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, int(port)), family=family, backlog=MAX_CONNECTIONS)


@contextmanager
def _quiet_end() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
