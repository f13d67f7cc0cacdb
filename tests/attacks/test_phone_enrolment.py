"""What a registrar, a proxy or a stranger may try where a box without a camera shows a code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.pairing import commitment, pairing_code
from agent.core.base64url import decode_bytes, encode_bytes
from agent.core.errors import OperatorError, PeerProtocolError
from agent.enrolment.conversation import Box
from agent.enrolment.phone import LIFETIME_S, Code, PresetRegistrar, token_by_phone
from agent.identity.key import init_key
from agent.statements.roots import public_key_bytes
from tests.simulators.clock import SetClock
from tests.simulators.registrar import Asked, PlayedRegistrar, Said


@dataclass(slots=True)
class Pairing:
    """A registrar's half of one pairing, and the box's."""

    registrar: PlayedRegistrar
    box: Box
    nonce: bytes = field(default_factory=lambda: os.urandom(32))
    shown: list[Code] = field(default_factory=list)
    box_nonce: bytes = b""
    revealed: bytes = b""
    situations: list[dict[str, str]] = field(default_factory=list)
    clock: SetClock = field(default_factory=SetClock)
    pin: bytes = b""

    def answer(self, asked: Asked) -> Said | None:
        if not asked.path.startswith("/v1/pairings"):
            return None
        if asked.method == "POST":
            return Said(201, {"pairing": "ab" * 16, "commitment": encode_bytes(commitment(self.nonce))})
        if asked.method == "PUT":
            self.box_nonce = decode_bytes(json.loads(asked.body)["nonce"])
            return Said(body={"nonce": encode_bytes(self.revealed or self.nonce)})
        return Said(body=self.situations.pop(0) if len(self.situations) > 1 else self.situations[0])

    def run(self) -> str:
        self.registrar.before = self.answer
        certificate = x509.load_pem_x509_certificate(self.registrar.authority)
        pin = self.pin or hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()

        def wait(seconds: float) -> bool:
            self.clock.move(seconds)
            return False

        return token_by_phone(
            self.box,
            PresetRegistrar(self.registrar.address, pin),
            self.clock,
            show=self.shown.append,
            wait=wait,
            random_bytes=os.urandom,
        )


@pytest.fixture
def pairing(tmp_path: Path) -> Iterator[Pairing]:
    key = init_key(f"software:{tmp_path / 'node.key'}")
    with PlayedRegistrar(tmp_path / "registrar") as registrar:
        yield Pairing(registrar, Box(key, key.public_key()), situations=[{"state": "waiting"}])


def test_the_box_shows_the_code_that_the_registrar_knows_and_takes_the_token(pairing: Pairing) -> None:
    pairing.situations = [{"state": "waiting"}, {"state": "approved", "token": "SEH1:A"}]
    assert pairing.run() == "SEH1:A"
    key = pairing.box.key
    expected = pairing_code(
        *key.evidence_names(),
        public_key_bytes(pairing.box.link),
        registrar_nonce=pairing.nonce,
        box_nonce=pairing.box_nonce,
    )
    assert [code.text for code in pairing.shown] == [expected]
    assert pairing.shown[0].address == f"https://{pairing.registrar.address}/approve/{'ab' * 16}"


def test_the_registrar_looks_for_a_nonce_that_gives_a_code_it_likes(pairing: Pairing) -> None:
    pairing.revealed = os.urandom(32)
    with pytest.raises(PeerProtocolError) as caught:
        pairing.run()
    assert caught.value.code == "enrolment.other_nonce"
    assert pairing.shown == []


def test_a_proxy_that_breaks_tls_learns_nothing(pairing: Pairing) -> None:
    pairing.pin = bytes(32)
    with pytest.raises(PeerProtocolError) as caught:
        pairing.run()
    assert caught.value.code == "enrolment.wrong_pin"
    assert [asked.path for asked in pairing.registrar.asked] == ["/v1/ca.pem"]


def test_a_wrong_code_ends_it(pairing: Pairing) -> None:
    pairing.situations = [{"state": "refused"}]
    with pytest.raises(OperatorError) as caught:
        pairing.run()
    assert caught.value.code == "enrolment.wrong_code"


def test_nobody_comes(pairing: Pairing) -> None:
    with pytest.raises(OperatorError) as caught:
        pairing.run()
    assert caught.value.code == "enrolment.nobody_approved"
    assert pairing.clock.running_s >= 1000.0 + LIFETIME_S
