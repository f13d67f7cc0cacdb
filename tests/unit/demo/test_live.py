"""The live view: a picture on a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from tests.demo.live import LiveView, PlainView, View, open_view, spark
from tests.demo.summary import RoundRecord
from tests.unit.demo.runs import withheld_round


def play(console: Console) -> View:
    view = open_view(console, title="A study", hospitals={"a": "Cleveland", "b": "Budapest"}, rounds=2)
    with view:
        view.phase("2 rounds")
        view.hospital("a", state="training", key="key in its TPM")
        view.hospital("b", state="lost")
        for number, loss in ((1, 0.69), (2, 0.5), (3, 0.4)):
            view.round(RoundRecord(number, 0.25, loss, 0.8 + number / 100, 0.75, 178, 2, 3, 9000))
        view.note("done with [brackets]")
    return view


def test_a_pipe_gets_one_plain_line_an_event() -> None:
    out = io.StringIO()
    assert isinstance(play(Console(file=out, width=200)), PlainView)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "Cleveland: training (key in its TPM)" in text
    assert "round 2/2: loss 0.5000, AUC 0.820, 0.25 s" in text
    assert "last evaluation: loss 0.4000" in text
    assert "done with [brackets]" in text


def test_a_terminal_gets_a_picture_with_hospitals_rounds_and_curves() -> None:
    out = io.StringIO()
    assert isinstance(play(Console(file=out, width=100, force_terminal=True, color_system=None)), LiveView)
    last = out.getvalue()
    for part in ("A study", "Cleveland", "key in its TPM", "lost", "round 2 of 2", "0.5000 → 0.4000", "75.0 %"):
        assert part in last


@pytest.mark.parametrize("terminal", [False, True])
def test_withheld_scores_are_called_that(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system=None)
    with open_view(console, title="A study", hospitals={"a": "Cleveland"}, rounds=2) as view:
        for number in (1, 2, 3):
            view.round(withheld_round(number))
    assert "withheld" in out.getvalue()
    assert "nan" not in out.getvalue()


def test_a_spark_line_spans_its_values_and_skips_nan() -> None:
    assert spark([3.0, float("nan"), 2.0, 1.0]) == "█▅▁"
    assert spark([1.0, 1.0]) == "▄▄"
    assert spark([]) == ""
