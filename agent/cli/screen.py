"""`seh-agent screen`: what stands on the screen of the appliance, where nobody can log in and no key does anything."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.service.state import AgentStatus

EVERY_S: Final = 1.0
REDRAWN_S: Final = 30.0
"""Whatever somebody else wrote over it is gone by then."""
LEAST_COLUMNS: Final = 36
_QUIET_MODULES: Final = 2  # enough on a dark ground; ISO/IEC 18004 asks for 4 on paper
_GLYPH_ROWS: Final = 4
_GLYPH_COLUMNS: Final = 6
_HALVES: Final = MappingProxyType({(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"})

# Five columns of seven dots, the lowest bit on top.
_GLYPHS: Final = MappingProxyType(
    {
        letter: bytes.fromhex(columns)
        for letter, columns in {
            "A": "7e1111117e", "B": "7f49494936", "C": "3e41414122", "D": "7f4141221c", "E": "7f49494941",
            "F": "7f09090901", "G": "3e4149497a", "H": "7f0808087f", "I": "00417f4100", "J": "2040413f01",
            "K": "7f08142241", "L": "7f40404040", "M": "7f020c027f", "N": "7f0408107f", "O": "3e4141413e",
            "P": "7f09090906", "Q": "3e4151215e", "R": "7f09192946", "S": "4649494931", "T": "01017f0101",
            "U": "3f4040403f", "V": "1f2040201f", "W": "3f4038403f", "X": "6314081463", "Y": "0708700807",
            "Z": "6151494543",
        }.items()
    }
)  # fmt: skip

_WORDS: Final = MappingProxyType(
    {
        "starting": "starting",
        "waiting": "needs help",
        "waiting for enrolment": "not enrolled",
        "enrolling": "enrolling",
        "joining": "joining",
        "online": "online",
        "lost": "no contact",
        "stopped": "stopped",
    }
)
_NOBODY: Final = "Nothing has to be done. The box works by itself."


@dataclass(frozen=True, slots=True)
class View:
    """What the screen says.

    Args:
        state: In one or two words.
        lines: What is to be known, a paragraph each.
        now: What a person should do.
        box: The box's name; empty where not known yet.
        addresses: Of the box in its network.
        version: Of the software.
        code: What a telephone shall read; empty where nothing.
        well: Whether nobody is needed.
    """

    state: str
    lines: tuple[str, ...]
    now: str
    box: str = ""
    addresses: tuple[str, ...] = ()
    version: str = ""
    code: str = ""
    well: bool = True


def view_of(status: AgentStatus | None, addresses: Sequence[str], version: str) -> View:
    """What a status means for a person who stands before the box.

    Args:
        status: The agent's; None where none runs.
        addresses: Of the box in its network.
        version: Of the software that draws.
    """
    if status is None:
        now = "Wait a minute. Where this stays, switch the box off and on; then tell the consortium's operator."
        return View("stopped", ("The agent does not run.",), now, "", tuple(addresses), version, well=False)
    lines = [f"Works for {status.site}."] if status.site else []
    if status.answering:
        lines.append(f"Works on {status.answering}.")
    lines += [text for text in (status.sentence, status.session_sentence) if text]
    lines += status.notice.splitlines()
    if status.phone_code:
        lines += [f"Page: {status.phone_address}", f"Code: {status.phone_code}"]
    if status.box_words:
        lines.append(f"This box's words: {status.box_words}")
    steps = [text for text in (status.next_step, status.session_next_step) if text]
    state = "working" if status.answering else _WORDS.get(status.link, status.link)
    if status.needs_person:
        state = "key needed"
    return View(
        state,
        tuple(lines),
        " ".join(steps) or _NOBODY,
        status.box,
        tuple(addresses),
        status.version,
        status.phone_address if status.phone_code else "",
        well=not steps,
    )


def draw(view: View, columns: int, rows: int) -> list[str]:
    """The screen's lines, each `columns` wide, at most `rows`.

    Args:
        view: What it says.
        columns: Width in characters.
        rows: Height in lines.
    """
    code = code_lines(view.code) if view.code else []
    if code and (len(code) > rows - 3 or len(code[0]) + LEAST_COLUMNS > columns):
        code = []  # the page's address can be typed
    head = _between("SECUR-E-HEALTH" + (f"  box {_plain(view.box)}" if view.box else ""), view.version, columns)
    state = _plain(view.state)
    large = _large(state, columns) if rows - 1 - _GLYPH_ROWS >= max(len(code), 8) else [f" {state.upper()}", ""]
    width = columns - (len(code[0]) + 1 if code else 0)
    text = [line for paragraph in view.lines for line in _wrap(paragraph, width)]
    text += ["", *_wrap(f"Now: {view.now}", width)]
    foot = _wrap(f"Address {', '.join(view.addresses) or 'none: is the network cable in?'}", width)
    space = rows - 1 - len(large)
    body = text[: space - len(foot)]
    body += [""] * (space - len(foot) - len(body)) + foot
    joined = [f"{left:{width}} {right}" for left, right in zip_longest(body, code, fillvalue="")] if code else body
    return [f"{line:{columns}}"[:columns] for line in (head, *large, *joined)]


def code_lines(text: str) -> list[str]:
    """A QR code in half blocks, light on dark; empty where the library is missing or the text is too long."""
    try:
        import segno  # noqa: PLC0415 - an optional library
    except ImportError:
        return []
    try:
        drawn = segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError:
        return []
    light = [[not dot for dot in row] for row in drawn.matrix_iter(border=_QUIET_MODULES)]
    return _halved(light)


def addresses_of(table: str) -> list[str]:
    """The host's own IPv4 addresses from /proc/net/fib_trie, loopback left out."""
    found: list[str] = []
    last = ""
    for line in table.splitlines():
        words = line.split()
        if words and words[0] in {"|--", "+--"}:
            last = words[1]
        elif words[:2] == ["/32", "host"] and words[2:] == ["LOCAL"] and last not in found:
            found.append(last)
    return [address for address in found if not ip_address(address).is_loopback]


