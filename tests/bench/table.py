"""One measured figure a row: what it is, what it should be, and what a peer needs for the same work in the same run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a row's value.

    Args:
        direction: `<=` where less is better, `>=` where more is.
        limit: In the row's unit.
    """

    direction: Literal["<=", ">="]
    limit: float

    def holds(self, value: float) -> bool:
        """Whether `value` keeps the bound; NaN never does."""
        return value <= self.limit if self.direction == "<=" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Args:
        name: What was measured, as a reader says it: "plain round, 4 nodes, 1 M parameters".
        value: In `unit`.
        unit: "s", "MB", "" for a bare number.
        target: What `value` should keep, if anything is promised.
        peer: What the peer needed for the same work in the same run, in `unit`.
        peer_name: Who the peer is: "stock flower-supernode".
        least_ratio: How many times better than the peer the value must be, if that is promised.
        better: Which way is better; a target's direction overrules it.
    """

    name: str
    value: float
    unit: str = ""
    target: Target | None = None
    peer: float | None = None
    peer_name: str = ""
    least_ratio: float | None = None
    better: Literal["lower", "higher"] = "lower"

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer; None without one."""
        if self.peer is None:
            return None
        higher = self.better == "higher" if self.target is None else self.target.direction == ">="
        above, below = (self.value, self.peer) if higher else (self.peer, self.value)
        return above / below if below else math.inf

    @property
    def holds(self) -> bool | None:
        """Whether every promise about this row is kept; None where nothing is promised."""
        verdicts = [self.target.holds(self.value)] if self.target else []
        if self.least_ratio is not None:
            verdicts.append(self.ratio is not None and self.ratio >= self.least_ratio)
        return all(verdicts) if verdicts else None

    @property
    def promise(self) -> str:
        """The target as text: `<= 1 s, >= 8 x peer`."""
        parts = [f"{self.target.direction} {self.target.limit:g} {self.unit}".strip()] if self.target else []
        parts += [f">= {self.least_ratio:g} x peer"] if self.least_ratio is not None else []
        return ", ".join(parts)

    def as_json(self) -> dict[str, object]:
        """The row as `build/bench.json` keeps it."""
        return {
            "name": self.name,
            "value": _finite(self.value),
            "unit": self.unit,
            "target": self.promise or None,
            "holds": self.holds,
            "peer": _finite(self.peer),
            "peer_name": self.peer_name or None,
            "ratio": _finite(self.ratio),
        }


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """A row whose value must not exceed `limit`."""
    return Row(name, value, unit, Target("<=", limit))


def at_least(name: str, value: float, unit: str, limit: float) -> Row:
    """A row whose value must reach `limit`."""
    return Row(name, value, unit, Target(">=", limit), better="higher")


def render(rows: Iterable[Row]) -> Table:
    """The rows as one terminal table."""
    table = Table(title="Benchmarks", header_style="bold", title_justify="left")
    for heading in ("what", "value", "target", "holds", "peer", "ratio"):
        table.add_column(heading, justify="right" if heading in {"value", "ratio"} else "left")
    for row in rows:
        table.add_row(row.name, _amount(row.value, row.unit), row.promise, _verdict(row.holds), _peer(row), _times(row))
    return table


def store_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _amount(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _verdict(holds: bool | None) -> str:
    return {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}[holds]


def _peer(row: Row) -> str:
    return "" if row.peer is None else f"{_amount(row.peer, row.unit)} {row.peer_name}".strip()


def _times(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.3g} x"
