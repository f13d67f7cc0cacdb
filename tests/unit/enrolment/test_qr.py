"""A token's code, read as a technician's camera shows it."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import segno
import zxingcpp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from agent.core.errors import OperatorError
from agent.enrolment.qr import MAX_PIXELS, Picture, parse_picture, terminal_code, tokens_in
from agent.trust.token import parse_token
from tests.simulators.tokens import BOUND, TOKEN, token_text

TEXT = token_text()
PAPER_WIDTH, PAPER_HEIGHT = 1280, 720
"""A camera's frame."""


def drawn(text: str = TEXT, scale: int = 6) -> Picture:
    """The code on its own, with the quiet zone of the standard."""
    out = io.BytesIO()
    segno.make_qr(text, error="m").save(out, kind="png", scale=scale)
    return parse_picture(out.getvalue())


def photographed(code: Picture, corners: list[tuple[float, float]], *, grey: tuple[int, int] = (40, 200)) -> Picture:
    """The code on a desk: a projective image of it with its `corners` (x, y; clockwise from top left) in the frame."""
    height, width = code.shape
    square = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    rows = [
        row
        for (x, y), (u, v) in zip(corners, square, strict=True)
        for row in ((x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y))
    ]
    solution = np.append(np.linalg.solve(np.array(rows), square.ravel()), 1).reshape(3, 3)
    x, y = np.meshgrid(np.arange(PAPER_WIDTH), np.arange(PAPER_HEIGHT))
    u, v, w = np.tensordot(solution, np.stack([x, y, np.ones_like(x)]), axes=1)
    u, v = np.floor(u / w).astype(int), np.floor(v / w).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < width) & (v < height)
    frame = np.full((PAPER_HEIGHT, PAPER_WIDTH), 130.0)
    dark, light = grey
    frame[inside] = dark + code[v[inside], u[inside]] / 255.0 * (light - dark)
    return frame.astype(np.uint8)


