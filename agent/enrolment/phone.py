"""Joining without a camera or a stick: the box shows a code, and a technician approves it on a telephone.

Only for boxes whose image names the registrar and its consortium: there is no token to say so. What
comes of it is a token like any other, and counts no more than one that the registrar issued: the hospital's operator
compares the box's words before the hospital endorses.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from agent.attestation.pairing import NONCE_BYTES, commitment, pairing_code
from agent.core.base64url import encode_bytes
from agent.core.clock import Clock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.enrolment.conversation import Box
from agent.enrolment.line import RegistrarLine, Request, Wait, encode_fields, fetch_authority, parse_answer, trust_in
from agent.enrolment.messages import Nonce
from agent.statements.roots import public_key_bytes
from agent.trust.token import MAX_TOKEN_CHARACTERS

LIFETIME_S: Final = 300.0
POLL_S: Final = 1.0
SECRET_BYTES: Final = 32

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class PresetRegistrar:
    """The registrar that the box's image names.

    Args:
        address: `host:port`.
        tls_pin: (32,), SHA-256 of the certificate (DER) of the authority of its TLS certificate.
        proxy: The hospital's HTTP proxy.
    """

    address: str
    tls_pin: bytes
    proxy: str | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """What the box shows.

    Args:
        address: Of the page that the telephone opens.
        text: What the technician types there.
    """

    address: str
    text: str

    @property
    def grouped(self) -> str:
        """The text as people read it, and as the page shows it."""
        return f"{self.text[:4]}-{self.text[4:]}"


class _Begun(BaseModel):
    model_config = ConfigDict(frozen=True)

    pairing: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    commitment: Nonce


class _Revealed(BaseModel):
    model_config = ConfigDict(frozen=True)

    nonce: Nonce


class _Situation(BaseModel):
    model_config = ConfigDict(frozen=True)

    state: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    token: Annotated[str, Field(max_length=MAX_TOKEN_CHARACTERS)] = ""


def token_by_phone(
    box: Box,
    registrar: PresetRegistrar,
    clock: Clock,
    *,
    show: Callable[[Code], None],
    wait: Wait,
    random_bytes: RandomBytes,
) -> str:
    """Show a code, and wait until a technician has approved it.

    Args:
        box: What is to be enrolled.
        registrar: From the box's image.
        clock: For limits.
        show: Told what the box shows.
        wait: Waits so many seconds; returns whether to stop.
        random_bytes: `secrets.token_bytes`.

    Returns:
        The token's text.

    Raises:
        OperatorError: The code was typed wrongly, or nobody came in five minutes.
        PeerProtocolError: The registrar does not keep to the protocol.
        NetworkError: It does not answer.
    """
    authority = fetch_authority(registrar.address, registrar.tls_pin, proxy=registrar.proxy, clock=clock)
    trust = trust_in(authority)
    with closing(RegistrarLine(registrar.address, trust, proxy=registrar.proxy, clock=clock)) as line:
        path, code = _pair(line, box, registrar, random_bytes)
        show(code)
        return _await_approval(line, path, clock, wait)


@dataclass(frozen=True, slots=True)
class _Path:
    """One pairing at the registrar."""

    path: str
    secret: str


def _pair(line: RegistrarLine, box: Box, registrar: PresetRegistrar, random_bytes: RandomBytes) -> tuple[_Path, Code]:
    ek_name, key_name = box.key.evidence_names()
    secret = encode_bytes(random_bytes(SECRET_BYTES))
    fields = {"secret": secret} | box.fields(ek_name, key_name)
    begun = parse_answer(_Begun, line.call(Request("POST", "/v1/pairings", encode_fields(fields))))
    path = f"/v1/pairings/{begun.pairing}"
    # Ours is shown only now that the registrar is bound to its own: neither side can choose the code.
    ours = random_bytes(NONCE_BYTES)
    body = encode_fields({"nonce": encode_bytes(ours)})
    revealed = parse_answer(_Revealed, line.call(Request("PUT", f"{path}/nonce", body, secret=secret)))
    if not hmac.compare_digest(commitment(revealed.nonce), begun.commitment):
        raise PeerProtocolError(
            "enrolment.other_nonce",
            "The registrar changed its part of the code after it saw this box's.",
            next_step="Do not go on. Tell the consortium.",
        )
    link = public_key_bytes(box.link)
    text = pairing_code(ek_name, key_name, link, registrar_nonce=revealed.nonce, box_nonce=ours)
    return _Path(path, secret), Code(f"https://{registrar.address}/approve/{begun.pairing}", text)


def _await_approval(line: RegistrarLine, place: _Path, clock: Clock, wait: Wait) -> str:
    end_s = clock.monotonic_s() + LIFETIME_S
    while clock.monotonic_s() < end_s:
        situation = parse_answer(_Situation, line.call(Request("GET", place.path, secret=place.secret)))
        if situation.state == "approved" and situation.token:
            return situation.token
        if situation.state == "refused":
            raise OperatorError(
                "enrolment.wrong_code",
                "The code was typed wrongly, and counts no more.",
                next_step="Begin again; the box shows a new code.",
            )
        if wait(POLL_S):
            break
    raise OperatorError(
        "enrolment.nobody_approved",
        "Nobody approved this box within five minutes.",
        next_step="Begin again when somebody with a passkey of the hospital is there.",
    )