def screen(
    once: Annotated[bool, typer.Option("--once", help="Draw it once, in plain text.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Show on this terminal how the box does, until it is told to stop; nothing that is typed counts."""
    directory = load_config(config).node.state_directory
    if once:
        size = shutil.get_terminal_size()
        typer.echo("\n".join(line.rstrip() for line in draw(_look(directory), size.columns, size.lines)))
        return
    if not sys.stdout.isatty():
        raise OperatorError(
            "cli.no_terminal",
            "There is no terminal to draw on.",
            next_step="Run it at a terminal, or draw it once with --once.",
        )
    _show(directory)


def _show(directory: Path) -> None:
    shown: tuple[View, os.terminal_size] | None = None
    age_s = 0.0
    pause = threading.Event()
    first = _look(directory).version
    # Where the agent runs another release, the service manager starts the screen anew from that one.
    while (view := _look(directory)).version == first:
        size = _size()
        age_s += EVERY_S
        if (view, size) != shown or age_s >= REDRAWN_S:
            sys.stdout.write(_painted(draw(view, size.columns, size.lines), well=view.well))
            sys.stdout.flush()
            shown, age_s = (view, size), 0.0
        pause.wait(EVERY_S)


def _size() -> os.terminal_size:
    """The terminal's; a console that does not know its own (0 x 0) has the least."""
    size = os.get_terminal_size(sys.stdout.fileno())
    return size if size.columns >= LEAST_COLUMNS and size.lines >= _GLYPH_ROWS else os.terminal_size((80, 25))


def _painted(lines: Sequence[str], *, well: bool) -> str:
    """ECMA-48: white on black, no cursor, from the upper left; the state in green or yellow."""
    colour = "\x1b[92m" if well else "\x1b[93m"
    first, *rest = lines
    state, body = rest[:_GLYPH_ROWS], rest[_GLYPH_ROWS:]
    painted = [f"\x1b[7m{first}\x1b[27m", *(f"{colour}{line}\x1b[97m" for line in state), *body]
    return "\x1b[?25l\x1b[0;97;40m\x1b[H" + "\r\n".join(painted) + "\x1b[J"


def _look(directory: Path) -> View:
    from agent.core.version import software_version  # noqa: PLC0415 - other commands need not load it
    from agent.service.state import load_status  # noqa: PLC0415 - other commands need not load the service

    try:
        table = Path("/proc/self/net/fib_trie").read_text(encoding="ascii")
    except OSError:
        table = ""
    return view_of(load_status(directory), addresses_of(table), software_version())


def _large(words: str, columns: int) -> list[str]:
    """Words in letters of four lines; in plain capitals where they do not fit."""
    if len(words) * _GLYPH_COLUMNS > columns or not set(words.upper()) <= {*_GLYPHS, " "}:
        return [f" {words.upper()}", *[""] * (_GLYPH_ROWS - 1)]
    dots = [column for letter in words.upper() for column in (0, *_GLYPHS.get(letter, bytes(5)))]
    return _halved([[bool(column >> row & 1) for column in dots] for row in range(2 * _GLYPH_ROWS)])


def _halved(dots: Sequence[Sequence[bool]]) -> list[str]:
    """Two rows of dots in one line of characters."""
    blank = [False] * len(dots[0])
    pairs = zip_longest(dots[::2], dots[1::2], fillvalue=blank)
    return ["".join(_HALVES[upper, lower] for upper, lower in zip(*pair, strict=True)) for pair in pairs]


def _between(left: str, right: str, columns: int) -> str:
    return f" {left}{_plain(right):>{max(columns - len(left) - 2, 1)}} "


def _wrap(text: str, width: int) -> list[str]:
    return [f" {line}" for line in textwrap.wrap(_plain(text), width - 2)]


def _plain(text: str) -> str:
    """What others wrote moves no cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
