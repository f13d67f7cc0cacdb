"""Where a token may come from, and what a technician reads when nothing comes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import segno

from agent.core.errors import HardwareError, SecureHealthError
from agent.enrolment.medium import token_from_image, token_from_line, token_from_stick
from agent.trust.token import STICK_FILE, check_expiry, parse_token
from tests.simulators.stick import make_stick
from tests.simulators.tokens import EXPIRES_S, TOKEN, token_text

TEXT = token_text()


def code_of(caught: pytest.ExceptionInfo[SecureHealthError]) -> str:
    return caught.value.code


@pytest.mark.parametrize("content", [TEXT, TEXT + "\r\n", "\ufeff" + TEXT + "\n"])
def test_a_stick_gives_its_token(tmp_path: Path, content: str) -> None:
    stick = make_stick(tmp_path / "stick", {STICK_FILE: content.encode()}, partition=True)
    assert parse_token(token_from_stick(stick)).token == TOKEN


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "token.not_a_token"),
        (b"\xff\xfe\x00", "token.not_a_token"),
        (b"%PDF-1.7", "token.not_a_token"),
        (TEXT.encode("utf-16"), "token.not_a_token"),
        (TEXT[:-20].encode(), "token.damaged"),
        (b"\0" * 65_536, "token.not_a_token"),
    ],
)
def test_a_stick_with_something_else_in_the_file(tmp_path: Path, content: bytes, code: str) -> None:
    stick = make_stick(tmp_path / "stick", {STICK_FILE: content})
    with pytest.raises(SecureHealthError) as caught:
        parse_token(token_from_stick(stick))
    assert code_of(caught) == code


def test_a_stick_from_the_drawer_says_since_when_it_is_no_good(tmp_path: Path) -> None:
    stick = make_stick(tmp_path / "stick", {STICK_FILE: TEXT.encode()})
    token = parse_token(token_from_stick(stick)).token
    with pytest.raises(SecureHealthError, match="expired on 2023-11-21") as caught:
        check_expiry(token, EXPIRES_S + 86_400)
    assert code_of(caught) == "token.expired"


def test_what_is_no_stick_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nowhere", Path("/dev/null")):
        with pytest.raises(SecureHealthError) as caught:
            token_from_stick(path)
        assert code_of(caught) == "medium.cannot_open"


def test_a_stick_that_ends_early_is_hardware_s_fault(tmp_path: Path) -> None:
    stick = make_stick(tmp_path / "stick", {STICK_FILE: TEXT.encode()})
    with stick.open("r+b") as stream:
        stream.truncate(4096)
    with pytest.raises(HardwareError) as caught:
        token_from_stick(stick)
    assert caught.value.code == "stick.unreadable"


def test_a_line_from_a_scanner_gives_its_token() -> None:
    assert parse_token(token_from_line(io.StringIO(TEXT + "\nmore\n"))).token == TOKEN


@pytest.mark.parametrize("typed", ["", "\n", "   \n"])
def test_nothing_typed_says_so(typed: str) -> None:
    with pytest.raises(SecureHealthError) as caught:
        token_from_line(io.StringIO(typed))
    assert code_of(caught) == "code.nothing_typed"


def test_bytes_that_are_no_text_and_an_endless_line_are_no_token() -> None:
    with pytest.raises(SecureHealthError) as caught:
        token_from_line(io.TextIOWrapper(io.BytesIO(b"\xff\xfe\xff\n"), encoding="utf-8"))
    assert code_of(caught) == "code.nothing_typed"
    with pytest.raises(SecureHealthError) as caught:
        parse_token(token_from_line(io.StringIO("SEH1:" + "A" * 1_000_000)))
    assert code_of(caught) == "token.damaged"


def test_a_picture_file_gives_its_token(tmp_path: Path) -> None:
    segno.make_qr(TEXT, error="m").save(str(tmp_path / "code.png"), scale=4)
    assert token_from_image(tmp_path / "code.png") == TEXT


def test_a_picture_without_a_code_and_one_of_something_else(tmp_path: Path) -> None:
    segno.make_qr("https://example.org/").save(str(tmp_path / "other.png"), scale=4)
    with pytest.raises(SecureHealthError) as caught:
        token_from_image(tmp_path / "other.png")
    assert code_of(caught) == "code.none_found"


def test_a_file_that_is_no_picture_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text(TEXT)
    for path, code in (
        (tmp_path / "text.png", "code.not_a_picture"),
        (tmp_path / "nowhere.png", "medium.cannot_open"),
        (tmp_path, "medium.cannot_open"),
    ):
        with pytest.raises(SecureHealthError) as caught:
            token_from_image(path)
        assert code_of(caught) == code


def test_a_picture_file_of_any_size_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(1 << 33)
    with pytest.raises(SecureHealthError, match="larger than") as caught:
        token_from_image(tmp_path / "huge.png")
    assert code_of(caught) == "medium.cannot_open"


def test_a_box_that_cannot_read_codes_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segno.make_qr(TEXT).save(str(tmp_path / "code.png"))
    monkeypatch.setitem(sys.modules, "zxingcpp", None)
    monkeypatch.delitem(sys.modules, "agent.enrolment.qr", raising=False)
    with pytest.raises(SecureHealthError, match="zxingcpp") as caught:
        token_from_image(tmp_path / "code.png")
    assert code_of(caught) == "code.missing_library"
