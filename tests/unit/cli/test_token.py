"""`seh-provision token issue`, as a site's operator meets it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from typer.testing import CliRunner

from agent.core.clock import SystemClock
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError, SecureHealthError
from agent.enrolment.medium import token_from_image, token_from_stick
from agent.trust.fingerprint import consortium_words
from agent.trust.records import CONSORTIUM_TARGET, ServerRecord
from agent.trust.token import Token, ek_digest, parse_token, site_secret, verify_token
from provisioning.cli.main import app
from provisioning.tokens.state import SiteTokenFiles
from provisioning.tokens.token import TokenEntry
from tests.simulators.repository import PlayedRepository, consortium, new_signer
from tests.simulators.token_desk import PlayedTokenDesk
from tests.simulators.tokens import ISSUER

EK_NAME = "000b" + "5e" * 32


@dataclass(frozen=True)
class Desk:
    """A site's operator with her files."""

    place: Path
    registrar: PlayedTokenDesk

    def call(self, *arguments: str | Path, answer: str = "") -> str:
        key, state, root = f"file:{self.place / 'site.pem'}", self.place / "state", self.place / "1.root.json"
        files = ("--key", key, "--state", state, "--root", root, "--registrar", self.registrar.address)
        command = ("token", "issue", "--site", "hospital-a", *files, *arguments)
        result = CliRunner().invoke(app, [str(part) for part in command], input=answer)
        if result.exception is not None:
            raise result.exception
        return result.output

    def write_key(self, key: ec.EllipticCurvePrivateKey, passphrase: bytes = b"") -> None:
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        (self.place / "site.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))

    def entries(self) -> list[TokenEntry]:
        return [TokenEntry.model_validate_json(body) for body in self.registrar.bodies]

    def verified(self, text: str) -> Token:
        return verify_token(parse_token(text), ISSUER.public_key(), int(time.time()))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    registrar = PlayedTokenDesk(tmp_path)
    server = ServerRecord(address=registrar.address, root_certificates=registrar.root.read_text())
    repository = PlayedRepository.found(SystemClock())
    repository.put(
        repository.targets, CONSORTIUM_TARGET, consortium().model_copy(update={"registrar": server}).encode()
    )
    repository.add_site("hospital-a", new_signer(ISSUER)).sign()
    repository.add_site("hospital-b", new_signer())
    repository.sign_targets()
    repository.publish()
    registrar.files = repository.files
    (tmp_path / "1.root.json").write_bytes(repository.files["1.root.json"])
    desk = Desk(tmp_path, registrar)
    desk.write_key(ISSUER)
    try:
        yield desk
    finally:
        registrar.close()


def test_a_token_in_a_file_that_the_registrar_and_the_site_know(desk: Desk) -> None:
    said = desk.call("--file", desk.place / "token", "--valid", "12h")
    token = desk.verified((desk.place / "token").read_text())
    assert (token.site, token.registrar) == ("hospital-a", desk.registrar.address)
    assert 12 * 3600 - 60 < token.expires_s - time.time() <= 12 * 3600
    assert desk.entries() == [TokenEntry.of(token, ISSUER.public_key())]
    kept = SiteTokenFiles(desk.place / "state" / "tokens").find(token.id.hex())
    assert kept is not None
    assert bytes.fromhex(kept.secret) == site_secret(token)
    assert (desk.place / "token").stat().st_mode & 0o777 == 0o600
    assert "1 token(s) for hospital-a" in said
    assert "SEH1:" not in said
    assert consortium_words(token.root_digest.hex()) in said


def test_a_token_for_one_box_on_a_stick(desk: Desk) -> None:
    desk.call("--box", EK_NAME, "--usb", desk.place / "stick.img")
    token = desk.verified(token_from_stick(desk.place / "stick.img"))
    assert token.ek_digest == ek_digest(bytes.fromhex(EK_NAME))


def test_a_token_in_a_picture_and_in_the_terminal(desk: Desk) -> None:
    desk.call("--qr", desk.place / "code.png")
    assert desk.verified(token_from_image(desk.place / "code.png"))
    assert "█▀" in desk.call("--qr-terminal")


def test_a_sheet_for_many(desk: Desk) -> None:
    said = desk.call("--count", "5", "--label", "Cardiology", "--sheet", desk.place / "sheet.pdf")
    assert "5 token(s)" in said
    assert (desk.place / "sheet.pdf").read_bytes().startswith(b"%PDF")
    assert len({entry.id for entry in desk.entries()}) == 5


def test_an_encrypted_key_by_prompt_and_by_file(desk: Desk) -> None:
    desk.write_key(ISSUER, b"open sesame")
    desk.call("--file", desk.place / "one", answer="open sesame\n")
    (desk.place / "passphrase").write_text("open sesame\n")
    desk.call("--file", desk.place / "two", "--passphrase-file", desk.place / "passphrase")
    assert desk.verified((desk.place / "one").read_text()) != desk.verified((desk.place / "two").read_text())
    with pytest.raises(OperatorError) as caught:
        desk.call("--file", desk.place / "three", answer="wrong\n")
    assert caught.value.code == "authority.bad_key_file"


def test_a_key_that_is_none_of_the_site_s_issues_nothing(desk: Desk) -> None:
    desk.write_key(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(OperatorError, match="none that the consortium knows of hospital-a") as caught:
        desk.call("--file", desk.place / "token")
    assert caught.value.code == "token.wrong_issuer_key"
    assert desk.registrar.bodies == []


def test_another_consortium_s_registrar_is_not_believed(desk: Desk) -> None:
    other = PlayedRepository.found(SystemClock())
    desk.registrar.files = other.files
    with pytest.raises(PeerProtocolError):
        desk.call("--file", desk.place / "token")
    assert desk.registrar.bodies == []


def test_a_hospital_that_signed_nothing_yet_is_told_which_command_signs(desk: Desk) -> None:
    with pytest.raises(OperatorError) as caught:
        desk.call("--qr-terminal", "--site", "hospital-b")
    assert "seh-provision site endorse" in caught.value.next_step


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "token.bad_media"),
        (("--file", "token", "--qr-terminal"), "token.bad_media"),
        (("--file", "token", "--count", "2"), "token.bad_media"),
        (("--file", "1.root.json"), "token.bad_media"),
        (("--sheet", "sheet.pdf", "--count", "0"), "token.bad_request"),
        (("--sheet", "sheet.pdf", "--count", "100000"), "token.bad_request"),
        (("--qr-terminal", "--valid", "7"), "token.bad_validity"),
        (("--qr-terminal", "--valid", "0d"), "token.bad_validity"),
        (("--qr-terminal", "--valid", "367d"), "token.bad_validity"),
        (("--qr-terminal", "--box", "0b5e"), "token.bad_box"),
        (("--qr-terminal", "--site", "Hospital A"), "core.bad_identifier"),
        (("--qr-terminal", "--site", "hospital-b"), "token.unknown_site"),
        (("--qr-terminal", "--site", "hospital-c"), "token.unknown_site"),
        (("--qr-terminal", "--key", "file:nowhere"), "authority.no_key_file"),
        (("--qr-terminal", "--root", "site.pem"), "trust.bad_repository"),
    ],
)
def test_what_makes_no_token(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: str
) -> None:
    monkeypatch.chdir(desk.place)
    with pytest.raises(SecureHealthError) as caught:
        desk.call(*arguments)
    assert caught.value.code == code
    assert desk.registrar.bodies == []


def test_no_token_is_written_that_the_registrar_did_not_take(desk: Desk) -> None:
    desk.registrar.close()
    with pytest.raises(NetworkError):
        desk.call("--file", desk.place / "token")
    assert not (desk.place / "token").exists()
