"""The exchange against a server that answers over TLS whatever a test wants."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.core.errors import OperatorError
from agent.federation.exchange import BoundedExchange, ExchangeLimits, load_trust
from agent.federation.faults import UnreachableError
from tests.simulators.https import PlayedServer, http_answer
from tests.simulators.superlink import prepare_tls

LIMITS = ExchangeLimits(connect_timeout_s=5, step_timeout_s=5, call_timeout_s=4, response_bytes=1000)


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


def test_an_ordinary_answer_comes_through(server: PlayedServer) -> None:
    server.answer(http_answer(b"hello", headers="x-custom: 1\r\n"))
    response = _send(server)
    assert (response.status_code, response.content, response.headers["x-custom"]) == (200, b"hello", "1")


def test_a_silent_server_is_given_up(server: PlayedServer) -> None:
    server.answer(b"HTTP/1.1 200 OK\r\n", b"", pause_s=1)
    with pytest.raises(UnreachableError) as caught:
        _send(server, limits=LIMITS.shortened(0.3))
    assert caught.value.code == "fleet.unreachable"


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
    server.answer(http_answer(b"direct"))
    assert _send(server).content == b"direct"


def test_roots_that_are_none_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(OperatorError, match="root certificates"):
            load_trust(path)
