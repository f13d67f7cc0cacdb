"""The registrar's HTTP interface, under /v1; the repository itself under /repository/, read only.

    GET  /v1/ca.pem
    POST /v1/enrolments                               GET  /v1/enrolments/<id>
    PUT  /v1/enrolments/<id>/evidence                 PUT  /v1/enrolments/<id>/activation
    PUT  /v1/enrolments/<id>/endorsement/evidence     PUT  /v1/enrolments/<id>/endorsement/activation
    POST /v1/heartbeats
    POST /v1/sites/<site>/tokens                      GET  /v1/sites/<site>/enrolments
    POST /v1/sites/<site>/enrolments/<id>/exchange    .../credential    .../refusal
    POST /v1/sites/<site>/metadata

Boxes authorise themselves with their token's secret, hospitals with a request that their key signs
(`provisioning.registrar.access`), enrolled boxes by their session key (`provisioning.registrar.heartbeats`). Every
answer that is no success is {"code", "sentence", "next_step"}.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from agent.attestation.credential import Credential
from agent.core.base64url import encode_bytes
from agent.core.clock import Clock
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.ids import SiteID
from provisioning.registrar.access import parse_bearer
from provisioning.registrar.asked import Admission, AskedRequest
from provisioning.registrar.challenge import Enrolment, State
from provisioning.registrar.desk import RegistrarDesk
from provisioning.registrar.files import file_routes, no_such_place
from provisioning.registrar.guard import Guard, error_answer
from provisioning.registrar.messages import (
    AnswerMessage,
    CredentialMessage,
    ExchangeMessage,
    HeartbeatMessage,
    MetadataMessage,
    OpeningMessage,
    RefusalMessage,
    SiteEvidenceMessage,
    parse_message,
)
from provisioning.registrar.pairing import PairingDesk
from provisioning.registrar.phone import phone_routes
from provisioning.tokens.token import TokenEntry


def create_app(
    desk: RegistrarDesk, pairing: PairingDesk, *, consortium: str, authority: bytes, repository: Path, clock: Clock
) -> ASGIApp:
    """Build the application.

    Args:
        desk: Does the work.
        pairing: Pairs boxes that have no token with technicians.
        consortium: Its name, for people.
        authority: Certificate (PEM) of the TLS authority, as tokens pin it.
        repository: The directory that is served.
        clock: For rates.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(_boxes(desk, authority))
    admitted = _admission(desk)
    app.include_router(_sites(desk, admitted))
    app.include_router(phone_routes(pairing, consortium, admitted))
    app.include_router(file_routes(repository))
    app.add_exception_handler(SecureHealthError, _say)
    app.add_exception_handler(HTTPException, _say_place)
    return Guard(app, clock)


def _boxes(desk: RegistrarDesk, authority: bytes) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/ca.pem")
    def ca_pem() -> Response:
        return Response(authority, media_type="application/x-pem-file")

    @router.post("/enrolments", status_code=HTTPStatus.CREATED)
    def enrol(asked: AskedRequest) -> JSONResponse:
        known = desk.open(parse_message(OpeningMessage, asked.body).opening)
        answer = {"enrolment": known.id, "nonce": encode_bytes(known.nonce), "state": known.state.value}
        return JSONResponse(answer, HTTPStatus.CREATED)

    @router.get("/enrolments/{name}")
    def situation(name: str, asked: AskedRequest) -> JSONResponse:
        return JSONResponse(_situation(desk.enrolment(name, parse_bearer(asked.authorization))))

    @router.put("/enrolments/{name}/evidence")
    def evidence(name: str, asked: AskedRequest) -> JSONResponse:
        known = desk.take_evidence(name, parse_bearer(asked.authorization), asked.body)
        credential = known.credential if known.state is State.CHALLENGED else None
        return JSONResponse({} if credential is None else {"credential": _credential(credential)})

    @router.put("/enrolments/{name}/activation")
    def activation(name: str, asked: AskedRequest) -> JSONResponse:
        secret, message = parse_bearer(asked.authorization), parse_message(AnswerMessage, asked.body)
        desk.take_activation(name, secret, message.answer)
        return JSONResponse({})

    @router.put("/enrolments/{name}/endorsement/evidence")
    def site_evidence(name: str, asked: AskedRequest) -> JSONResponse:
        secret, message = parse_bearer(asked.authorization), parse_message(SiteEvidenceMessage, asked.body)
        desk.take_site_evidence(name, secret, message.evidence, message.proof)
        return JSONResponse({})

    @router.put("/enrolments/{name}/endorsement/activation")
    def site_activation(name: str, asked: AskedRequest) -> JSONResponse:
        secret, message = parse_bearer(asked.authorization), parse_message(AnswerMessage, asked.body)
        desk.take_site_answer(name, secret, message.answer)
        return JSONResponse({})

    @router.post("/heartbeats")
    def heartbeat(asked: AskedRequest) -> JSONResponse:
        message = parse_message(HeartbeatMessage, asked.body)
        desk.take_heartbeat(message.certificate.encode(), message.heartbeat.encode())
        return JSONResponse({})

    return router


