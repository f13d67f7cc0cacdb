"""The console as one application: guard, sessions, door, pages."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from agent.console.acts import act_routes, door_routes, key_routes
from agent.console.asked import SESSION, Asked, AskedRequest, SessionGate
from agent.console.guard import Guard
from agent.console.pages import Pages, failure_json
from agent.console.passkeys import PasskeyDesk
from agent.console.sessions import Session, SessionShelf
from agent.console.views import asset_routes, no_such_page, view_routes
from agent.console.words import preferred
from agent.core.box_view import Box
from agent.core.clock import Clock
from agent.core.config import ConsoleSection
from agent.core.errors import SecureHealthError, SoftwareError

SIGN_IN: Final = "/sign-in"
_log = structlog.get_logger(__name__)


class _AtTheDoor(Exception):  # noqa: N818 - no failure: the way in
    """Somebody has not signed in yet."""


def create_app(box: Box, settings: ConsoleSection, clock: Clock, random: Callable[[int], bytes]) -> ASGIApp:
    """Build the application.

    Args:
        box: The agent.
        settings: Of the console.
        clock: For rates and sessions.
        random: Makes so many random bytes.
    """
    pages, passkeys, shelf = Pages(settings), PasskeyDesk(settings), SessionShelf(clock, random)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    def known(asked: AskedRequest) -> None:
        if not (settings.on_loopback or asked.session.signed_in):
            raise _AtTheDoor

    inside = [Depends(known)]
    app.include_router(asset_routes())
    app.include_router(door_routes(box, pages, passkeys, shelf, random))
    # A steward who cannot sign in yet must be able to make the key for it, and sees nothing else.
    app.include_router(key_routes(box, pages, passkeys, random))
    app.include_router(act_routes(box), dependencies=inside)
    app.include_router(view_routes(box, pages, passkeys), dependencies=inside)
    _handle_failures(app, pages)
    return Guard(SessionGate(app, shelf, settings), settings, clock)


def _handle_failures(app: FastAPI, pages: Pages) -> None:
    def say(request: Request, error: SecureHealthError) -> Response:
        if _from_script(request):
            return failure_json(error)
        return pages.failure(error, _stranded(request))

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, SecureHealthError)  # noqa: S101 - as registered below
        _log.info("console_request_failed", code=error.code)
        return say(request, error)

    async def lost(request: Request, _: Exception) -> Response:
        if SESSION not in request.scope:  # beside the assets
            return Response(status_code=HTTPStatus.NOT_FOUND)
        return say(request, no_such_page())

    async def at_the_door(request: Request, _: Exception) -> Response:
        if _from_script(request):
            return JSONResponse({"to": SIGN_IN}, HTTPStatus.UNAUTHORIZED)
        return RedirectResponse(SIGN_IN, HTTPStatus.SEE_OTHER)

    async def broke(request: Request, error: Exception) -> Response:
        _log.error("console_request_broke", exc_info=error)
        return say(request, _internal())

    app.add_exception_handler(SecureHealthError, failed)
    app.add_exception_handler(RequestValidationError, lost)
    app.add_exception_handler(HTTPException, lost)
    app.add_exception_handler(_AtTheDoor, at_the_door)
    app.add_exception_handler(Exception, broke)


def _from_script(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/json")


def _stranded(request: Request) -> Asked:
    """The reader of a failure's page, whose form was perhaps never read."""
    session: Session = request.scope[SESSION]
    language = session.language or preferred(request.headers.get("accept-language", ""))
    return Asked(session, language, request.url.path)


def _internal() -> SoftwareError:
    return SoftwareError(
        "console.internal",
        "The console failed at this request.",
        next_step="Try again; if it repeats, report it with the console's log.",
    )
