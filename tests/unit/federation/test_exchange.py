"""The exchange against a server that answers over TLS whatever a test wants."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.core.errors import OperatorError
from agent.federation.exchange import BoundedExchange, ExchangeLimits, load_trust
from agent.federation.faults import UnreachableError
from tests.simulators.superlink import prepare_tls

LIMITS = ExchangeLimits(connect_timeout_s=2, step_timeout_s=2, call_timeout_s=1, response_bytes=1000)


class PlayedServer:
    """Sends the given pieces of raw HTTP, with pauses, to every request."""

    def __init__(self, directory: Path) -> None:
        self.files = prepare_tls(directory)
        self.pieces: list[bytes] = []
        self.pause_s = 0.0
        self.requests = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.files.certificate, self.files.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def answer(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        self.pieces, self.pause_s = list(pieces), pause_s

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    self.requests += 1
                    for piece in self.pieces:
                        connection.sendall(piece)
                        time.sleep(self.pause_s)
            except OSError:
                continue

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlayedServer]:
    played = PlayedServer(tmp_path / "tls")
    yield played
    played.close()


def _send(server: PlayedServer, *, limits: ExchangeLimits = LIMITS, root: Path | None = None) -> httpx.Response:
    exchange = BoundedExchange(root or server.files.root, proxy=None, limits=limits)
    try:
        return exchange.send(httpx.Request("POST", f"https://127.0.0.1:{server.port}/x", content=b"?"))
    finally:
        exchange.close()


def _http(body: bytes, *, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def test_an_ordinary_answer_comes_through(server: PlayedServer) -> None:
    server.answer(_http(b"hello", headers="x-custom: 1\r\n"))
    response = _send(server)
    assert (response.status_code, response.content, response.headers["x-custom"]) == (200, b"hello", "1")


def test_an_endless_body_is_cut_off(server: PlayedServer) -> None:
    server.answer(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", *[b"x" * 400] * 100)
    with pytest.raises(UnreachableError) as caught:
        _send(server)
    assert caught.value.code == "fleet.overlong_answer"


def test_a_dripping_body_is_cut_off(server: PlayedServer) -> None:
    server.answer(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", *[b"x"] * 100, pause_s=0.1)
    begin = time.monotonic()
    with pytest.raises(UnreachableError):
        _send(server)
    assert time.monotonic() - begin < 3


def test_a_silent_server_is_given_up(server: PlayedServer) -> None:
    server.answer(b"HTTP/1.1 200 OK\r\n", b"", pause_s=3)
    with pytest.raises(UnreachableError) as caught:
        _send(server, limits=LIMITS.shortened(0.3))
    assert caught.value.code == "fleet.unreachable"


def test_no_redirect_is_followed(server: PlayedServer) -> None:
    server.answer(_http(b"", status="307 Elsewhere", headers=f"location: https://127.0.0.1:{server.port}/y\r\n"))
    assert _send(server).status_code == 307
    assert server.requests == 1


def test_a_compressed_body_is_not_unpacked(server: PlayedServer) -> None:
    bomb = gzip.compress(bytes(100_000))
    server.answer(_http(bomb, headers="content-encoding: gzip\r\n"))
    assert _send(server).content == bomb


def test_another_root_is_named_as_such(server: PlayedServer, tmp_path: Path) -> None:
    other = prepare_tls(tmp_path / "other").root
    with pytest.raises(UnreachableError) as caught:
        _send(server, root=other)
    assert caught.value.code == "fleet.tls_refused"
    assert server.requests == 0


def test_no_server_at_all_is_unreachable(server: PlayedServer) -> None:
    server.close()
    with pytest.raises(UnreachableError) as caught:
        _send(server)
    assert caught.value.code == "fleet.unreachable"
    server._socket = socket.create_server(("127.0.0.1", 0))


def test_a_closed_exchange_is_unreachable(server: PlayedServer) -> None:
    exchange = BoundedExchange(server.files.root, proxy=None, limits=LIMITS)
    exchange.close()
    with pytest.raises(UnreachableError):
        exchange.send(httpx.Request("POST", f"https://127.0.0.1:{server.port}/x"))


def test_the_environments_proxy_is_not_used(server: PlayedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    server.answer(_http(b"direct"))
    assert _send(server).content == b"direct"


def test_roots_that_are_none_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(OperatorError, match="root certificates"):
            load_trust(path)
