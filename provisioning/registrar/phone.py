"""Pages for a technician's telephone, and what boxes without a camera ask (`provisioning.registrar.pairing`).

GET  /approve/<pairing>              the code is typed here     POST .../options {code}   POST .../approval {answer}
GET  /approve/passkey/<invitation>   a new passkey              POST .../options          POST .../registration {answer}
POST /v1/sites/<site>/passkeys       a hospital invites a technician
POST /v1/pairings                    PUT /v1/pairings/<id>/nonce    GET /v1/pairings/<id>
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agent.core.base64url import encode_bytes
from agent.core.ids import SiteID
from agent.web.assets import asset_answer, assets
from provisioning.registrar.access import parse_bearer
from provisioning.registrar.asked import Admission, AskedRequest
from provisioning.registrar.messages import BrowserMessage, NonceMessage, PairingMessage, TypedMessage, parse_message
from provisioning.registrar.pairing import PairingDesk, PairingState

_PAGES: Final = Path(__file__).with_name("pages")
_ASSETS: Final = assets(_PAGES, "page.css", "page.js")
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)


def phone_routes(desk: PairingDesk, consortium: str, admitted: Admission) -> APIRouter:
    """The routes.

    Args:
        desk: Does the work.
        consortium: Its name, for people.
        admitted: Verifies that a hospital asks.
    """
    router = APIRouter()
    router.include_router(_pages(consortium))
    router.include_router(_technicians(desk))
    router.include_router(_boxes(desk))

    @router.post("/v1/sites/{site}/passkeys", dependencies=[Depends(admitted)])
    def invite(site: str) -> JSONResponse:
        return JSONResponse({"invitation": desk.invite(SiteID(site))}, HTTPStatus.CREATED)

    @router.delete("/v1/sites/{site}/passkeys", dependencies=[Depends(admitted)])
    def forget(site: str) -> JSONResponse:
        return JSONResponse({"forgotten": desk.forget_passkeys(SiteID(site))})

    return router


def _pages(consortium: str) -> APIRouter:
    templates = Environment(loader=FileSystemLoader(_PAGES), autoescape=True, undefined=StrictUndefined)
    router = APIRouter(prefix="/approve")

    def page(name: str) -> HTMLResponse:
        text = templates.get_template(name).render(consortium=consortium)
        return HTMLResponse(text, headers={"content-security-policy": _POLICY})

    @router.get("/assets/{name}")
    def asset(name: str) -> Response:
        return asset_answer(_ASSETS.get(name))

    @router.get("/passkey/{_}")
    def passkey_page() -> HTMLResponse:
        return page("passkey.html")

    @router.get("/{_}")
    def approval_page() -> HTMLResponse:
        return page("approval.html")

    return router


def _technicians(desk: PairingDesk) -> APIRouter:
    router = APIRouter(prefix="/approve")

    @router.post("/passkey/{invitation}/options")
    def passkey_options(invitation: str) -> JSONResponse:
        return JSONResponse(dict(desk.ask_passkey(invitation).options))

    @router.post("/passkey/{invitation}/registration")
    def registration(invitation: str, asked: AskedRequest) -> JSONResponse:
        site = desk.add_passkey(invitation, parse_message(BrowserMessage, asked.body).answer)
        return JSONResponse({"site": site})

    @router.post("/{pairing}/options")
    def approval_options(pairing: str, asked: AskedRequest) -> JSONResponse:
        return JSONResponse(dict(desk.ask(pairing, parse_message(TypedMessage, asked.body).code).options))

    @router.post("/{pairing}/approval")
    def approval(pairing: str, asked: AskedRequest) -> JSONResponse:
        site, words = desk.approve(pairing, parse_message(BrowserMessage, asked.body).answer)
        return JSONResponse({"site": site, "words": words})

    return router


def _boxes(desk: PairingDesk) -> APIRouter:
    router = APIRouter(prefix="/v1/pairings")

    @router.post("")
    def begin(asked: AskedRequest) -> JSONResponse:
        message = parse_message(PairingMessage, asked.body)
        name, commitment = desk.begin(message.secret, message.subject, message.link_key)
        fields = {"pairing": name, "commitment": encode_bytes(commitment)}
        return JSONResponse(fields, HTTPStatus.CREATED)

    @router.put("/{name}/nonce")
    def reveal(name: str, asked: AskedRequest) -> JSONResponse:
        secret, message = parse_bearer(asked.authorization), parse_message(NonceMessage, asked.body)
        return JSONResponse({"nonce": encode_bytes(desk.reveal(name, secret, message.nonce))})

    @router.get("/{name}")
    def situation(name: str, asked: AskedRequest) -> JSONResponse:
        pairing = desk.situation(name, parse_bearer(asked.authorization))
        fields: dict[str, Any] = {"state": pairing.state.value}
        if pairing.state is PairingState.APPROVED:
            fields["token"] = pairing.token
        return JSONResponse(fields)

    return router
