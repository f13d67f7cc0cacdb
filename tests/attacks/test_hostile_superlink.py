"""A SuperLink, or whoever sits in its place, that tries to exhaust a node, to lead it elsewhere, or to hold it up."""

from __future__ import annotations

import gzip
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from agent.core.errors import PeerProtocolError
from agent.core.wire import PART_FIELD, Frame, Stage
from agent.federation.exchange import BoundedExchange, ExchangeLimits
from agent.federation.faults import CallRefusedError, OversizeAnswerError, UnreachableError
from agent.federation.fleet import Delivery, Fleet, SuperLinkEndpoint
from tests.simulators.clock import SetClock
from tests.simulators.https import PlayedServer, http_answer
from tests.simulators.played_superlink import PlayedSuperLink, failing, http_body, http_status

LIMITS = ExchangeLimits(connect_timeout_s=5, step_timeout_s=5, call_timeout_s=4, response_bytes=1000)
OPEN_ENDED = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
FRAME = Frame("study", Stage.PLAIN, 1, payload=b"numbers")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlayedServer]:
    played = PlayedServer(tmp_path / "tls")
    yield played
    played.close()


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> PlayedSuperLink:
    played = PlayedSuperLink()
    monkeypatch.setattr("agent.federation.fleet.BoundedExchange", played.exchange)
    monkeypatch.setattr("agent.federation.fleet.RETRY_FIRST_S", 0.001)
    return played


@pytest.fixture
def fleet(superlink: PlayedSuperLink) -> Fleet:
    endpoint = SuperLinkEndpoint("superlink.test:9092", Path("root.pem"), max_frame_bytes=12 << 20)
    key = ec.generate_private_key(ec.SECP256R1())
    joined = Fleet(endpoint, key, SetClock(), stop=threading.Event(), dice=random.Random(1))
    joined.activate()
    return joined


def _send(server: PlayedServer, *, limits: ExchangeLimits = LIMITS) -> httpx.Response:
    exchange = BoundedExchange(server.files.root, proxy=None, limits=limits)
    try:
        return exchange.send(httpx.Request("POST", f"https://127.0.0.1:{server.port}/x", content=b"?"))
    finally:
        exchange.close()


def _receive(fleet: Fleet) -> Delivery:
    delivery = fleet.receive()
    assert delivery is not None
    return delivery


def test_endless_answer(server: PlayedServer) -> None:
    server.answer(OPEN_ENDED, *[b"x" * 400] * 100)
    with pytest.raises(OversizeAnswerError):
        _send(server)


def test_dripping_answer(server: PlayedServer) -> None:
    server.answer(OPEN_ENDED, *[b"x"] * 200, pause_s=0.1)
    begin = time.monotonic()
    with pytest.raises(UnreachableError, match="longer than"):
        _send(server, limits=LIMITS.shortened(1.0))
    assert time.monotonic() - begin < 10


def test_redirect_to_another_host(server: PlayedServer) -> None:
    elsewhere = f"location: https://127.0.0.1:{server.port}/y\r\n"
    server.answer(http_answer(b"", status="307 Elsewhere", headers=elsewhere))
    assert _send(server).status_code == 307
    assert server.requests == 1


def test_compression_bomb(server: PlayedServer) -> None:
    bomb = gzip.compress(bytes(100_000))
    server.answer(http_answer(bomb, headers="content-encoding: gzip\r\n"))
    assert _send(server).content == bomb


def test_retry_after_a_day(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("pull-messages", http_status(503, {"retry-after": "86400"}))
    begin = time.monotonic()
    assert fleet.receive() is None
    assert time.monotonic() - begin < 10


def test_nested_error_body(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.script("pull-messages", http_body(400, b"[" * 100_000))
    with pytest.raises(CallRefusedError):
        fleet.receive()


def test_one_object_under_many_names(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    part = ConfigRecord({PART_FIELD: bytes(100)})
    superlink.offer(RecordDict({f"frame-{index}": part for index in range(1000)}))
    with pytest.raises(PeerProtocolError, match="more parts"):
        fleet.fetch(_receive(fleet))


def test_tree_of_more_objects_than_a_frame_may_have(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    leaves = [ObjectTree(object_id=f"{index:064x}") for index in range(1000)]
    tree = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64, children=leaves)])
    with pytest.raises(PeerProtocolError):
        fleet.fetch(Delivery(_receive(fleet).message, tree))
    assert "pull-object" not in superlink.calls


def test_objects_larger_than_they_were_announced(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    parts = {f"frame-{index}": ConfigRecord({PART_FIELD: bytes([index]) * (6 << 20)}) for index in range(3)}
    superlink.offer(RecordDict(parts))
    with pytest.raises(PeerProtocolError, match="more bytes"):
        fleet.fetch(_receive(fleet))


def test_oversize_object(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    cut_off = failing(OversizeAnswerError("fleet.oversize_answer", "Played.", next_step="-"))
    superlink.script("pull-object", cut_off)
    with pytest.raises(PeerProtocolError, match="larger"):
        fleet.fetch(_receive(fleet))
    assert superlink.calls.count("pull-object") == 1


def test_swapped_content(fleet: Fleet, superlink: PlayedSuperLink) -> None:
    superlink.offer_frame(FRAME)
    superlink.objects = dict.fromkeys(superlink.objects, ConfigRecord({"other": b"x"}).deflate())
    with pytest.raises(PeerProtocolError):
        fleet.fetch(_receive(fleet))
