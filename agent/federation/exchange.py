"""One HTTPS exchange under limits that are ours: size, time, no redirect, no compression, no surprise proxy."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from agent.core.errors import OperatorError
from agent.core.wire import PART_BYTES
from agent.federation.faults import OversizeAnswerError, UnreachableError

RESPONSE_BYTES = PART_BYTES + (64 << 10)
"""Greatest body accepted: one part of a frame and what protobuf and Flower wrap around it."""


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Bounds of one exchange.

    Args:
        connect_timeout_s: To a TCP and TLS connection.
        step_timeout_s: For any one read or write.
        call_timeout_s: For the whole answer, so that one that drips does not hold us.
        response_bytes: Greatest body.
    """

    connect_timeout_s: float = 5.0
    step_timeout_s: float = 20.0
    call_timeout_s: float = 120.0
    response_bytes: int = RESPONSE_BYTES

    def shortened(self, limit_s: float) -> ExchangeLimits:
        """The same with no time longer than `limit_s`."""
        times = (self.connect_timeout_s, self.step_timeout_s, self.call_timeout_s)
        connect, step, call = (min(value, limit_s) for value in times)
        return ExchangeLimits(connect, step, call, self.response_bytes)


class BoundedExchange:
    """A pool of TLS connections to one server; thread-safe."""

    def __init__(self, root_certificates: Path, *, proxy: str | None, limits: ExchangeLimits) -> None:
        self._limits = limits
        self._client = httpx.Client(
            verify=load_trust(root_certificates),
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
            timeout=httpx.Timeout(limits.step_timeout_s, connect=limits.connect_timeout_s),
        )

    def send(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and read the whole answer.

        Raises:
            UnreachableError: No connection, no trust, or no whole answer in time.
            OversizeAnswerError: The answer is larger than the limit.
        """
        request.headers["accept-encoding"] = "identity"
        request.extensions["timeout"] = self._client.timeout.as_dict()
        deadline_s = time.monotonic() + self._limits.call_timeout_s
        try:
            response = self._client.send(request, stream=True)
            try:
                body = b"".join(self._chunks(response, deadline_s))
            finally:
                response.close()
        # A client that another thread closed says RuntimeError.
        except (httpx.TransportError, RuntimeError) as error:
            raise _unreachable(error, request) from error
        return httpx.Response(response.status_code, headers=_passive(response), content=body, request=request)

    def _chunks(self, response: httpx.Response, deadline_s: float) -> Iterator[bytes]:
        size = 0
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > self._limits.response_bytes:
                raise _oversize(self._limits.response_bytes)
            if time.monotonic() > deadline_s:
                raise _slow(self._limits.call_timeout_s)
            yield chunk

    def close(self) -> None:
        """Close all connections; exchanges under way fail."""
        self._client.close()


def load_trust(root_certificates: Path) -> ssl.SSLContext:
    """Trust exactly the roots in this PEM file.

    Raises:
        OperatorError: The file is missing or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=str(root_certificates))
    except (OSError, ssl.SSLError) as error:
        raise OperatorError(
            "fleet.no_root_certificates",
            f"The root certificates in {root_certificates} cannot be used: {error}.",
            next_step="Put the consortium's root certificate (PEM) there, as the operator published it.",
        ) from error
    return context


def _passive(response: httpx.Response) -> list[tuple[str, str]]:
    """Headers that say nothing about how the body was packed: it is read raw."""
    active = {"content-encoding", "content-length", "transfer-encoding"}
    return [(name, value) for name, value in response.headers.multi_items() if name.lower() not in active]


def _unreachable(error: Exception, request: httpx.Request) -> UnreachableError:
    where = request.url.netloc.decode("ascii")
    if refusal := _tls_refusal(error):
        return UnreachableError(
            "fleet.tls_refused",
            f"The server at {where} is not the SuperLink that this node trusts: {refusal}.",
            next_step="If the consortium changed its root certificate, install the new one; else suspect the network.",
        )
    return UnreachableError(
        "fleet.unreachable",
        f"The SuperLink at {where} does not answer ({type(error).__name__}: {error}).",
        next_step="The node keeps trying by itself. If it lasts, check the network, the firewall and the proxy.",
    )


def _slow(limit_s: float) -> UnreachableError:
    return UnreachableError(
        "fleet.slow_answer",
        f"An answer of the SuperLink took longer than {limit_s:g} s, and was cut off.",
        next_step="The node keeps trying by itself. If it repeats, have the line to the SuperLink checked.",
    )


def _oversize(limit_bytes: int) -> OversizeAnswerError:
    return OversizeAnswerError(
        "fleet.oversize_answer",
        f"An answer of the SuperLink was larger than {limit_bytes} bytes, and was cut off.",
        next_step="The node goes on with the next message. If it repeats, tell the consortium's operator.",
    )


def _tls_refusal(error: BaseException) -> str | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None
