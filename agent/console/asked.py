"""What a request says once it has passed the guard: whose it is, and its form, which must be this session's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.console.sessions import Session, SessionShelf
from agent.console.words import LANGUAGES, preferred
from agent.core.config import ConsoleSection
from agent.core.errors import OperatorError

SESSION: Final = "seh_session"
"""Where a request's scope has its session."""
MAX_FIELDS: Final = 16
MAX_COOKIE: Final = 4096
_OWN_PAGE: Final = re.compile(r"/(?!/)[a-z0-9/-]{0,200}")
_ASSETS: Final = "/static/"
_LIVE: Final = b"x-live"
"""A page says by this header that it updates itself: nobody is there for that."""


class SessionGate:
    """ASGI middleware: finds or begins the browser's session, and gives it its cookie.

    Args:
        app: Answers, with the session at hand.
        shelf: Of all sessions.
        settings: Of the console.
    """

    def __init__(self, app: ASGIApp, shelf: SessionShelf, settings: ConsoleSection) -> None:
        self._app = app
        self._shelf = shelf
        secure = settings.certificate is not None
        # The prefix holds other hosts' pages, and pages without TLS, off from setting it (RFC 6265bis 4.1.3.2).
        self._cookie = "__Host-seh" if secure else "seh"
        self._attributes = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"].startswith(_ASSETS):
            await self._app(scope, receive, send)
            return
        told = _cookie_of(scope, self._cookie)
        by_itself = _LIVE in dict(scope["headers"])
        session = self._shelf.find(told, used=not by_itself) or self._shelf.begin()

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and session.name != told:
                cookie = f"{self._cookie}={session.name}{self._attributes}"
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie.encode())]
            await send(message)

        await self._app({**scope, SESSION: session}, receive, with_cookie)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Args:
        session: Whose.
        language: In which it is answered.
        path: What was asked for.
        fields: Of a form; each name's last value.
        answer: Of a script: what the browser's authenticator says.
    """

    session: Session
    language: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    answer: Mapping[str, Any] = field(default_factory=dict)


async def read_asked(request: Request) -> Asked:
    """Read a request.

    Raises:
        OperatorError: It changes something, and does not come from a page of this session (`console.stale_page`), or
            cannot be read (`console.bad_form`).
    """
    session: Session = request.scope[SESSION]
    language = session.language or preferred(request.headers.get("accept-language", ""))
    path = request.url.path
    if request.method in {"GET", "HEAD"}:
        return Asked(session, language, path)
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0] == "application/json":
        content = _parse_json(body)
        token, fields, answer = (
            request.headers.get("x-csrf-token", ""),
            _texts(content),
            _mapping(content.get("answer")),
        )
    else:
        fields, answer = _parse_form(body), {}
        token = fields.get("token", "")
    if not session.accepts(token):
        raise OperatorError(
            "console.stale_page",
            "This page is older than the session that it belongs to, or was not made here.",
            next_step="Load the page anew, and try again. Nothing was changed.",
        )
    return Asked(session, language, path, fields, answer)


AskedRequest = Annotated[Asked, Depends(read_asked)]


def own_page(path: str) -> str:
    """`path` where it is a page of this console, else its first page: nobody is sent elsewhere from here."""
    return path if _OWN_PAGE.fullmatch(path) else "/"


def chosen_language(name: str) -> str:
    """A language that a form names; empty where there is no such one."""
    return name if name in LANGUAGES else ""


def _cookie_of(scope: Scope, name: str) -> str:
    header = dict(scope["headers"]).get(b"cookie", b"")[:MAX_COOKIE].decode("latin-1")
    try:
        morsel = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if morsel is None else morsel.value


def _parse_form(body: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError as error:
        raise _bad_form() from error


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad_form() from error
    return _mapping(content)


def _mapping(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad_form()
    return value


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in content.items() if isinstance(value, str)}


def _bad_form() -> OperatorError:
    return OperatorError(
        "console.bad_form",
        "What the page sent cannot be read.",
        next_step="Load the page anew, and try again. Nothing was changed.",
    )