def _admission(desk: RegistrarDesk) -> Admission:
    """Verifies that a hospital asks; gives the id of the key that signed."""

    async def admitted(site: str, asked: AskedRequest) -> str:
        return await run_in_threadpool(desk.admit, SiteID(site), asked)

    return admitted


def _sites(desk: RegistrarDesk, admitted: Admission) -> APIRouter:
    """A dependency comes first in each: who asks is verified before anything of the body is parsed."""
    router = APIRouter(prefix="/v1/sites/{site}")
    signer_of = Depends(admitted)

    @router.post("/tokens", dependencies=[signer_of])
    def add_token(site: str, asked: AskedRequest) -> JSONResponse:
        desk.add_token(SiteID(site), parse_message(TokenEntry, asked.body))
        return JSONResponse({}, HTTPStatus.CREATED)

    @router.get("/enrolments", dependencies=[signer_of])
    def waiting(site: str) -> JSONResponse:
        return JSONResponse({"enrolments": desk.waiting(SiteID(site))})

    @router.post("/enrolments/{name}/exchange")
    def exchange(site: str, name: str, asked: AskedRequest, signer: str = signer_of) -> JSONResponse:
        message = parse_message(ExchangeMessage, asked.body)
        if message.asker_key != signer:
            raise OperatorError(
                "registrar.another_asker",
                "A hospital asks a box with the key that signs the asking, and with no other.",
                next_step="Use one key for both.",
            )
        return JSONResponse(_situation(desk.ask(SiteID(site), name, message.asker_key, message.nonce)))

    @router.post("/enrolments/{name}/credential", dependencies=[signer_of])
    def credential(site: str, name: str, asked: AskedRequest) -> JSONResponse:
        given = parse_message(CredentialMessage, asked.body).credential
        return JSONResponse(_situation(desk.give_credential(SiteID(site), name, given)))

    @router.post("/enrolments/{name}/refusal", dependencies=[signer_of])
    def refusal(site: str, name: str, asked: AskedRequest) -> JSONResponse:
        return JSONResponse(
            _situation(desk.refuse(SiteID(site), name, parse_message(RefusalMessage, asked.body).refusal))
        )

    @router.post("/metadata", dependencies=[signer_of])
    def metadata(site: str, asked: AskedRequest) -> JSONResponse:
        message = parse_message(MetadataMessage, asked.body)
        endorsed = desk.publish(SiteID(site), message.metadata, message.targets)
        return JSONResponse({"endorsed": [known.id for known in endorsed]})

    return router


def _situation(known: Enrolment) -> dict[str, object]:
    fields: dict[str, object] = {"state": known.state.value}
    if known.talk.asker_key:  # the talk is over once the box is endorsed or refused
        fields["exchange"] = {"asker_key": known.talk.asker_key, "nonce": encode_bytes(known.talk.nonce)}
    if known.state is State.CREDENTIALED and known.talk.credential is not None:
        fields["credential"] = _credential(known.talk.credential)
    if known.refusal is not None:
        fields["refusal"] = {"sentence": known.refusal.sentence, "next_step": known.refusal.next_step}
    return fields


def _credential(credential: Credential) -> dict[str, str]:
    return {"blob": encode_bytes(credential.blob), "encrypted_seed": encode_bytes(credential.encrypted_seed)}


async def _say(_: Request, error: Exception) -> Response:
    assert isinstance(error, SecureHealthError)  # noqa: S101 - registered for nothing else
    return error_answer(error)


async def _say_place(_: Request, error: Exception) -> Response:
    # 404 and 405 alike: what there is does not depend on how one asks.
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
    answer = error_answer(no_such_place())
    answer.status_code = status
    return answer
