"""Codes as files and in terminals, and the printed sheet, read back from its pixels."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zxingcpp
from PIL import Image, ImageFilter

from agent.core.errors import OperatorError
from agent.enrolment.medium import token_from_image
from agent.enrolment.qr import tokens_in
from agent.trust.token import parse_token
from provisioning.tokens.qr import make_code, store_code, store_secret, terminal_code
from provisioning.tokens.sheet import LABELS_PER_PAGE, MAX_BOX_CHARACTERS, Label, make_sheet
from tests.simulators.stick import find_tool
from tests.simulators.tokens import BOUND, TOKEN, token_text

TEXT = token_text()
WORDS = "abandon ability able about above absent absorb abstract"


def test_a_stored_code_is_read_by_the_box_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    store_code(tmp_path / "code.png", TEXT)
    assert token_from_image(tmp_path / "code.png") == TEXT
    assert (tmp_path / "code.png").stat().st_mode & 0o777 == 0o600


def test_a_drawing_is_one_too(tmp_path: Path) -> None:
    store_code(tmp_path / "code.svg", TEXT)
    assert b"<svg" in (tmp_path / "code.svg").read_bytes()


@pytest.mark.parametrize("name", ["code.jpg", "code", "code.png.txt"])
def test_another_kind_of_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError) as caught:
        store_code(tmp_path / name, TEXT)
    assert caught.value.code == "token.unknown_picture"
    assert not list(tmp_path.iterdir())


def test_one_token_is_not_written_over_another(tmp_path: Path) -> None:
    store_secret(tmp_path / "token", b"first")
    with pytest.raises(OperatorError) as caught:
        store_secret(tmp_path / "token", b"second")
    assert caught.value.code == "token.file_exists"
    assert (tmp_path / "token").read_bytes() == b"first"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        store_secret(tmp_path / "nowhere" / "token", b"")
    assert caught.value.code == "token.cannot_write"


def test_a_code_in_a_terminal_can_be_read_from_it() -> None:
    halves = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    rows = [[halves[character] for character in line] for line in terminal_code(TEXT).rstrip("\n").split("\n")]
    pixels = np.array(rows, np.uint8).transpose(0, 2, 1).reshape(2 * len(rows), -1)
    (found,) = zxingcpp.read_barcodes(pixels.repeat(3, 0).repeat(3, 1))
    assert found.text == TEXT
    assert len(rows[0]) == make_code(TEXT).symbol_size()[0]


def labels(count: int) -> list[Label]:
    tokens = [replace(BOUND if place % 2 else TOKEN, id=bytes([place] * 8)) for place in range(count)]
    return [Label(token, token_text(token), f"Box {place + 1}") for place, token in enumerate(tokens)]


def pages(sheet: bytes, place: Path, *, dots: int) -> list[Image.Image]:
    """The sheet, as a printer puts it on paper at `dots` an inch."""
    (place / "sheet.pdf").write_bytes(sheet)
    render = (find_tool("pdftoppm"), "-r", str(dots), "-gray", str(place / "sheet.pdf"), str(place / "page"))
    subprocess.run(render, check=True)
    return [Image.open(page) for page in sorted(place.glob("page-*.pgm"))]


@pytest.mark.parametrize("dots", [100, 300])
def test_every_code_of_a_sheet_is_read_back(tmp_path: Path, dots: int) -> None:
    made = labels(2 * LABELS_PER_PAGE + 1)
    shown = pages(make_sheet(made, consortium="Stroke", words=WORDS), tmp_path, dots=dots)
    assert len(shown) == 3
    read = [text for page in shown for text in tokens_in(np.asarray(page))]
    assert sorted(read) == sorted(label.text for label in made)


def test_a_sheet_that_was_copied_askew_is_still_read(tmp_path: Path) -> None:
    made = labels(LABELS_PER_PAGE)
    (page,) = pages(make_sheet(made, consortium="Stroke", words=WORDS), tmp_path, dots=150)
    copied = page.rotate(2.5, fillcolor=255, expand=True).filter(ImageFilter.GaussianBlur(1.2))
    assert len(tokens_in(np.asarray(copied))) == LABELS_PER_PAGE


def test_a_sheet_says_what_a_technician_has_to_know(tmp_path: Path) -> None:
    long = "Röntgenkeller, " * 20
    made = [*labels(2), replace(labels(1)[0], box=long)]
    (tmp_path / "sheet.pdf").write_bytes(make_sheet(made, consortium="Schlaganfall-Verbund Köln", words=WORDS))
    extract = (find_tool("pdftotext"), "-layout", str(tmp_path / "sheet.pdf"), "-")
    said = " ".join(subprocess.run(extract, check=True, capture_output=True, text=True).stdout.split())
    for part in ("Box 1", "Box 2", "Hospital: university-hospital-a", "2023-11-21 22:13 UTC", "0101010101010101"):
        assert part in said
    assert f"Schlaganfall-Verbund Köln: {WORDS}" in said
    assert BOUND.ek_digest is not None
    assert BOUND.ek_digest.hex()[:16] in said
    assert said.count("Röntgenkeller") == MAX_BOX_CHARACTERS // len("Röntgenkeller, ")
    assert TOKEN.secret.hex() not in said


def test_letters_that_the_sheet_cannot_show_do_not_stop_it(tmp_path: Path) -> None:
    label = replace(labels(1)[0], box="Nemocnice č. 3 病院")
    (page,) = pages(make_sheet([label], consortium="Příbram", words=WORDS), tmp_path, dots=100)
    assert [parse_token(text).token for text in tokens_in(np.asarray(page))] == [label.token]
