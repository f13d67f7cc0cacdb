"""What the demonstration shows while it runs: a live view on a terminal, plain lines everywhere else."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tests.demo.summary import RoundRecord

SPARKS = "▁▂▃▄▅▆▇█"
SHOWN_ROUNDS = 6
SHOWN_HOSPITALS = 20
STATE_STYLES = {
    "waiting": "dim",
    "key made": "cyan",
    "in the repository": "cyan",
    "starting": "yellow",
    "stick in": "yellow",
    "enrolled": "green",
    "waits for a touch": "bold yellow",
    "joined": "green",
    "training": "bold green",
    "lost": "bold red",
    "refused": "bold red",
    "done": "green",
}


@dataclass(frozen=True, slots=True)
class HospitalLine:
    """One hospital as the view shows it."""

    name: str
    state: str = "waiting"
    key: str = ""


class View(Protocol):
    """Where the demonstration reports to."""

    def __enter__(self) -> Self:
        """Start showing."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing; what stands there stays."""
        ...

    def note(self, text: str) -> None:
        """Say one line that must stay readable."""
        ...

    def phase(self, name: str) -> None:
        """Begin a phase."""
        ...

    def hospital(self, site: str, *, state: str, key: str | None = None) -> None:
        """A hospital's state has changed."""
        ...

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""
        ...


def open_view(console: Console, *, title: str, hospitals: Mapping[str, str], rounds: int) -> View:
    """The live view where `console` is a terminal, else plain lines.

    Args:
        console: Where to write.
        title: The study's title.
        hospitals: Site -> name, in order.
        rounds: Rounds of training.
    """
    lines = {site: HospitalLine(name) for site, name in hospitals.items()}
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, title, lines, rounds)
    return PlainView(console, title, lines, rounds)


class PlainView:
    """One line an event, for logs and pipes."""

    def __init__(self, console: Console, title: str, hospitals: dict[str, HospitalLine], rounds: int) -> None:
        self._console, self._title, self._hospitals, self._rounds = console, title, hospitals, rounds
        self._begin_s = time.monotonic()

    def __enter__(self) -> Self:
        """Say what begins."""
        self.note(f"{self._title}: {len(self._hospitals)} hospitals, {self._rounds} rounds")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def note(self, text: str) -> None:
        """Say one line, with the seconds since the start."""
        elapsed = f"[{time.monotonic() - self._begin_s:6.1f} s] "
        self._console.print(elapsed + text, markup=False, highlight=False, soft_wrap=True)

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self.note(name)

    def hospital(self, site: str, *, state: str, key: str | None = None) -> None:
        """A hospital's state has changed."""
        self.note(f"{self._hospitals[site].name}: {state}{f' ({key})' if key else ''}")

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""
        name = f"round {record.number}/{self._rounds}" if record.number <= self._rounds else "last evaluation"
        scores = f"loss {_number(record.loss)}, AUC {_number(record.auc, 3)}"
        self.note(f"{name}: {'scores withheld' if record.withheld else scores}, {record.seconds:.2f} s")


@dataclass(slots=True)
class _Picture:
    """All that the live view draws."""

    title: str
    hospitals: dict[str, HospitalLine]
    rounds: int
    phase: str = ""
    records: list[RoundRecord] = field(default_factory=list)


class LiveView:
    """A picture that is redrawn four times a second."""

    def __init__(self, console: Console, title: str, hospitals: dict[str, HospitalLine], rounds: int) -> None:
        self._picture = _Picture(title, hospitals, rounds)
        self._begin_s = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last picture standing."""
        self._live.stop()

    def note(self, text: str) -> None:
        """Say one line above the picture."""
        self._live.console.print(text, markup=False, highlight=False)

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self._picture.phase = name

    def hospital(self, site: str, *, state: str, key: str | None = None) -> None:
        """A hospital's state has changed."""
        line = self._picture.hospitals[site]
        self._picture.hospitals[site] = replace(line, state=state, key=line.key if key is None else key)

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""
        self._picture.records.append(record)

    def _draw(self) -> RenderableType:
        picture = self._picture
        elapsed = f"{time.monotonic() - self._begin_s:.0f} s"
        self._spinner.update(text=Text(f"{picture.phase}", style="bold"))
        body = Group(
            self._spinner,
            Text(),
            _hospital_table(list(picture.hospitals.values())),
            Text(),
            _progress(picture.records, picture.rounds),
            _curves([record for record in picture.records if record.number > 1]),
            _round_table(picture.records, picture.rounds),
        )
        return Panel(body, title=f"[bold]{picture.title}", subtitle=elapsed, border_style="cyan", padding=(1, 2))


def spark(values: Sequence[float], *, width: int = 40) -> str:
    """The last `width` finite values as a line of blocks, scaled between their extremes."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1)) if span else 3] for value in shown)


def _hospital_table(lines: Sequence[HospitalLine]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for line in lines[:SHOWN_HOSPITALS]:
        style = STATE_STYLES.get(line.state, "")
        table.add_row(Text("●", style=style), line.name, Text(line.state, style=style), Text(line.key, style="dim"))
    if len(lines) > SHOWN_HOSPITALS:
        table.add_row("", f"and {len(lines) - SHOWN_HOSPITALS} more", "", "")
    return table


def _progress(records: Sequence[RoundRecord], rounds: int) -> RenderableType:
    if not records:
        return Text()
    done = min(records[-1].number, rounds)
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_row(
        ProgressBar(total=rounds, completed=done, width=40, complete_style="cyan", finished_style="green"),
        f"round {done} of {rounds}",
    )
    return table


def _curves(records: Sequence[RoundRecord]) -> RenderableType:
    """Loss and AUC of the trained models; round 1 scored the untrained one, which would flatten the rest."""
    if len(records) < 2:
        return Text()
    if records[-1].withheld:
        return Text("Scores are withheld under noise; the trained model is scored at the end.", style="dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    curves = (("loss", [record.loss for record in records], 4), ("AUC", [record.auc for record in records], 3))
    for name, values, digits in curves:
        table.add_row(
            name, Text(spark(values), style="cyan"), f"{_number(values[0], digits)} → {_number(values[-1], digits)}"
        )
    return table


def _round_table(records: Sequence[RoundRecord], rounds: int) -> RenderableType:
    if not records:
        return Text()
    table = Table(box=SIMPLE_HEAD, header_style="dim", padding=(0, 2, 0, 0))
    withheld = records[-1].withheld
    for heading in ("round", "time") if withheld else ("round", "loss", "AUC", "accuracy", "time"):
        table.add_column(heading, justify="right")
    for record in records[-SHOWN_ROUNDS:]:
        name = str(record.number) if record.number <= rounds else "last"
        scores = () if withheld else (_number(record.loss), _number(record.auc, 3), f"{100 * record.accuracy:.1f} %")
        table.add_row(name, *scores, f"{record.seconds:.2f} s")
    return table


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
