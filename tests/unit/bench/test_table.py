"""A row's verdict, ratio and JSON."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.table import Row, Target, at_least, at_most, render, store_rows


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (at_most("m", 120.0, "MB", 120.0), True),
        (at_most("m", 120.1, "MB", 120.0), False),
        (at_least("a", 0.748, "", 0.748), True),
        (at_least("a", math.nan, "", 0.748), False),
        (Row("free", 3.0), None),
    ],
)
def test_a_target_is_kept_or_not(row: Row, holds: bool | None) -> None:
    assert row.holds is holds


def test_both_promises_must_hold_and_the_ratio_follows_the_direction() -> None:
    slow = Row("round", 0.9, "s", Target("<=", 1.0), peer=7.0, least_ratio=8.0)
    assert slow.ratio == pytest.approx(7 / 0.9)
    assert slow.holds is False
    assert Row("masking", 8.0, "GB/s", Target(">=", 4.0), peer=2.0, least_ratio=4.0).holds is True
    assert Row("speed", 8.0, "GB/s", peer=2.0, better="higher").ratio == 4.0


def test_rows_are_stored_as_json_and_rendered(tmp_path: Path) -> None:
    rows = [Row("round", 0.5, "s", Target("<=", 1.0), 9.0, "stock", 8.0), Row("odd", math.nan)]
    path = tmp_path / "deep" / "bench.json"
    store_rows(path, rows)
    first, second = json.loads(path.read_text(encoding="utf-8"))
    assert first == {
        "name": "round", "value": 0.5, "unit": "s", "target": "<= 1 s, >= 8 x peer", "holds": True,
        "peer": 9.0, "peer_name": "stock", "ratio": 18.0,
    }  # fmt: skip
    assert second["value"] is None
    assert list(path.parent.iterdir()) == [path]
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(render(rows))
    assert "0.5 s" in (shown := console.export_text())
    assert "9 s stock" in shown
