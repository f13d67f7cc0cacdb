"""What stands before requests to registrar and cosigner: how often, how large, how slow; and what answers carry.

Nothing of a request is read beyond what its place takes, and nothing waits for a sender that drips.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import structlog
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.core.clock import Clock
from agent.core.errors import Fault, NetworkError, PeerProtocolError, SecureHealthError, SoftwareError
from agent.web.messages import add_headers, replay
from provisioning.registrar.limits import (
    ADDRESS_RATE,
    PAIRING_RATE,
    REPOSITORY_RATE,
    ByteBudget,
    RateLimiter,
    Share,
    address_name,
)

REPOSITORY: Final = "/repository/"
PAIRINGS: Final = "/v1/pairings"
MAX_SMALL_BYTES: Final = 1 << 14
MAX_EVIDENCE_REQUEST_BYTES: Final = 3 << 20
MAX_METADATA_REQUEST_BYTES: Final = 4 << 20
MAX_PROPOSAL_BYTES: Final = 32 << 20
BODY_LIMIT_S: Final = 20.0
RETRY_AFTER_S: Final = 2
_LARGE: Final[Mapping[str, int]] = MappingProxyType(
    {
        "/evidence": MAX_EVIDENCE_REQUEST_BYTES,
        "/metadata": MAX_METADATA_REQUEST_BYTES,
        "/v1/cosignatures": MAX_PROPOSAL_BYTES,
    }
)
"""By the path's end; every other place takes little."""
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
        "referrer-policy": "no-referrer",
        "strict-transport-security": "max-age=31536000",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)
_STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "enrol.unknown_token": HTTPStatus.FORBIDDEN,
        "enrol.token_expired": HTTPStatus.FORBIDDEN,
        "enrol.other_box": HTTPStatus.FORBIDDEN,
        "enrol.token_used": HTTPStatus.CONFLICT,
        "enrol.wrong_state": HTTPStatus.CONFLICT,
        "enrol.refused": HTTPStatus.CONFLICT,
        "registrar.bad_request": HTTPStatus.BAD_REQUEST,
        "registrar.no_such_place": HTTPStatus.NOT_FOUND,
        "registrar.no_such_enrolment": HTTPStatus.NOT_FOUND,
        "registrar.not_authorised": HTTPStatus.FORBIDDEN,
        "registrar.replayed": HTTPStatus.FORBIDDEN,
        "registrar.foreign_token": HTTPStatus.FORBIDDEN,
        "registrar.other_token": HTTPStatus.CONFLICT,
        "registrar.too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "registrar.too_slow": HTTPStatus.REQUEST_TIMEOUT,
        "registrar.too_many": HTTPStatus.TOO_MANY_REQUESTS,
        "authority.may_not_follow": HTTPStatus.CONFLICT,
    }
)
_STATUS_FOR_FAULT: Final[Mapping[Fault, HTTPStatus]] = MappingProxyType(
    {
        Fault.OPERATOR: HTTPStatus.CONFLICT,
        Fault.PEER: HTTPStatus.UNPROCESSABLE_ENTITY,
        Fault.NETWORK: HTTPStatus.SERVICE_UNAVAILABLE,
        Fault.HARDWARE: HTTPStatus.SERVICE_UNAVAILABLE,
        Fault.SOFTWARE: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)

_log = structlog.get_logger(__name__)


def error_answer(error: SecureHealthError) -> JSONResponse:
    """An error as boxes and hospitals read it."""
    status = _STATUS.get(error.code, _STATUS_FOR_FAULT[error.fault])
    wait = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    return JSONResponse(
        {"code": error.code, "sentence": error.sentence[:1000], "next_step": error.next_step[:1000]},
        status_code=status,
        headers={"retry-after": str(RETRY_AFTER_S)} if wait else {},
    )


def internal_error() -> SoftwareError:
    """What others learn of a fault of ours."""
    return SoftwareError(
        "registrar.internal",
        "The registrar failed at this request.",
        next_step="Try again; if it repeats, tell the consortium's operator, whose log says more.",
    )


class Guard:
    """ASGI middleware.

    Args:
        app: Answers what passes.
        clock: For rates.
    """

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self._app = app
        self._requests = RateLimiter(ADDRESS_RATE, clock)
        self._files = RateLimiter(REPOSITORY_RATE, clock)
        self._pairings = RateLimiter(PAIRING_RATE, clock)
        self._bodies = ByteBudget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        dressed = _Dressed(send)
        client = scope.get("client")
        address = address_name(client[0]) if client else ""
        try:
            self._count(scope, address)
            with self._bodies.share(address) as held:
                body = await asyncio.wait_for(_read_body(scope, receive, held), BODY_LIMIT_S)
                await self._app(scope, replay(body, receive), dressed)
        except SecureHealthError as error:
            await error_answer(error)(scope, receive, dressed)
        except TimeoutError:
            await error_answer(_too_slow())(scope, receive, dressed)
        except Exception:
            _log.exception("request_failed", path=scope["path"][:200])
            if dressed.started:
                raise
            await error_answer(internal_error())(scope, receive, dressed)

    def _count(self, scope: Scope, address: str) -> None:
        limiter = self._files if scope["path"].startswith(REPOSITORY) else self._requests
        limiter.take(address)
        if scope["path"] == PAIRINGS:
            self._pairings.take(address)


class _Dressed:
    """Sends answers, each with the headers that all have."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            add_headers(message, HEADERS)
        await self._send(message)


async def _read_body(scope: Scope, receive: Receive, held: Share) -> bytes:
    limit_bytes = next((size for end, size in _LARGE.items() if scope["path"].endswith(end)), MAX_SMALL_BYTES)
    headers = dict(scope["headers"])
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or len(announced) > 12 or int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit_bytes:
            raise _too_large(limit_bytes)
        held.take(len(chunk))
        body += chunk
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limit_bytes: int) -> PeerProtocolError:
    return PeerProtocolError(
        "registrar.too_large",
        f"The request is larger than the {limit_bytes} bytes that are taken here.",
        next_step="Use the release that the consortium uses.",
    )


def _too_slow() -> NetworkError:
    return NetworkError(
        "registrar.too_slow",
        f"The request did not arrive within {BODY_LIMIT_S:g} s.",
        next_step="Have the line to the registrar checked, and try again.",
    )
