"""The enrolment token: its form, checked against other people's COSE, and what a technician reads when it is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st

from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.ids import SiteID
from agent.trust.base45 import decode_base45, encode_base45
from agent.trust.token import (
    MAX_TOKEN_CHARACTERS,
    PREFIX,
    Token,
    issue_token,
    parse_token,
    registrar_secret,
    site_secret,
    verify_token,
)
from tests.simulators.tokens import BOUND, EXPIRES_S, ISSUED_S, ISSUER, TOKEN, token_text

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "token" / "tokens.json").read_text("utf-8"))
TEXT = token_text()
SIGN1 = decode_base45(TEXT.removeprefix(PREFIX))


def _as_text(sign1: bytes) -> str:
    return PREFIX + encode_base45(sign1)


def _with_payload(payload: bytes) -> str:
    protected, unprotected, _, signature = cbor2.loads(SIGN1).value
    return _as_text(cbor2.dumps(cbor2.CBORTag(18, [protected, unprotected, payload, signature]), canonical=True))


def _fields() -> dict[int, Any]:
    fields: dict[int, Any] = cbor2.loads(cbor2.loads(SIGN1).value[2])
    return fields


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=["any box", "one box"])
def test_a_token_that_other_libraries_verified(vector: dict[str, Any]) -> None:
    key = load_pem_public_key(VECTORS["issuer"].encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    token = verify_token(parse_token(vector["text"]), key, vector["expires_s"] - 1)
    for name in ("id", "secret", "tls_pin", "root_digest"):
        assert getattr(token, name).hex() == vector[name]
    assert (token.registrar, token.site, token.expires_s) == (vector["registrar"], vector["site"], vector["expires_s"])
    assert (token.ek_digest and token.ek_digest.hex()) == vector["ek_digest"]
    assert registrar_secret(token).hex() == vector["registrar_secret"]
    assert site_secret(token).hex() == vector["site_secret"]


@pytest.mark.parametrize("token", [TOKEN, BOUND, replace(TOKEN, registrar="[2001:db8::1]:443", site=SiteID("a"))])
def test_a_token_comes_back_as_it_was_issued(token: Token) -> None:
    signed = parse_token(f"\r\n {token_text(token)}\r\n")
    assert signed.is_issued_by(ISSUER.public_key())
    assert verify_token(signed, ISSUER.public_key(), ISSUED_S) == token


def test_the_longest_token_fits_its_limit() -> None:
    longest = replace(BOUND, registrar="a" * 294 + ":65535", site=SiteID("b" * 63))
    text = token_text(longest)
    assert len(text) <= MAX_TOKEN_CHARACTERS
    assert parse_token(text).token == longest


def test_secrets_are_shown_by_no_repr() -> None:
    shown = repr(parse_token(token_text(replace(TOKEN, secret=b"sixteen secret B"))))
    assert "sixteen secret B" not in shown
    assert repr(TOKEN.site) in shown


def test_the_two_secrets_tell_nothing_of_each_other_and_are_each_token_s_own() -> None:
    other = replace(TOKEN, id=bytes(8))
    secrets = {registrar_secret(TOKEN), site_secret(TOKEN), registrar_secret(other), site_secret(other), TOKEN.secret}
    assert len(secrets) == 5


def test_a_signer_with_another_key_is_found_out_before_a_token_is_handed_out() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(OperatorError, match="not the key") as caught:
        issue_token(TOKEN, other.public_key(), lambda data: _sign(ISSUER, data))
    assert caught.value.code == "token.wrong_issuer_key"


def test_a_key_on_another_curve_issues_no_token() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(OperatorError) as caught:
        issue_token(TOKEN, other.public_key(), lambda data: _sign(other, data))
    assert caught.value.code == "token.wrong_issuer_key"


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "token.not_a_token"),
        ("https://example.org/", "token.not_a_token"),
        ("HC1:" + TEXT[5:], "token.not_a_token"),
        (TEXT.lower(), "token.not_a_token"),
        ("SEH2:" + TEXT[5:], "token.other_version"),
        ("SEH12:ABC", "token.other_version"),
        (TEXT[:-1], "token.damaged"),
        (TEXT[:100], "token.damaged"),
        (PREFIX, "token.damaged"),
        (TEXT.replace(PREFIX, PREFIX + " "), "token.damaged"),
        (TEXT + TEXT, "token.damaged"),
        (PREFIX + "A" * MAX_TOKEN_CHARACTERS, "token.damaged"),
        (PREFIX + "A" * 100_000, "token.not_a_token"),
    ],
)
def test_what_a_technician_reads_about_a_text_that_is_no_whole_token(text: str, code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_token(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        {1: "registrar.example.org"},
        {1: "registrar.example.org:8443\n"},
        {2: bytes(7)},
        {3: "0123456789abcdef"},
        {4: bytes(31)},
        {5: None},
        {6: "Hospital A"},
        {7: -1},
        {7: 1 << 40},
        {7: True},
        {7: 1.0},
        {8: b""},
        {9: "more"},
        {"x": 1},
    ],
)
def test_a_field_of_another_form_is_refused(change: dict[Any, Any]) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_token(_with_payload(cbor2.dumps(_fields() | change, canonical=True)))
    assert caught.value.code == "token.damaged"


@pytest.mark.parametrize("missing", range(1, 8))
def test_a_missing_field_is_refused(missing: int) -> None:
    fields = _fields()
    del fields[missing]
    with pytest.raises(OperatorError) as caught:
        parse_token(_with_payload(cbor2.dumps(fields, canonical=True)))
    assert caught.value.code == "token.damaged"


def test_a_second_way_to_write_the_same_token_is_refused() -> None:
    with pytest.raises(OperatorError) as caught:
        parse_token(_with_payload(cbor2.dumps(dict(reversed(_fields().items())))))
    assert caught.value.code == "token.damaged"


def test_an_expired_token_says_since_when() -> None:
    signed = parse_token(TEXT)
    verify_token(signed, ISSUER.public_key(), EXPIRES_S - 1)
    with pytest.raises(OperatorError, match="2023-11-21 at 22:13 UTC") as caught:
        verify_token(signed, ISSUER.public_key(), EXPIRES_S)
    assert caught.value.code == "token.expired"


def test_a_token_of_another_issuer_is_not_genuine() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(PeerProtocolError) as caught:
        verify_token(parse_token(TEXT), other, ISSUED_S)
    assert caught.value.code == "token.not_genuine"


def test_an_altered_token_is_not_genuine_whichever_field_was_altered() -> None:
    for field, value in (
        (1, "elsewhere.example.org:8443"),
        (2, bytes(8)),
        (3, bytes(16)),
        (4, bytes(32)),
        (5, bytes(32)),
        (6, "university-hospital-b"),
        (7, EXPIRES_S + 1),
        (8, bytes(32)),
    ):
        signed = parse_token(_with_payload(cbor2.dumps(_fields() | {field: value}, canonical=True)))
        with pytest.raises(PeerProtocolError) as caught:
            verify_token(signed, ISSUER.public_key(), ISSUED_S)
        assert caught.value.code == "token.not_genuine"


@given(at=st.integers(0, len(SIGN1) - 1), mask=st.integers(1, 255))
def test_no_changed_byte_passes(at: int, mask: int) -> None:
    changed = bytes(byte ^ mask if place == at else byte for place, byte in enumerate(SIGN1))
    with pytest.raises(SecureHealthError):
        verify_token(parse_token(_as_text(changed)), ISSUER.public_key(), ISSUED_S)


@given(st.binary(max_size=700))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    for text in (_as_text(data), _as_text(SIGN1[:1] + data), _with_payload(data)):
        with pytest.raises(OperatorError):
            parse_token(text)


@given(st.text(max_size=2100))
def test_no_text_crashes_the_parser(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(OperatorError):
            parse_token(candidate)
