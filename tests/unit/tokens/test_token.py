"""Issuing tokens: what is signed, what the registrar learns, what the site keeps."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from agent.core.errors import OperatorError
from agent.core.ids import SiteID
from agent.statements.roots import key_id
from agent.trust.records import ServerRecord
from agent.trust.token import Token, ek_digest, parse_token, registrar_secret, site_secret, verify_token
from provisioning.authority.tls import create_authority
from provisioning.tokens.state import KeptToken, SiteTokenFiles
from provisioning.tokens.token import MAX_BATCH, Destination, Issuer, TokenEntry, issue, make_tokens
from tests.simulators.tokens import EXPIRES_S, ISSUED_S, ISSUER, TOKEN

SITE = SiteID("hospital-a")
DESTINATION = Destination(TOKEN.registrar, TOKEN.tls_pin, TOKEN.root_digest)
KEY = Issuer(ISSUER.public_key(), lambda data: ISSUER.sign(data, ec.ECDSA(hashes.SHA256())))
EK_NAME = b"\x00\x0b" + bytes(32)


class Register:
    """A registrar's register, in memory."""

    def __init__(self) -> None:
        self.entries: list[TokenEntry] = []

    def add(self, entry: TokenEntry) -> None:
        self.entries.append(entry)


class ClosedRegister:
    """One that takes nothing."""

    def add(self, entry: TokenEntry) -> None:
        raise OperatorError("test.closed", "It is closed.", next_step="Wait.")


def fresh(*boxes: bytes | None) -> list[Token]:
    return make_tokens(DESTINATION, SITE, boxes=boxes, expires_s=EXPIRES_S, random_bytes=os.urandom)


def test_the_registrar_learns_enough_to_recognise_a_token_and_the_site_enough_to_check_its_proof(
    tmp_path: Path,
) -> None:
    register, files = Register(), SiteTokenFiles(tmp_path / "tokens")
    (issued,) = issue(fresh(EK_NAME), KEY, register, files)
    token = verify_token(parse_token(issued.text), ISSUER.public_key(), ISSUED_S)
    assert token == issued.token
    assert token.ek_digest == ek_digest(EK_NAME)
    (entry,) = register.entries
    assert entry == TokenEntry(
        id=token.id.hex(),
        site="hospital-a",
        secret_digest=hashlib.sha256(registrar_secret(token)).hexdigest(),
        expires_s=EXPIRES_S,
        ek_digest=ek_digest(EK_NAME).hex(),
        issuer=key_id(ISSUER.public_key()),
    )
    kept = files.find(token.id.hex())
    assert kept is not None
    assert (bytes.fromhex(kept.secret), kept.ek_digest) == (site_secret(token), ek_digest(EK_NAME).hex())
    known_to_registrar = entry.model_dump_json()
    for secret in (token.secret, site_secret(token), registrar_secret(token)):
        assert secret.hex() not in known_to_registrar


def test_what_the_site_keeps_is_its_owner_s_alone_and_shown_by_no_repr(tmp_path: Path) -> None:
    files = SiteTokenFiles(tmp_path / "tokens")
    (issued,) = issue(fresh(None), KEY, Register(), files)
    (path,) = (tmp_path / "tokens").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    secret = site_secret(issued.token).hex()
    assert secret in path.read_text()
    assert secret not in repr(files.find(issued.token.id.hex()))


def test_each_token_of_a_batch_is_its_own(tmp_path: Path) -> None:
    register = Register()
    issued = issue(fresh(*[None] * 50), KEY, register, SiteTokenFiles(tmp_path))
    assert len({one.token.id for one in issued}) == len({one.token.secret for one in issued}) == 50
    assert [entry.id for entry in register.entries] == [one.token.id.hex() for one in issued]


def test_a_token_of_the_registrar_s_key_leaves_nothing_at_the_site() -> None:
    register = Register()
    (issued,) = issue(fresh(None), KEY, register, None)
    assert register.entries[0].issuer == key_id(ISSUER.public_key())
    assert parse_token(issued.text).is_issued_by(ISSUER.public_key())


def test_no_token_is_handed_out_that_the_registrar_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="closed"):
        issue(fresh(None), KEY, ClosedRegister(), SiteTokenFiles(tmp_path))


@pytest.mark.parametrize("boxes", [[], [None] * (MAX_BATCH + 1)])
def test_batches_are_bounded(boxes: list[None]) -> None:
    with pytest.raises(OperatorError) as caught:
        fresh(*boxes)
    assert caught.value.code == "token.bad_request"


@pytest.mark.parametrize("expires_s", [0, -1, 1 << 40])
def test_a_time_that_is_none_is_refused(expires_s: int) -> None:
    with pytest.raises(OperatorError) as caught:
        make_tokens(DESTINATION, SITE, boxes=[None], expires_s=expires_s, random_bytes=os.urandom)
    assert caught.value.code == "token.bad_request"


def test_a_destination_pins_the_one_authority_and_the_first_root() -> None:
    authority = create_authority("test", now=datetime.now(UTC))
    record = ServerRecord(address="registrar.test:8443", root_certificates=authority.certificate_pem.decode())
    destination = Destination.of(record, "5e" * 32)
    assert destination.tls_pin == hashlib.sha256(authority.certificate.public_bytes(Encoding.DER)).digest()
    assert destination.root_digest == b"\x5e" * 32
    assert destination.registrar == "registrar.test:8443"


@pytest.mark.parametrize("times", [0, 2])
def test_a_destination_needs_exactly_one_authority(times: int) -> None:
    pem = create_authority("test", now=datetime.now(UTC)).certificate_pem.decode() * times
    with pytest.raises(OperatorError) as caught:
        Destination.of(ServerRecord(address="registrar.test:8443", root_certificates=pem), "5e" * 32)
    assert caught.value.code == "token.not_one_authority"


def test_an_entry_survives_the_wire_and_takes_nothing_else() -> None:
    entry = TokenEntry.of(replace(TOKEN, ek_digest=None), ISSUER.public_key())
    assert TokenEntry.model_validate_json(entry.model_dump_json()) == entry
    for change in ({"secret": "x"}, {"id": "../../etc"}, {"expires_s": "1"}, {"site": "A"}, {"issuer": ""}):
        with pytest.raises(ValidationError):
            TokenEntry.model_validate({**entry.model_dump(), **change})


@pytest.mark.parametrize("name", ["", "../token", "A" * 16, "0" * 15, "0" * 16])
def test_a_token_that_the_site_never_issued_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "token.json").write_text("{}")
    assert SiteTokenFiles(tmp_path / "tokens").find(name) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    files = SiteTokenFiles(tmp_path)
    files.add(KeptToken.of(TOKEN, site_secret(TOKEN)))
    path = tmp_path / f"{TOKEN.id.hex()}.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(OperatorError, match=path.name) as caught:
        files.find(TOKEN.id.hex())
    assert caught.value.code == "token.bad_file"
