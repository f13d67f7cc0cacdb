"""A box without a keyboard shows a telephone's code by itself, where its image names a registrar, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.attestation.pairing import commitment
from agent.core.base64url import encode_bytes
from agent.core.config import AgentConfig, parse_config
from agent.enrolment.drop import StickReading, leave_reading
from agent.identity.key import init_key
from agent.service.enrolling import PHONE_PAUSE_S, Bearings, Enroller
from agent.service.safekeeping import load_vault
from tests.simulators.clock import SetClock
from tests.simulators.registrar import Asked, PlayedRegistrar, Said
from tests.simulators.tokens import token_text

NONCE = bytes(32)
LIMIT_S = 20.0
MINIMAL = """[node]
state_directory = "state"
environment = "demo"
[key]
uri = "software:node.key"
[data]
catalog = "c"
[enrolment]
drop = "drop"
preset = "preset.json"
"""


@dataclass(slots=True)
class Box:
    """One that waits for its enrolment."""

    config: AgentConfig
    registrar: PlayedRegistrar
    situation: dict[str, str]
    clock: SetClock = field(default_factory=SetClock)
    news: queue.Queue[Bearings] = field(default_factory=queue.Queue)

    def answer(self, asked: Asked) -> Said | None:
        if not asked.path.startswith("/v1/pairings"):
            return None
        if asked.method == "POST":
            return Said(201, {"pairing": "ab" * 16, "commitment": encode_bytes(commitment(NONCE))})
        return Said(body={"nonce": encode_bytes(NONCE)} if asked.method == "PUT" else self.situation)

    def enroller(self) -> Enroller:
        key, vault = init_key(self.config.key.uri), load_vault(self.config)
        return Enroller(self.config, key, vault, self.clock, self.news.put)

    def told(self) -> Bearings:
        return self.news.get(timeout=LIMIT_S)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    for name in ("drop", "state"):
        (tmp_path / name).mkdir()
    config = parse_config(MINIMAL.encode(), directory=tmp_path)
    with PlayedRegistrar(tmp_path / "registrar") as registrar:
        box = Box(config, registrar, {"state": "waiting"})
        registrar.before = box.answer
        authority = x509.load_pem_x509_certificate(registrar.authority).public_bytes(Encoding.DER)
        preset = {"root_digest": "ab" * 32, "tls_pin": hashlib.sha256(authority).hexdigest()}
        (tmp_path / "preset.json").write_text(json.dumps(preset | {"registrar": registrar.address}))
        yield box


def test_the_code_is_shown_and_the_approved_token_is_used(box: Box) -> None:
    box.situation = {"state": "approved", "token": "SEH1:DAMAGED"}
    with box.enroller() as enroller:
        enroller.look()
        shown = box.told()
        assert shown.phone is not None
        assert shown.phone.address == f"https://{box.registrar.address}/approve/{'ab' * 16}"
        assert box.told().phone is None
        assert box.told().code.startswith("token.")


def test_a_code_that_was_typed_wrongly_is_followed_by_another_one_after_a_while(box: Box) -> None:
    box.situation = {"state": "refused"}
    with box.enroller() as enroller:
        enroller.look()
        first = box.told()
        assert first.phone is not None
        assert box.told().phone is None
        assert box.told().code == "enrolment.wrong_code"
        enroller.look()
        assert box.news.empty()
        box.clock.move(PHONE_PAUSE_S)
        box.situation = {"state": "waiting"}
        while box.news.empty():
            enroller.look()
        second = box.told()
        assert second.phone is not None
        assert second.phone.text != first.phone.text


def test_a_stick_takes_the_code_s_place(box: Box) -> None:
    with box.enroller() as enroller:
        enroller.look()
        assert box.told().phone is not None
        leave_reading(box.config.enrolment.drop, StickReading(token=token_text()))
        while box.news.empty():
            enroller.look()
        assert box.told().phone is None
        while box.news.empty():
            enroller.look()
        assert box.told().code == "token.expired"


def test_without_a_registrar_in_the_image_no_code_is_shown_and_nobody_is_asked(box: Box, tmp_path: Path) -> None:
    (tmp_path / "preset.json").unlink()
    with box.enroller() as enroller:
        enroller.look()
        enroller.look()
    assert box.news.empty()
    assert box.registrar.asked == []
