"""How a site makes a token known to the registrar."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.statements.envelope import parse_proof
from agent.statements.kinds import SiteRequest
from agent.statements.roots import verify_with
from provisioning.tokens.register import MAX_ANSWER_BYTES, SiteRegister
from provisioning.tokens.token import TokenEntry
from tests.simulators.clock import SetClock
from tests.simulators.superlink import prepare_tls
from tests.simulators.tokens import ISSUER, TOKEN
from tests.unit.tokens.test_token import KEY

CONSORTIUM = "c0" * 32
ENTRY = TokenEntry.of(TOKEN, ISSUER.public_key())
CLOCK = SetClock()


class PlayedRegistrar:
    """Takes one kind of request and answers it as told.

    Args:
        directory: For its TLS files.
    """

    def __init__(self, directory: Path) -> None:
        self.status, self.answer = 201, b"{}"
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.authorizations: list[str] = []
        played = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                played.paths.append(self.path)
                played.authorizations.append(self.headers["authorization"])
                played.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(played.status)
                self.send_header("content-length", str(len(played.answer)))
                self.end_headers()
                self.wfile.write(played.answer)

            def log_message(self, *_: object) -> None:
                pass

        files = prepare_tls(directory)
        self.trust = ssl.create_default_context(cafile=str(files.root))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def registrar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedRegistrar]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    played = PlayedRegistrar(tmp_path)
    try:
        yield played
    finally:
        played.close()


def add(registrar: PlayedRegistrar, *, address: str = "", trust: ssl.SSLContext | None = None) -> None:
    address, trust = address or registrar.address, trust or registrar.trust
    with SiteRegister(
        address, trust, consortium=CONSORTIUM, issuer=KEY, clock=CLOCK, random_bytes=os.urandom
    ) as register:
        register.add(ENTRY)


def test_an_entry_arrives_with_a_request_that_the_site_s_key_signed(registrar: PlayedRegistrar) -> None:
    add(registrar)
    assert registrar.paths == [f"/v1/sites/{TOKEN.site}/tokens"]
    (body,) = registrar.bodies
    assert TokenEntry.model_validate_json(body) == ENTRY
    scheme, _, envelope = registrar.authorizations[0].partition(" ")
    assert scheme == "DSSE"
    proof = parse_proof(base64.urlsafe_b64decode(envelope))
    verify_with(ISSUER.public_key(), proof)
    assert proof.payload_type == SiteRequest.payload_type()
    request = SiteRequest.parse(proof.payload)
    assert (request.method, request.path, request.site) == ("POST", registrar.paths[0], TOKEN.site)
    assert request.body == hashlib.sha256(body).hexdigest()
    assert request.consortium == CONSORTIUM
    assert request.issued_s == int(CLOCK.now().timestamp())


def test_no_two_requests_are_alike(registrar: PlayedRegistrar) -> None:
    add(registrar)
    add(registrar)
    assert registrar.bodies[0] == registrar.bodies[1]
    assert len(set(registrar.authorizations)) == 2


def test_a_refusal_is_passed_on_in_the_registrar_s_words(registrar: PlayedRegistrar) -> None:
    registrar.status = 403
    refusal = {"code": "enrol.site_suspended", "sentence": "The site is suspended.", "next_step": "Ask the consortium."}
    registrar.answer = json.dumps(refusal).encode()
    with pytest.raises(OperatorError, match="The site is suspended") as caught:
        add(registrar)
    assert (caught.value.code, caught.value.next_step) == ("token.registrar_refused", "Ask the consortium.")


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, b"oops"), (404, b""), (302, b""), (403, b'{"code": "A B"}'), (200, bytes(MAX_ANSWER_BYTES + 1))],
)
def test_another_answer_is_the_other_side_s_fault(registrar: PlayedRegistrar, status: int, answer: bytes) -> None:
    registrar.status, registrar.answer = status, answer
    with pytest.raises(PeerProtocolError) as caught:
        add(registrar)
    assert caught.value.code == "token.registrar_answer"


def test_a_registrar_under_another_authority_learns_nothing(registrar: PlayedRegistrar, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = ssl.create_default_context(cafile=str(prepare_tls(tmp_path / "other").root))
    with pytest.raises(NetworkError) as caught:
        add(registrar, trust=other)
    assert caught.value.code == "token.registrar_unreachable"
    assert registrar.paths == []


def test_a_registrar_that_is_away_is_named_as_such(registrar: PlayedRegistrar) -> None:
    with pytest.raises(NetworkError) as caught:
        add(registrar, address="127.0.0.1:1")
    assert caught.value.code == "token.registrar_unreachable"
