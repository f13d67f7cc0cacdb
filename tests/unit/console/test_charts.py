"""Figures: numbers in, lengths out."""

from __future__ import annotations

import pytest

from agent.console.charts import MAX_BARS, WHOLE, budget_bar, round_series
from agent.core.box_view import BudgetView, LeafView, RoundView


def row(epsilon: float, spent: float, reserved: float) -> BudgetView:
    return BudgetView(
        dataset="d", unit="record", epsilon=epsilon, delta=1e-6, spent=spent, reserved=reserved, left=epsilon - spent
    )


@pytest.mark.parametrize(
    ("epsilon", "spent", "reserved", "lengths"),
    [
        (8.0, 2.0, 4.0, (25.0, 50.0)),
        (8.0, 0.0, 0.0, (0.0, 0.0)),
        (1.0, 3.0, 1.0, (100.0, 0.0)),
        (1.0, 0.75, 9.0, (75.0, 25.0)),
        (0.0, 1.0, 1.0, (0.0, 0.0)),
    ],
)
def test_a_budget_s_shares_never_leave_the_bar(
    epsilon: float, spent: float, reserved: float, lengths: tuple[float, float]
) -> None:
    bar = budget_bar(row(epsilon, spent, reserved))
    assert (bar.spent, bar.reserved) == lengths


def receipt(index: int, sent: int, study: str = "s") -> LeafView:
    content = {"study": study, "dataset": "d", "round": index, "bytes": sent}
    return LeafView(index=index, kind="update-sent", at_s=index, content=content)


def newest(number: int, *, under_way: bool) -> RoundView:
    return RoundView(
        study="s",
        title="S",
        dataset="d",
        round=number,
        rounds=4,
        attempt=1,
        stage="x",
        seconds=1.0,
        under_way=under_way,
    )


def test_bars_are_what_left_oldest_first() -> None:
    leaves = [
        receipt(3, 50),
        receipt(9, 7, study="another"),
        LeafView(index=2, kind="data-opened", at_s=2, content={"study": "s", "dataset": "d"}),
        receipt(1, 100),
    ]
    (series,) = round_series([newest(3, under_way=True)], leaves)
    assert [(bar.round, bar.sent, bar.height) for bar in series.bars] == [(1, 100, 100.0), (3, 50, 50.0)]
    assert (series.sent, series.progress) == (150, 50.0)


def test_only_the_newest_rounds_are_drawn_and_all_inside() -> None:
    leaves = [receipt(index, 1) for index in reversed(range(MAX_BARS + 3))]
    (series,) = round_series([newest(4, under_way=False)], leaves)
    assert [bar.round for bar in series.bars] == list(range(3, MAX_BARS + 3))
    assert max(bar.x + bar.width for bar in series.bars) <= WHOLE
    assert series.progress == WHOLE


def test_a_round_before_anything_left_has_no_bars() -> None:
    (series,) = round_series([newest(1, under_way=True)], [])
    assert (series.bars, series.sent, series.progress) == ((), 0, 0.0)
