"""How a model improved, as a picture: AUC and loss by round, as one SVG that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 420
HEIGHT: Final = 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 14, 30, 34
_STYLE: Final = (
    "text{font:12px sans-serif;fill:#222}.h{font-weight:bold}polyline{fill:none;stroke:#1f5fa8;stroke-width:2}"
    "circle{fill:#1f5fa8}line{stroke:#999}"
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over rounds.

    Args:
        label: What it is.
        points: (rounds behind the model, value); a value that is None leaves a gap.
    """

    label: str
    points: Sequence[tuple[int, float | None]]


def draw_curves(curves: Sequence[Curve]) -> bytes:
    """Draw curves side by side; one without a value says so."""
    width = WIDTH * len(curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img">',
        f"<title>{escape('; '.join(map(_described, curves)))}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for number, curve in enumerate(curves):
        parts.append(f'<g transform="translate({number * WIDTH},0)">{_panel(curve)}</g>')
    return "".join([*parts, "</svg>\n"]).encode()


def _known(curve: Curve) -> list[tuple[int, float]]:
    return [(step, value) for step, value in curve.points if value is not None and math.isfinite(value)]


def _described(curve: Curve) -> str:
    known = _known(curve)
    if not known:
        return f"{curve.label}: not known"
    (first, start), (last, end) = known[0], known[-1]
    return f"{curve.label}: {start:.3f} after {first} rounds, {end:.3f} after {last}"


def _panel(curve: Curve) -> str:
    known = _known(curve)
    head = f'<text class="h" x="{_LEFT}" y="18">{escape(curve.label)}</text>'
    if not known:
        return f'{head}<text x="{_LEFT}" y="{HEIGHT // 2}">not known</text>'
    steps, values = [step for step, _ in known], [value for _, value in known]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    first, last = min(steps), max(*steps, min(steps) + 1)
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def at(step: int, value: float) -> tuple[float, float]:
        across = _LEFT + (step - first) / (last - first) * (right - _LEFT)
        return round(across, 1), round(bottom - (value - low) / span * (bottom - _TOP), 1)

    places = [at(*point) for point in known]
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="3"><title>after {step} rounds: {value:.4f}</title></circle>'
        for (x, y), (step, value) in zip(places, known, strict=True)
    )
    line = " ".join(f"{x},{y}" for x, y in places)
    axes = (
        f'<line x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
        f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{bottom}"/>'
    )
    ticks = (
        f'<text x="{_LEFT - 6}" y="{_TOP + 4}" text-anchor="end">{low + span:.3f}</text>'
        f'<text x="{_LEFT - 6}" y="{bottom + 4}" text-anchor="end">{low:.3f}</text>'
        f'<text x="{_LEFT}" y="{bottom + 18}">{first}</text>'
        f'<text x="{right}" y="{bottom + 18}" text-anchor="end">{last} rounds</text>'
    )
    return f'{head}{axes}{ticks}<polyline points="{line}"/>{dots}'
