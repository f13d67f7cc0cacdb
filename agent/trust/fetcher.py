"""Fetches the repository's files: bounded in size and time, through the hospital's proxy, believing nobody on the way.

Certificates are not verified here: all that is fetched is signed, and a box that was off for a year has no other way
back to the roots that TLS would need.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

import httpcore
from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

from agent.core.clock import Clock

_MAX_REFUSAL_BYTES: Final = 1 << 14
_CONTENT_RANGE: Final = re.compile(rb"bytes ([0-9]{1,15})-")
_FAULTS: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How long one file may take.

    Args:
        step_s: Without a single byte.
        start_s: For connecting and asking, beside the time that the bytes are given.
        bytes_per_s: The least average rate: a sender that drips is cut off, however steadily it drips.
    """

    step_s: float = 15.0
    start_s: float = 30.0
    bytes_per_s: float = 1 << 17


class BoundedFetcher(FetcherInterface):
    """A pool of connections to one repository. Thread-safe."""

    def __init__(self, clock: Clock, *, proxy: str | None = None, limits: FetchLimits | None = None) -> None:
        """Prepare; nothing is connected yet.

        Args:
            clock: For limits.
            proxy: `http://[user:password@]host:port` of the hospital's proxy.
            limits: Time.
        """
        self._limits = limits or FetchLimits()
        self._allowance = _Allowance(clock, self._limits)
        trust = _trust_anybody()
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            proxy=None if proxy is None else _parse_proxy(proxy, trust),
            max_connections=4,
            network_backend=_PacedBackend(self._allowance),
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def fetch_from(self, url: str, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Fetch a file from a place in it on, where the server can (RFC 9110 14.2); the caller bounds its length.

        Args:
            url: Of the file.
            offset: Where to begin.

        Yields:
            Where the answer begins, `offset` or 0, and its bytes.

        Raises:
            DownloadError: It cannot be fetched, also while its bytes are read.
            SlowRetrievalError: It comes too slowly.
        """
        with _translated(url), self._asked(url, offset) as response:
            if offset and response.status == HTTPStatus.PARTIAL_CONTENT:
                if _first_byte(response) != offset:
                    raise DownloadError(f"{url} is answered with another part than was asked for")
                yield offset, response.iter_stream()
            elif response.status == HTTPStatus.OK:
                yield 0, response.iter_stream()
            else:
                _drain(response)
                raise DownloadHTTPError(f"{url} is answered with status {response.status}", response.status)

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.fetch_from(url, 0) as (_, chunks):
            yield from chunks

    @contextmanager
    def _asked(self, url: str, offset: int) -> Iterator[httpcore.Response]:
        self._allowance.begin()
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), self._limits.step_s)
        headers = [("accept-encoding", "identity")]
        if offset:
            headers.append(("range", f"bytes={offset}-"))
        with self._pool.stream("GET", url, headers=headers, extensions={"timeout": timeout}) as response:
            yield response


class _Allowance(threading.local):
    """How long the file that this thread fetches may still take."""

    def __init__(self, clock: Clock, limits: FetchLimits) -> None:
        self._clock = clock
        self._limits = limits
        self._end_s = 0.0

    def begin(self) -> None:
        """Another file."""
        self._end_s = self._clock.monotonic_s() + self._limits.start_s

    def note(self, count: int) -> None:
        """So many bytes came."""
        self._end_s += count / self._limits.bytes_per_s

    def within(self, timeout_s: float | None, late: type[httpcore.TimeoutException]) -> float:
        """The time for one step.

        Raises:
            TimeoutException: There is none left.
        """
        left_s = self._end_s - self._clock.monotonic_s()
        if left_s <= 0:
            raise late
        return left_s if timeout_s is None else min(left_s, timeout_s)


class _PacedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, allowance: _Allowance) -> None:
        self._stream = stream
        self._allowance = allowance

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._allowance.within(timeout, httpcore.ReadTimeout))
        self._allowance.note(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._allowance.within(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = self._allowance.within(timeout, httpcore.ConnectTimeout)
        return _PacedStream(self._stream.start_tls(ssl_context, server_hostname, left_s), self._allowance)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _PacedBackend(httpcore.NetworkBackend):
    """The system's sockets, each step of which ends with the file's allowance, headers and handshakes included."""

    def __init__(self, allowance: _Allowance) -> None:
        self._sockets = httpcore.SyncBackend()
        self._allowance = allowance

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left_s = self._allowance.within(timeout, httpcore.ConnectTimeout)
        return _PacedStream(
            self._sockets.connect_tcp(host, port, left_s, local_address, socket_options), self._allowance
        )


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        raise SlowRetrievalError(f"{url} came too slowly") from error
    except _FAULTS as error:
        raise DownloadError(f"{url} cannot be fetched ({type(error).__name__}: {error})") from error


def _first_byte(response: httpcore.Response) -> int | None:
    for name, value in response.headers:
        if name.lower() == b"content-range" and (match := _CONTENT_RANGE.match(value)):
            return int(match[1])
    return None


def _drain(response: httpcore.Response) -> None:
    """Read a short refusal to its end, so that the connection can be used again: every refresh meets one."""
    size = 0
    for chunk in response.iter_stream():
        size += len(chunk)
        if size > _MAX_REFUSAL_BYTES:
            return


def _trust_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _parse_proxy(url: str, trust: ssl.SSLContext) -> httpcore.Proxy:
    parts = urlsplit(url)
    auth = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    port = f":{parts.port}" if parts.port else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    tls = trust if parts.scheme == "https" else None
    return httpcore.Proxy(f"{parts.scheme}://{host}{port}", auth=auth, ssl_context=tls)
