"""What stands before the console's pages: who may ask, how often, how much; and what every answer carries.

A page elsewhere can send the steward's browser here. So the name that was asked for must be ours (DNS rebinding), and
what changes anything must come from our own pages (Origin: RFC 6454 7; the token is checked with the form).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

import structlog
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.core.clock import Clock
from agent.core.config import ConsoleSection
from agent.web.messages import add_headers, replay

MAX_BODY_BYTES: Final = 1 << 15
BODY_LIMIT_S: Final = 10.0
BURST: Final = 120.0
PER_S: Final = 20.0
"""Requests of one address, at once and a second after that: a page with its assets, and what keeps it live."""
MAX_ADDRESSES: Final = 2000
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), "
        "geolocation=(), microphone=(), payment=(), usb=()",
        # Not `no-referrer`: with that, browsers say `Origin: null` for forms (Fetch 3.2).
        "referrer-policy": "same-origin",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
)
_TLS_HEADERS: Final[Mapping[str, str]] = MappingProxyType({"strict-transport-security": "max-age=31536000"})
_SAFE: Final = frozenset({"GET", "HEAD"})

_log = structlog.get_logger(__name__)


class Guard:
    """ASGI middleware.

    Args:
        app: Answers what passes.
        settings: Of the console.
        clock: For rates.
    """

    def __init__(self, app: ASGIApp, settings: ConsoleSection, clock: Clock) -> None:
        self._app = app
        self._origin = settings.origin
        self._host = settings.origin.partition("://")[2]
        self._headers = {**HEADERS, **(_TLS_HEADERS if settings.certificate else {})}
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(message, self._headers)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            try:
                body = await asyncio.wait_for(_read_body(scope, receive), BODY_LIMIT_S)
            except TimeoutError:
                refusal = HTTPStatus.REQUEST_TIMEOUT
            else:
                if body is not None:
                    await self._app(scope, replay(body, receive), dressed)
                    return
                refusal = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        _log.warning("console_request_refused", status=refusal.value, path=scope["path"][:200])
        await PlainTextResponse(refusal.phrase, refusal)(scope, receive, dressed)

    def _refusal(self, scope: Scope) -> HTTPStatus | None:
        headers = dict(scope["headers"])
        if headers.get(b"host", b"").decode("latin-1").lower() != self._host:
            return HTTPStatus.MISDIRECTED_REQUEST
        if scope["method"] not in _SAFE:
            if headers.get(b"origin", b"").decode("latin-1") != self._origin:
                return HTTPStatus.FORBIDDEN
            if headers.get(b"sec-fetch-site", b"same-origin") != b"same-origin":
                return HTTPStatus.FORBIDDEN
        client = scope.get("client")
        return None if self._take(client[0] if client else "") else HTTPStatus.TOO_MANY_REQUESTS

    def _take(self, address: str) -> bool:
        """A token bucket for each address; the least recently used is forgotten where there are too many."""
        now_s = self._clock.monotonic_s()
        level, before_s = self._levels.pop(address, (BURST, now_s))
        level = min(BURST, level + (now_s - before_s) * PER_S)
        allowed = level >= 1
        self._levels[address] = (level - 1 if allowed else level, now_s)
        if len(self._levels) > MAX_ADDRESSES:
            self._levels.popitem(last=False)
        return allowed


async def _read_body(scope: Scope, receive: Receive) -> bytes | None:
    """The whole body; None where it is too large."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if not announced.isdigit() or len(announced) > 12 or int(announced) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(body)
