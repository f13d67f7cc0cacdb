"""The line to the registrar: HTTPS under one pinned authority, bounded in size and time, tried again while down."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.clock import Clock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.enrolment.progress import Progress, Step, Tell

MAX_ANSWER_BYTES: Final = 1 << 18
MAX_AUTHORITY_BYTES: Final = 1 << 16
CONNECT_LIMIT_S: Final = 5.0
STEP_LIMIT_S: Final = 15.0
ANSWER_LIMIT_S: Final = 30.0
"""For a whole answer, so that one that drips does not hold us."""
RETRY_FIRST_S: Final = 0.5
RETRY_CAP_S: Final = 30.0
_PASSING: Final = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}

_NO_INSPECTION: Final = "See that no device on the hospital's network opens TLS connections; else ask the consortium."

Wait = Callable[[float], bool]
"""Waits so many seconds; returns whether the enrolment was told to stop."""
ResultT = TypeVar("ResultT")


class EnrolmentStoppedError(Exception):
    """The enrolment was told to stop; it is resumed from where it was."""


class _Refusal(BaseModel):
    model_config = ConfigDict(frozen=True)

    code: str = Field(pattern=r"^[a-z0-9_.]{1,100}$")
    sentence: str = Field(max_length=1000)
    next_step: str = Field(max_length=1000)


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Args:
        method: HTTP method.
        path: From the server's root.
        body: As sent.
        content_type: Of the body.
        secret: Authorises it; empty where nothing does.
    """

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    secret: str = ""


