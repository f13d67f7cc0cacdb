"""The cosigner over HTTPS: `POST /v1/cosignatures` takes a proposal in CBOR, and answers signatures in JSON."""

from __future__ import annotations

import tomllib
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.signer import Signature
from starlette.types import ASGIApp

from agent.core.clock import Clock
from agent.core.config import Address, LocalPath
from agent.core.errors import Fault, OperatorError, PeerProtocolError, SecureHealthError
from agent.core.validation import explain_invalid
from provisioning.authority.cosigner import Cosigner
from provisioning.authority.repository import Proposal, parse_proposal
from provisioning.registrar.guard import Guard
from provisioning.registrar.settings import KeyURIText

PATH: Final = "/v1/cosignatures"
MAX_SETTINGS_BYTES: Final = 1 << 16
_STATUS: Final = {Fault.PEER: HTTPStatus.CONFLICT, Fault.OPERATOR: HTTPStatus.CONFLICT}


class CosignerTLS(BaseModel):
    """The cosigner's certificate, PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: LocalPath
    key: LocalPath


class CosignerSettings(BaseModel):
    """`cosigner.toml`; relative paths begin at the file's directory.

    Args:
        listen: `host:port` to listen on.
        state: Its memory.
        key: Signs timestamp and snapshot.
        passphrase_file: Opens the key's file; the credential `passphrase` of the unit where left out.
        tls: Its certificate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Address
    state: LocalPath
    key: KeyURIText
    passphrase_file: LocalPath | None = None
    tls: CosignerTLS


class SignatureAnswer(BaseModel):
    """One signature."""

    model_config = ConfigDict(frozen=True)

    keyid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sig: Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){8,256}$")]

    @property
    def signature(self) -> Signature:
        """As metadata carries it."""
        return Signature(self.keyid, self.sig)


class CosignatureAnswer(BaseModel):
    """What the cosigner answers."""

    model_config = ConfigDict(frozen=True)

    timestamp: SignatureAnswer
    snapshot: SignatureAnswer | None = None


class Refusal(BaseModel):
    """Why it does not sign."""

    model_config = ConfigDict(frozen=True)

    code: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,100}$")]
    sentence: Annotated[str, Field(max_length=1000)]
    next_step: Annotated[str, Field(max_length=1000)] = ""


def cosigner_app(cosigner: Cosigner, clock: Clock) -> ASGIApp:
    """The service.

    Args:
        cosigner: Signs.
        clock: For rates.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.post(PATH)
    async def cosign(request: Request) -> JSONResponse:
        try:
            proposal = _parse(await request.body())
            made = await run_in_threadpool(cosigner.cosign, proposal)
        except SecureHealthError as error:
            status = _STATUS.get(error.fault, HTTPStatus.SERVICE_UNAVAILABLE)
            refusal = Refusal(code=error.code, sentence=error.sentence[:1000], next_step=error.next_step)
            return JSONResponse(refusal.model_dump(), status)
        answer = CosignatureAnswer(
            timestamp=_answer(made.timestamp), snapshot=None if made.snapshot is None else _answer(made.snapshot)
        )
        return JSONResponse(answer.model_dump())

    return Guard(app, clock)


def load_cosigner_settings(path: Path) -> CosignerSettings:
    """Read `cosigner.toml`.

    Raises:
        OperatorError: It cannot be read, or is malformed (`cosigner.bad_settings`).
    """
    try:
        with path.open("rb") as stream:
            table = tomllib.loads(stream.read(MAX_SETTINGS_BYTES).decode())
        return CosignerSettings.model_validate(table, context={"directory": path.parent})
    except OSError as error:
        raise _bad_settings(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise _bad_settings(explain_invalid(error, whole="settings")) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad_settings(f"it is no TOML: {error}") from error


def _parse(data: bytes) -> Proposal:
    try:
        return parse_proposal(data)
    except ValueError as error:
        raise _bad_proposal() from error


def _answer(signature: Signature) -> SignatureAnswer:
    return SignatureAnswer(keyid=signature.keyid, sig=signature.signature)


def _bad_proposal() -> PeerProtocolError:
    return PeerProtocolError(
        "cosigner.bad_proposal",
        "The cosigner cannot read what it is to sign.",
        next_step="See that registrar and cosigner run the same version.",
    )


def _bad_settings(what: str) -> OperatorError:
    return OperatorError(
        "cosigner.bad_settings",
        f"The cosigner's settings cannot be used: {what}.",
        next_step="Correct the file; founding the consortium wrote a whole one.",
    )
