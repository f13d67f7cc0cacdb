"""Figures of the pages: numbers in, lengths for SVG out; the words beside them say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.core.box_view import BudgetView, LeafView, RoundView

WHOLE: Final = 100.0
"""All lengths are in hundredths of the figure."""
MAX_BARS: Final = 24
_GAP: Final = 0.25
"""Of a bar's place."""
_RECEIPT: Final = "update-sent"


@dataclass(frozen=True, slots=True)
class BudgetBar:
    """Shares of what is allowed; together at most `WHOLE`.

    Args:
        spent: Released already.
        reserved: Promised.
    """

    spent: float
    reserved: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a column chart: what left in one round.

    Args:
        x: Its left edge.
        width: In hundredths.
        height: In hundredths of the highest.
        round: Which round.
        sent: Bytes.
        at_s: When, in seconds since 1970.
    """

    x: float
    width: float
    height: float
    round: int
    sent: int
    at_s: int


@dataclass(frozen=True, slots=True)
class RoundSeries:
    """What is shown of one study.

    Args:
        latest: Its newest round.
        bars: What left in the newest rounds, the oldest first.
        sent: Bytes in all of these.
        progress: Of the study's rounds, in hundredths.
    """

    latest: RoundView
    bars: tuple[Bar, ...]
    sent: int
    progress: float


def budget_bar(row: BudgetView) -> BudgetBar:
    """The bar of one row of the ledger; all zero where nothing is allowed."""
    if row.epsilon <= 0:
        return BudgetBar(0.0, 0.0)
    spent = min(max(row.spent / row.epsilon, 0.0), 1.0)
    reserved = min(max(row.reserved / row.epsilon, 0.0), 1.0 - spent)
    return BudgetBar(round(spent * WHOLE, 2), round(reserved * WHOLE, 2))


def round_series(rounds: Sequence[RoundView], leaves: Iterable[LeafView]) -> tuple[RoundSeries, ...]:
    """One series a round in `rounds`.

    Args:
        rounds: The newest of each study.
        leaves: Of the audit log, the newest first; receipts of what left are taken from it.
    """
    receipts = [leaf for leaf in leaves if leaf.kind == _RECEIPT]
    return tuple(_series(view, receipts) for view in rounds)


def _series(view: RoundView, receipts: Iterable[LeafView]) -> RoundSeries:
    about = (view.study, view.dataset)
    own = [leaf for leaf in receipts if (leaf.content.get("study"), leaf.content.get("dataset")) == about]
    shown = [(leaf, int(leaf.content.get("bytes", 0))) for leaf in reversed(own[:MAX_BARS])]
    highest = max((sent for _, sent in shown), default=0) or 1
    place = WHOLE / max(len(shown), MAX_BARS // 2)
    bars = tuple(
        Bar(
            round(place * (number + _GAP / 2), 2),
            round(place * (1 - _GAP), 2),
            round(sent / highest * WHOLE, 2),
            int(leaf.content.get("round", 0)),
            sent,
            leaf.at_s,
        )
        for number, (leaf, sent) in enumerate(shown)
    )
    done = view.round - (1 if view.under_way else 0)
    progress = min(max(done / view.rounds, 0.0), 1.0) * WHOLE if view.rounds else 0.0
    return RoundSeries(view, bars, sum(bar.sent for bar in bars), round(progress, 2))
