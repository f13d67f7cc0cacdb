"""A sheet of tokens to print: one label for each box, with what a technician has to know beside its code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from fpdf import FPDF

from agent.trust.token import Token
from provisioning.tokens.qr import QUIET_ZONE, make_code

LABELS_PER_PAGE: Final = 4
MAX_BOX_CHARACTERS: Final = 80
"""Two lines, so that all below them keeps its place."""
_MARGIN_MM, _WIDTH_MM, _HEIGHT_MM = 10.0, 190.0, 69.0  # of a label on A4
_CODE_MM: Final = 62.0
_TEXT_X_MM: Final = _MARGIN_MM + _CODE_MM + 6
_FONT: Final = "Helvetica"
_STEPS: Final = (
    "1. Switch the box on and connect it to the network.",
    "2. Show it this code: hold it into its camera, or under its scanner.",
    "3. If the box asks, compare the words on its screen with those of your consortium.",
    'Wait until it says "Enrolled". Destroy this label then; it works once, for one box.',
)


@dataclass(frozen=True, slots=True)
class Label:
    """One label.

    Args:
        token: What its code says.
        text: Its code.
        box: What the box is called at the hospital; at most `MAX_BOX_CHARACTERS`.
    """

    token: Token
    text: str = field(repr=False)
    box: str


def make_sheet(labels: Sequence[Label], *, consortium: str, words: str) -> bytes:
    """The sheet, as PDF (A4).

    Args:
        labels: One for each box.
        consortium: Its name.
        words: Its fingerprint, as a box may show it.
    """
    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(auto=False)
    pdf.set_title("Enrolment tokens")
    for place, label in enumerate(labels):
        if place % LABELS_PER_PAGE == 0:
            pdf.add_page()
        top = _MARGIN_MM + (place % LABELS_PER_PAGE) * _HEIGHT_MM
        _draw_code(pdf, label.text, top + (_HEIGHT_MM - _CODE_MM) / 2)
        _draw_text(pdf, _lines(label, consortium, words), top + 6)
        _draw_cut(pdf, top + _HEIGHT_MM)
    return bytes(pdf.output())


def _lines(label: Label, consortium: str, words: str) -> Iterable[tuple[str, int, str]]:
    """Style, size in points, text."""
    token = label.token
    until = datetime.fromtimestamp(token.expires_s, UTC)
    yield "B", 14, label.box[:MAX_BOX_CHARACTERS]
    yield "", 11, f"Hospital: {token.site}"
    yield "", 11, f"Valid until {until:%Y-%m-%d %H:%M} UTC. Token {token.id.hex()}"
    if token.ek_digest is not None:
        yield "", 9, f"For the one box whose key's digest begins with {token.ek_digest.hex()[:16]}."
    for step in _STEPS:
        yield "", 9, step
    yield "I", 9, f"{consortium}: {words}"


def _draw_code(pdf: FPDF, text: str, top: float) -> None:
    rows = [bytes(row) for row in make_code(text).matrix]
    module = _CODE_MM / (len(rows) + 2 * QUIET_ZONE)
    pdf.set_fill_color(0)
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            # Runs, not modules: viewers draw a hairline between two rectangles that only touch.
            length = next((at for at, dark in enumerate(row[x:]) if dark != row[x]), len(row) - x)
            if row[x]:
                left = _MARGIN_MM + (QUIET_ZONE + x) * module
                pdf.rect(left, top + (QUIET_ZONE + y) * module, length * module, module, style="F")
            x += length


def _draw_text(pdf: FPDF, lines: Iterable[tuple[str, int, str]], top: float) -> None:
    pdf.set_y(top)
    for style, size, line in lines:
        pdf.set_font(_FONT, style, size)
        pdf.set_x(_TEXT_X_MM)
        width = _MARGIN_MM + _WIDTH_MM - _TEXT_X_MM
        pdf.multi_cell(width, size * 0.46, _printable(line), align="L", new_x="LMARGIN", new_y="NEXT")


def _draw_cut(pdf: FPDF, y: float) -> None:
    pdf.set_draw_color(150)
    pdf.set_dash_pattern(dash=2, gap=2)
    pdf.line(0, y, pdf.w, y)
    pdf.set_dash_pattern()


def _printable(text: str) -> str:
    """What the PDF's built-in fonts can show; they know Western Europe's letters."""
    return text.encode("latin-1", errors="replace").decode("latin-1")
