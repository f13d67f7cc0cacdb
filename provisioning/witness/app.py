"""The witness over HTTPS: `/add-checkpoint` (C2SP tlog-witness), and `/v1/logs`, by which boxes show their logs."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from typing import Annotated, Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp

from agent.audit.witness import ADD_CHECKPOINT, REGISTER
from agent.core.clock import Clock
from agent.core.errors import Fault, NetworkError, PeerProtocolError, SecureHealthError
from agent.trust.fetcher import BoundedFetcher
from agent.trust.repository import TrustRepository
from agent.trust.snapshot import TrustSnapshot
from provisioning.registrar.guard import Guard
from provisioning.witness.desk import Answer, Witness
from provisioning.witness.settings import WitnessSettings
from provisioning.witness.store import WitnessStore

REFRESH_S: Final = 60.0
"""How old what is known of the repository may grow, in seconds."""
PAUSE_S: Final = 2.0
"""Least time, in seconds, between two refreshes: nobody makes the witness ask all day."""
HIDDEN: Final = "witness.history_hidden"

log = structlog.get_logger()


class Registration(BaseModel):
    """A box makes its log known; DSSE envelopes, and the first leaf in Base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statement: Annotated[str, Field(max_length=1 << 14)]
    certificate: Annotated[str, Field(max_length=1 << 14)]
    opened: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{0,30000}={0,2}$")]


class FreshSource:
    """The trust repository, asked again now and then; thread-safe.

    Args:
        repository: Opened.
        clock: For the pauses.
    """

    def __init__(self, repository: TrustRepository, clock: Clock) -> None:
        self._repository = repository
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_s: float | None = None

    def current(self) -> TrustSnapshot:
        """The newest snapshot, at most a minute old where the repository answers."""
        return self._within(REFRESH_S)

    def refresh(self) -> TrustSnapshot:
        """Ask now, unless that was done a moment ago."""
        return self._within(PAUSE_S)

    def now_s(self) -> int:
        """The present, in seconds since 1970, not before the latest signed time."""
        return self._repository.now_s()

    def _within(self, age_s: float) -> TrustSnapshot:
        with self._lock:
            now_s = self._clock.monotonic_s()
            if self._asked_s is not None and now_s - self._asked_s < age_s:
                return self._repository.current()
            self._asked_s = now_s
            try:
                return self._repository.refresh()
            except (NetworkError, PeerProtocolError) as error:
                log.warning("trust_not_refreshed", error=error)
                return self._repository.load()


@contextmanager
def opened_witness(settings: WitnessSettings, key: Ed25519PrivateKey, clock: Clock) -> Iterator[Witness]:
    """The witness with all that it works with.

    Args:
        settings: Its settings.
        key: Signs.
        clock: Its own.

    Raises:
        SecureHealthError: A part cannot be opened.
    """
    with (
        WitnessStore.open(settings.state) as store,
        closing(BoundedFetcher(clock)) as fetcher,
        TrustRepository(settings.trust, settings.repository, fetcher, clock) as repository,
    ):
        # The repository is asked when a box comes; logs that are known are cosigned without it.
        yield Witness(store, settings.name, key, FreshSource(repository, clock), clock)


def witness_app(witness: Witness, clock: Clock) -> ASGIApp:
    """The service.

    Args:
        witness: Answers.
        clock: For rates.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post(ADD_CHECKPOINT)
    async def add_checkpoint(request: Request) -> Response:
        try:
            answer = await run_in_threadpool(witness.add_checkpoint, await request.body())
        except SecureHealthError as error:
            log.error("checkpoint_failed", error=error)  # noqa: TRY400 - it says where it is from
            answer = Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.sentence}\n")
        return Response(answer.body, answer.status, {"content-type": answer.media_type})

    @app.post(REGISTER)
    async def register(request: Request) -> Response:
        try:
            asked = Registration.model_validate_json(await request.body())
            parts = asked.statement.encode(), asked.certificate.encode(), base64.b64decode(asked.opened)
            await run_in_threadpool(witness.register, *parts)
        except (ValidationError, ValueError):
            return JSONResponse({"code": "witness.not_taken"}, HTTPStatus.BAD_REQUEST)
        except SecureHealthError as error:
            log.warning("registration_refused", error=error)
            return JSONResponse(_refusal(error), _status(error))
        return JSONResponse({})

    return Guard(app, clock)


def _status(error: SecureHealthError) -> HTTPStatus:
    if error.code == HIDDEN:
        return HTTPStatus.CONFLICT
    return HTTPStatus.FORBIDDEN if isinstance(error, PeerProtocolError) else HTTPStatus.SERVICE_UNAVAILABLE


def _refusal(error: SecureHealthError) -> dict[str, str]:
    if error.fault is Fault.PEER:
        return {"code": error.code, "sentence": error.sentence[:1000], "next_step": error.next_step[:1000]}
    return {"code": error.code}