def blurred(picture: Picture, radius: float) -> Picture:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def noisy(picture: Picture, deviation: float) -> Picture:
    noise = np.random.default_rng(7).normal(0, deviation, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


FRONT = [(380.0, 100.0), (900.0, 100.0), (900.0, 620.0), (380.0, 620.0)]
ASKEW = [(420.0, 90.0), (930.0, 160.0), (850.0, 660.0), (330.0, 560.0)]
FROM_BELOW = [(450.0, 150.0), (830.0, 150.0), (960.0, 640.0), (320.0, 640.0)]


def test_the_size_of_a_code() -> None:
    for token, most in ((TOKEN, 12), (BOUND, 13), (replace(TOKEN, registrar="10.0.0.1:8443"), 11)):
        code = segno.make_qr(token_text(token), error="m")
        assert isinstance(code.version, int)
        assert code.version <= most
        assert code.mode == "alphanumeric"


@pytest.mark.parametrize("scale", [2, 3, 4, 8, 16])
def test_every_printed_size(scale: int) -> None:
    assert tokens_in(drawn(scale=scale)) == [TEXT]


@pytest.mark.parametrize("angle", [0, 7, 45, 90, 133, 180, 270])
def test_every_rotation(angle: int) -> None:
    turned = Image.fromarray(drawn()).rotate(angle, expand=True, fillcolor=255)
    assert tokens_in(np.asarray(turned)) == [TEXT]


@pytest.mark.parametrize("corners", [FRONT, ASKEW, FROM_BELOW], ids=["front", "askew", "from below"])
@pytest.mark.parametrize("light", [(40, 200), (90, 160), (0, 255)], ids=["indoors", "dim", "bright"])
def test_photographs_from_every_side(corners: list[tuple[float, float]], light: tuple[int, int]) -> None:
    frame = noisy(blurred(photographed(drawn(), corners, grey=light), 1.0), 6)
    assert parse_token(*tokens_in(frame)).token == TOKEN


def test_light_that_falls_from_one_side() -> None:
    shade = np.linspace(0.35, 1.0, PAPER_WIDTH)[None, :]
    assert tokens_in((photographed(drawn(), ASKEW) * shade).astype(np.uint8)) == [TEXT]


def test_the_longer_token_of_one_box_too() -> None:
    text = token_text(BOUND)
    assert tokens_in(noisy(blurred(photographed(drawn(text), ASKEW), 1.0), 6)) == [text]


def test_a_hand_over_one_corner_is_no_wrong_token() -> None:
    frame = photographed(drawn(), FRONT)
    for covered in (40, 80, 160, 320):
        hidden = frame.copy()
        hidden[620 - covered : 620, 900 - covered : 900] = 90
        assert tokens_in(hidden) in ([], [TEXT])


def test_two_codes_in_one_picture_are_two() -> None:
    other = token_text(replace(TOKEN, id=bytes(8)))
    left, right = drawn(scale=4), drawn(other, scale=4)
    assert tokens_in(np.hstack([left, right])) == sorted((TEXT, other))


def test_codes_of_others_are_left_out() -> None:
    ours, theirs = drawn(scale=4), drawn("https://example.org/a-label-on-the-box", scale=4)
    assert tokens_in(theirs) == []
    both = np.full((ours.shape[0] + theirs.shape[0], ours.shape[1]), 255, np.uint8)
    both[: ours.shape[0]] = ours
    both[ours.shape[0] :, : theirs.shape[1]] = theirs
    assert tokens_in(both) == [TEXT]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_pictures_of_every_mode(mode: str) -> None:
    grey = Image.fromarray(drawn(scale=4))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    out = io.BytesIO()
    picture.save(out, "PNG")
    assert tokens_in(parse_picture(out.getvalue())) == [TEXT]


def test_a_code_on_transparent_ground() -> None:
    out = io.BytesIO()
    segno.make_qr(TEXT, error="m").save(out, kind="png", scale=4, light=None)
    assert tokens_in(parse_picture(out.getvalue())) == [TEXT]


def test_a_photograph_as_jpeg() -> None:
    out = io.BytesIO()
    Image.fromarray(photographed(drawn(), ASKEW)).save(out, "JPEG", quality=60)
    assert tokens_in(parse_picture(out.getvalue())) == [TEXT]


def _png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("size", [(MAX_PIXELS // 4096 + 1, 4096), (1 << 14, 1 << 14)])
def test_a_picture_that_unpacks_to_too_many_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(OperatorError, match="too many pixels") as caught:
        parse_picture(_png(*size))
    assert caught.value.code == "code.not_a_picture"


VALID = {"PNG": b"", "JPEG": b""}
for _kind in VALID:
    _out = io.BytesIO()
    Image.fromarray(drawn(scale=1)).save(_out, _kind)
    VALID[_kind] = _out.getvalue()


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(VALID)),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.integers(1, 4000),
)
def test_no_altered_picture_crashes_the_decoder(kind: str, changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(VALID[kind])
    for at, value in changes:
        data[at % len(data)] = value
    try:
        assert tokens_in(parse_picture(bytes(data[:end]))) in ([], [TEXT])
    except OperatorError as error:
        assert error.code == "code.not_a_picture"  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("ground", ["dark", "light"])
def test_a_code_in_a_terminal_can_be_read_from_it(ground: str) -> None:
    text = "HTTPS://REGISTRAR.EXAMPLE.ORG/BOX/1"
    halves = {"█": (255, 255), "▀": (255, 0), "▄": (0, 255), " ": (0, 0)}
    rows = [[halves[character] for character in line] for line in terminal_code(text).rstrip("\n").split("\n")]
    pixels = np.array(rows, np.uint8).transpose(0, 2, 1).reshape(2 * len(rows), -1)
    shown = pixels if ground == "dark" else 255 - pixels
    (found,) = zxingcpp.read_barcodes(shown.repeat(4, 0).repeat(4, 1))
    assert found.text == text