class RegistrarLine:
    """Requests to one registrar.

    Args:
        address: `host:port`.
        trust: Whose certificates count.
        proxy: The hospital's HTTP proxy.
        clock: For limits.
    """

    def __init__(self, address: str, trust: ssl.SSLContext, *, proxy: str | None, clock: Clock) -> None:
        self._address = address
        self._clock = clock
        self._client = httpx.Client(
            base_url=f"https://{address}",
            verify=trust,
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            timeout=httpx.Timeout(STEP_LIMIT_S, connect=CONNECT_LIMIT_S),
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def fetch(self, path: str, *, limit_bytes: int) -> bytes:
        """Fetch a file.

        Raises:
            NetworkError: No answer (`enrolment.unreachable`), or not now (`enrolment.busy`).
            PeerProtocolError: No trust, or no such answer as wanted.
        """
        return self._send(Request("GET", path), limit_bytes)

    def call(self, request: Request) -> object:
        """Ask, and read the JSON of the answer.

        Raises:
            NetworkError: See `fetch`.
            OperatorError: The registrar refuses, and says why (`enrolment.refused`).
            PeerProtocolError: No trust, or no such answer as wanted.
        """
        data = self._send(request, MAX_ANSWER_BYTES)
        try:
            return json.loads(data or b"{}")
        except (ValueError, RecursionError) as error:
            raise bad_answer("no JSON") from error

    def _send(self, request: Request, limit_bytes: int) -> bytes:
        headers = {"authorization": f"Bearer {request.secret}"} if request.secret else {}
        if request.body:
            headers["content-type"] = request.content_type
        end_s = self._clock.monotonic_s() + ANSWER_LIMIT_S
        try:
            with self._client.stream(
                request.method, request.path, content=request.body or None, headers=headers
            ) as response:
                body = b"".join(self._chunks(response, limit_bytes, end_s))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.status_code in _PASSING:
            raise self._busy()
        if response.is_success:
            return body
        raise _refused(response.status_code, body)

    def _chunks(self, response: httpx.Response, limit_bytes: int, end_s: float) -> Iterator[bytes]:
        size = 0
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > limit_bytes:
                raise bad_answer(f"more than {limit_bytes} bytes")
            if self._clock.monotonic_s() > end_s:
                raise NetworkError(
                    "enrolment.slow_answer",
                    f"An answer of the registrar at {self._address} took longer than {ANSWER_LIMIT_S:g} s.",
                    next_step="The box tries again by itself. If it lasts, have the line to the registrar checked.",
                )
            yield chunk

    def _unreachable(self, error: Exception) -> NetworkError | PeerProtocolError:
        if refusal := _tls_refusal(error):
            return PeerProtocolError(
                "enrolment.not_the_registrar",
                f"The server at {self._address} does not have the certificate of the registrar: {refusal}.",
                next_step=_NO_INSPECTION,
            )
        return NetworkError(
            "enrolment.unreachable",
            f"The registrar at {self._address} does not answer ({type(error).__name__}).",
            next_step="The box keeps trying by itself. If it lasts, check the cable, the firewall and the proxy.",
        )

    def _busy(self) -> NetworkError:
        return NetworkError(
            "enrolment.busy",
            f"The registrar at {self._address} is busy, and asks to come back later.",
            next_step="The box tries again by itself; nothing is lost.",
        )


def fetch_authority(address: str, pin: bytes, *, proxy: str | None, clock: Clock) -> bytes:
    """Fetch the authority's certificate from a server that nobody vouches for yet, and compare it with the token's pin.

    Nothing but this one request goes over the unverified line.

    Args:
        address: `host:port`.
        pin: (32,), SHA-256 of the certificate (DER).
        proxy: The hospital's HTTP proxy.
        clock: For limits.

    Returns:
        The certificate, PEM.

    Raises:
        NetworkError: No answer.
        PeerProtocolError: Another certificate (`enrolment.wrong_pin`), or none.
    """
    open_to_all = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    open_to_all.check_hostname = False
    open_to_all.verify_mode = ssl.CERT_NONE
    with closing(RegistrarLine(address, open_to_all, proxy=proxy, clock=clock)) as line:
        data = line.fetch("/v1/ca.pem", limit_bytes=MAX_AUTHORITY_BYTES)
    return check_authority(data, pin, address)


def check_authority(data: bytes, pin: bytes, address: str) -> bytes:
    """Compare an authority's certificate with the token's pin; returns it, PEM, and nothing else that came with it.

    Raises:
        PeerProtocolError: It is another one (`enrolment.wrong_pin`).
    """
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise _wrong_pin(address) from error
    if not hmac.compare_digest(hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest(), pin):
        raise _wrong_pin(address)
    return certificate.public_bytes(Encoding.PEM)


def trust_in(authority: bytes) -> ssl.SSLContext:
    """Trust exactly one authority (PEM)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


class Patience:
    """Tries again while the network is down, says so every time, and waits longer each time.

    Args:
        wait: Waits.
        tell: Told why.
        dice: Source of jitter, so that a hospital's boxes do not fall into step.
    """

    def __init__(self, wait: Wait, tell: Tell, dice: random.Random) -> None:
        self._wait = wait
        self._tell = tell
        self._dice = dice

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            EnrolmentStoppedError: Told to stop.
        """
        if self._wait(seconds):
            raise EnrolmentStoppedError

    def insist(self, step: Step, work: Callable[[], ResultT]) -> ResultT:
        """Do `work` until the network lets it through.

        Args:
            step: Where the enrolment stands.
            work: May be repeated; raises `NetworkError` where that helps.

        Raises:
            EnrolmentStoppedError: Told to stop while waiting.
        """
        pause_s = RETRY_FIRST_S
        while True:
            try:
                return work()
            except NetworkError as error:
                self._tell(Progress(step, error.sentence, error.next_step, error.code))
            self.pause(pause_s * self._dice.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, RETRY_CAP_S)


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_answer(kind: type[ModelT], answer: object) -> ModelT:
    """Read an answer's JSON.

    Raises:
        PeerProtocolError: It is something else (`enrolment.bad_answer`).
    """
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise bad_answer("other fields than belong there") from error


def encode_fields(fields: Mapping[str, str]) -> bytes:
    """A request's JSON."""
    return json.dumps(fields).encode()


def bad_answer(what: str) -> PeerProtocolError:
    """The failure of an answer that a registrar does not give."""
    return PeerProtocolError(
        "enrolment.bad_answer",
        f"The registrar answered with what no registrar of this version says: {what}.",
        next_step="Try again. If it repeats, ask the consortium whether registrar and box are of fitting releases.",
    )


def _refused(status: int, body: bytes) -> OperatorError | PeerProtocolError:
    try:
        refusal = _Refusal.model_validate_json(body)
    except ValidationError:
        return bad_answer(f"status {status}")
    return OperatorError(
        "enrolment.refused",
        f"The registrar refuses: {plain_text(refusal.sentence)}",
        next_step=plain_text(refusal.next_step),
        registrar_code=refusal.code,
    )


def plain_text(text: str) -> str:
    """A stranger's words as they may go to a terminal: no control character."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _wrong_pin(address: str) -> PeerProtocolError:
    return PeerProtocolError(
        "enrolment.wrong_pin",
        f"The server at {address} is not the registrar that the token names, so nothing was sent to it.",
        next_step=_NO_INSPECTION,
    )


def _tls_refusal(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None
