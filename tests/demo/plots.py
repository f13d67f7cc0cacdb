"""Line charts as inline SVG: themed by the page's CSS variables, readable without colour, a title on each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 14.0, 12.0, 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """One curve over whole-numbered steps; NaN leaves a gap."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Guide:
    """A horizontal line to compare with."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def round_ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose `low..high`."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def line_chart(line: Line, *, title: str, guides: Sequence[Guide] = (), digits: int = 3) -> str:
    """Draw one curve with its guides.

    Args:
        line: The curve, at least one finite value.
        title: What the chart shows, for readers who cannot see it.
        guides: Values to compare with, each labelled at the right end.
        digits: Decimals in labels.
    """
    points = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if math.isfinite(value)]
    finite = [value for _, value in points] + [guide.value for guide in guides if math.isfinite(guide.value)]
    ticks = round_ticks(min(finite), max(finite))
    across = Axis(min(line.steps), max(*line.steps, min(line.steps) + 1), LEFT, WIDTH - RIGHT)
    up = Axis(ticks[0], ticks[-1] if len(ticks) > 1 else ticks[0] + 1, HEIGHT - BOTTOM, TOP)
    parts = [_grid(ticks, up), _steps(line.steps, across)]
    end = points[-1][1]
    parts += [_guide(guide, up, below=guide.value < end) for guide in guides if math.isfinite(guide.value)]
    parts.append(_curve(points, across, up, digits))
    description = f"{title}: from {points[0][1]:.{digits}f} after {points[0][0]} rounds to {points[-1][1]:.{digits}f}."
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )


def _grid(ticks: Sequence[float], up: Axis) -> str:
    decimals = max((len(f"{tick:g}".partition(".")[2]) for tick in ticks), default=0)
    rows = []
    for tick in ticks:
        y = up.at(tick)
        rows.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        rows.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.{decimals}f}</text>')
    return "".join(rows)


def _steps(steps: Sequence[int], across: Axis) -> str:
    wanted = [tick for tick in round_ticks(min(steps), max(steps), count=5) if tick == int(tick)]
    shown = [tick for tick in wanted if min(steps) <= tick <= max(steps)]
    y = HEIGHT - BOTTOM + 18
    labels = [
        f'<text class="tick" x="{across.at(tick):.1f}" y="{y}" text-anchor="middle">{tick:.0f}</text>' for tick in shown
    ]
    return "".join(labels)


def _guide(guide: Guide, up: Axis, *, below: bool) -> str:
    """A guide with its label on the side that the curve's end leaves free."""
    y = up.at(guide.value)
    label_y = y + 15 if below else y - 6
    return (
        f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="guide-label" x="{WIDTH - RIGHT}" y="{label_y:.1f}" text-anchor="end">'
        f"{escape(guide.label)}</text>"
    )


def _curve(points: Sequence[tuple[int, float]], across: Axis, up: Axis, digits: int) -> str:
    path = " ".join(f"{across.at(step):.1f},{up.at(value):.1f}" for step, value in points)
    dots = [
        f'<circle class="dot" cx="{across.at(step):.1f}" cy="{up.at(value):.1f}" r="{4 if index else 3}">'
        f"<title>After {step} rounds: {value:.{digits}f}</title></circle>"
        for index, (step, value) in enumerate(points)
    ]
    return f'<polyline class="curve" points="{path}"/>{"".join(dots)}'
