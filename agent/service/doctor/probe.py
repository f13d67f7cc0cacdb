"""Reaching a server as the agent does, through the hospital's proxy or not; each step can fail in its own way."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from agent.core.errors import NetworkError, OperatorError
from agent.service.doctor.box import Server

STEP_LIMIT_S: Final = 10.0
PROXY_WANTS_PASSWORD: Final = 407
_UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})  # X509_V_ERR_* of openssl/x509_vfy.h
_TUNNEL_FAILED: Final = "Tunnel connection failed: "


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a server showed itself.

    Args:
        refusal: Why its certificate does not count; empty where it does.
        foreign: Whether it comes from an authority that is not the server's.
        issuer: Who issued it, as it says itself.
        date_s: What its clock says, in seconds since 1970; None where it does not tell.
    """

    refusal: str
    foreign: bool
    issuer: str
    date_s: float | None


def shake_hands(server: Server, proxy: str | None) -> Handshake:
    """Connect to a server, look at its certificate, and ask it for the time.

    Args:
        server: Which.
        proxy: The hospital's HTTP proxy.

    Raises:
        NetworkError: It does not answer, or not as a server does.
        OperatorError: The proxy lets nobody through to it.
    """
    refusal, foreign, issuer = "", False, ""
    try:
        with closing(_connected(server, proxy, _trust(server.authority))) as line:
            return Handshake("", foreign=False, issuer="", date_s=_ask_date(line))
    except ssl.SSLCertVerificationError as error:
        refusal, foreign = error.verify_message, error.verify_code in _UNKNOWN_ISSUER
    with closing(_connected(server, proxy, _trust(None))) as line:
        assert isinstance(line.sock, ssl.SSLSocket)  # noqa: S101 - for the type checker
        issuer = _issuer(line.sock.getpeercert(binary_form=True) or b"")
        return Handshake(refusal, foreign, issuer, _ask_date(line))


def tunnel(server: Server, proxy: str | None) -> http.client.HTTPConnection:
    """Connect to a server, without TLS; the caller closes it.

    Raises:
        NetworkError: It does not answer.
        OperatorError: The proxy lets nobody through to it.
    """
    way = None if proxy is None else urlsplit(proxy)
    host, port = (server.host, server.port) if way is None else (way.hostname or "", way.port or _default(way.scheme))
    line = http.client.HTTPConnection(host, port, timeout=STEP_LIMIT_S)
    if way is not None:
        headers = {}
        if way.username is not None:
            words = f"{unquote(way.username)}:{unquote(way.password or '')}".encode()
            headers["proxy-authorization"] = f"Basic {base64.b64encode(words).decode()}"
        line.set_tunnel(server.host, server.port, headers)
    try:
        line.connect()
    except OSError as error:
        line.close()
        if str(error).startswith(_TUNNEL_FAILED):
            raise _proxy_refuses(server, str(error).removeprefix(_TUNNEL_FAILED)) from error
        raise silent(server if way is None else Server("proxy", f"{host}:{port}", b""), error) from error
    return line


def _connected(server: Server, proxy: str | None, trust: ssl.SSLContext) -> http.client.HTTPConnection:
    line = tunnel(server, proxy)
    try:
        line.sock = trust.wrap_socket(line.sock, server_hostname=server.host)
    except ssl.SSLCertVerificationError:
        line.close()
        raise
    except OSError as error:
        line.close()
        raise silent(server, error) from error
    return line


def _ask_date(line: http.client.HTTPConnection) -> float | None:
    try:
        line.request("HEAD", "/")
        date = line.getresponse().getheader("date")
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (OSError, http.client.HTTPException, ValueError):
        return None  # what matters here is that it shook hands


def _trust(authority: bytes | None) -> ssl.SSLContext:
    """Trust exactly one authority (PEM); None trusts anybody, and learns who it was."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif authority:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    return context


def _issuer(certificate: bytes) -> str:
    try:
        names = x509.load_der_x509_certificate(certificate).issuer
        found = names.get_attributes_for_oid(NameOID.ORGANIZATION_NAME) + names.get_attributes_for_oid(
            NameOID.COMMON_NAME
        )
    except ValueError:
        return "somebody unknown"
    text = ", ".join(str(name.value) for name in found) or "somebody unknown"
    return "".join(letter if letter.isprintable() else " " for letter in text[:100])


def _default(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def silent(server: Server, error: OSError) -> NetworkError:
    """The failure of a server that does not answer."""
    why = "it took too long" if isinstance(error, socket.timeout) else error.strerror or type(error).__name__
    return NetworkError(
        "doctor.no_answer",
        f"The {server.name} at {server.address} does not answer: {why}.",
        next_step="Check the cable, and that the hospital's firewall lets this box connect there.",
    )


def _proxy_refuses(server: Server, answer: str) -> OperatorError:
    if answer.startswith(str(PROXY_WANTS_PASSWORD)):
        return OperatorError(
            "doctor.proxy_wants_password",
            "The hospital's proxy wants a name and a password, or other ones than it is given.",
            next_step='Write them into the configuration: [network] proxy = "http://name:password@host:port".',
        )
    return OperatorError(
        "doctor.proxy_refuses",
        f"The hospital's proxy lets nobody through to the {server.name} at {server.address}: it answers {answer[:60]}.",
        next_step="Have the network department let this box through to that address, by CONNECT.",
    )
