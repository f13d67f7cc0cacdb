"""The console as one process: it listens where the configuration says, and ends in order when told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from agent.core.config import ConsoleSection
from agent.core.errors import OperatorError
from agent.web.connection import PatientProtocol
from agent.web.server import Limits, answer, configured, listening


class BrowserProtocol(PatientProtocol):
    """A browser opens six connections; some may sit behind one proxy of the hospital's."""

    max_from_address = 24
    patience_s = 15.0


LIMITS: Final = Limits(BrowserProtocol, connections=64, header_bytes=1 << 14, grace_s=2)


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
        listener = listening(settings.address, LIMITS.connections)
    except (OSError, ValueError, OverflowError) as error:
        raise OperatorError(
            "console.cannot_serve",
            f"The console cannot answer at {settings.address}: {error}.",
            next_step="Correct [console] in the configuration, or stop what listens there.",
        ) from error
    answer(config, listener, ready=ready)


def server_of(app: ASGIApp, settings: ConsoleSection) -> uvicorn.Server:
    """A server that its caller starts and ends."""
    return uvicorn.Server(_configured(app, settings))


def _configured(app: ASGIApp, settings: ConsoleSection) -> uvicorn.Config:
    return configured(app, LIMITS, settings.certificate, settings.private_key)
