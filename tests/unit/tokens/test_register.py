"""How a site makes a token known to the registrar."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.core.errors import NetworkError, OperatorError, PeerProtocolError
from agent.statements.envelope import parse_proof
from agent.statements.kinds import SiteRequest
from agent.statements.roots import verify_with
from agent.trust.records import ServerRecord
from provisioning.authority.site_line import MAX_ANSWER_BYTES, SiteLine
from provisioning.tokens.register import SiteRegister
from provisioning.tokens.token import TokenEntry
from tests.simulators.clock import SetClock
from tests.simulators.superlink import prepare_tls
from tests.simulators.token_desk import PlayedTokenDesk
from tests.simulators.tokens import ISSUER, TOKEN
from tests.unit.tokens.test_token import KEY

CONSORTIUM = "c0" * 32
ENTRY = TokenEntry.of(TOKEN, ISSUER.public_key())
CLOCK = SetClock()


@pytest.fixture
def registrar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedTokenDesk]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    played = PlayedTokenDesk(tmp_path)
    try:
        yield played
    finally:
        played.close()


def add(registrar: PlayedTokenDesk, *, address: str = "", root: Path | None = None) -> None:
    certificates = (root or registrar.root).read_text("ascii")
    record = ServerRecord(address=address or registrar.address, root_certificates=certificates)
    with SiteLine(
        record, consortium=CONSORTIUM, site=TOKEN.site, key=KEY, clock=CLOCK, random_bytes=os.urandom
    ) as line:
        SiteRegister(line).add(ENTRY)


def test_an_entry_arrives_with_a_request_that_the_site_s_key_signed(registrar: PlayedTokenDesk) -> None:
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


def test_no_two_requests_are_alike(registrar: PlayedTokenDesk) -> None:
    add(registrar)
    add(registrar)
    assert registrar.bodies[0] == registrar.bodies[1]
    assert len(set(registrar.authorizations)) == 2


def test_a_refusal_is_passed_on_in_the_registrar_s_words(registrar: PlayedTokenDesk) -> None:
    registrar.status = 403
    refusal = {"code": "enrol.site_suspended", "sentence": "The site is suspended.", "next_step": "Ask the consortium."}
    registrar.answer = json.dumps(refusal).encode()
    with pytest.raises(OperatorError, match="The site is suspended") as caught:
        add(registrar)
    assert (caught.value.code, caught.value.next_step) == ("site_line.refused", "Ask the consortium.")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "answer", [b"", b'{"code": "registrar.too_many", "sentence": "Too many.", "next_step": "Wait."}']
)
def test_a_registrar_that_is_busy_is_asked_again_later(registrar: PlayedTokenDesk, status: int, answer: bytes) -> None:
    registrar.status, registrar.answer = status, answer
    with pytest.raises(NetworkError, match=r"Too many|not say why") as caught:
        add(registrar)
    assert caught.value.code == "site_line.busy"


@pytest.mark.parametrize(
    ("status", "answer"),
    [(500, b"oops"), (404, b""), (302, b""), (403, b'{"code": "A B"}'), (200, bytes(MAX_ANSWER_BYTES + 1))],
)
def test_another_answer_is_the_other_side_s_fault(registrar: PlayedTokenDesk, status: int, answer: bytes) -> None:
    registrar.status, registrar.answer = status, answer
    with pytest.raises(PeerProtocolError) as caught:
        add(registrar)
    assert caught.value.code == "site_line.bad_answer"


def test_a_registrar_under_another_authority_learns_nothing(registrar: PlayedTokenDesk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = prepare_tls(tmp_path / "other").root
    with pytest.raises(NetworkError) as caught:
        add(registrar, root=other)
    assert caught.value.code == "site_line.unreachable"
    assert registrar.paths == []


def test_a_registrar_that_is_away_is_named_as_such(registrar: PlayedTokenDesk) -> None:
    with pytest.raises(NetworkError) as caught:
        add(registrar, address="127.0.0.1:1")
    assert caught.value.code == "site_line.unreachable"
