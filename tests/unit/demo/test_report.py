"""The report: complete, self-contained, and honest where there is no gain."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.demo.findings import findings
from tests.demo.keys import KINDS
from tests.demo.plots import Guide, Line, line_chart, round_ticks
from tests.demo.report import render_report
from tests.demo.summary import METHODS, store_summary
from tests.unit.demo import runs


def page(*, secure: bool = False) -> str:
    return render_report(runs.summary(secure=secure), outcome="heart disease", citation="Janosi et al. <1988>")


def test_the_page_loads_nothing_and_escapes_what_it_shows() -> None:
    text = page()
    assert not re.search(r"(src|href)=|url\(|@import|<script", text)
    assert "Heart disease &lt;in&gt; two centres" in text
    assert "Janosi et al. &lt;1988&gt;" in text


def test_the_page_names_every_hospital_and_score() -> None:
    text = page()
    for name in ("Budapest", "Long-Beach", "0.880", "0.770", "41.7", "ab" * 32):
        assert name in text
    assert text.count("<svg") == 2


def test_a_plain_run_says_that_updates_were_readable_and_a_secure_one_does_not() -> None:
    assert "own update, in the clear" in page()
    assert "own update, in the clear" not in page(secure=True)
    assert "This was a plain run" not in page(secure=True)


def test_findings_follow_the_numbers() -> None:
    gained = " ".join(findings(runs.summary()))
    assert "raises the mean AUC" in gained
    assert "does not beat cross-validated local models: 79.0 % alone, 80.0 %" not in gained
    flat = " ".join(findings(runs.summary(runs.centre("a", 0.8, 0.8), runs.centre("b", 0.8, 0.7))))
    assert "does not raise the mean AUC" in flat
    assert "no of two hospitals gain" in flat


def test_a_hospital_with_too_few_of_one_outcome_is_named_and_left_out_beside() -> None:
    thin = runs.centre("zurich", 0.5, 0.9, positives=88)
    text = " ".join(findings(runs.summary(runs.centre("budapest", 0.8, 0.82), thin)))
    assert "Zurich (1 of 89)" in text
    assert "Without it the mean AUC is 0.800 alone, 0.820 federated" in text


def test_where_every_hospital_is_thin_or_many_are_the_mean_stands() -> None:
    few = [runs.centre(name, 0.5, 0.9, positives=88) for name in ("a", "b")]
    assert "Without" not in " ".join(findings(runs.summary(*few)))
    many = [runs.centre(name, 0.5, 0.9, positives=88) for name in "abcd"]
    assert "four of four hospitals. Read the mean." in " ".join(findings(runs.summary(*many)))


def test_keys_of_several_kinds_are_counted_and_explained() -> None:
    mixed = runs.summary(runs.centre("a", 0.8, 0.9), runs.centre("b", 0.8, 0.9, key_kind="software"))
    text = render_report(mixed, outcome="x", citation="y")
    assert "keys: 1 TPM, 1 software" in text
    assert "one with a P-256 key in a file: for development only" in text


def test_every_kind_of_key_is_explained() -> None:
    centres = [runs.centre(kind, 0.8, 0.9, key_kind=kind) for kind in KINDS]
    text = render_report(runs.summary(*centres), outcome="x", citation="y")
    for part in ("keys: 1 TPM, 1 smartcard, 1 security key, 1 software", "PIV smartcard", "FIDO2 security key"):
        assert part in text
    assert "opens the door and speaks for nobody" in text
    assert "opens the door" not in page()


def test_noise_is_stated_and_withheld_scores_are_called_that() -> None:
    text = render_report(runs.summary(secure=True, privacy=runs.PRIVACY), outcome="x", citation="y")
    for part in (
        "epsilon 12.3",
        "a weak bound by itself",
        "12.30",
        "1e-05",
        "0.75",
        "Scores are withheld",
        "withheld</td>",
    ):
        assert part in text
    assert "nan" not in text
    assert "<svg" not in text
    assert "over all 2 rounds" in text
    assert "from sums in round 0" not in text
    assert "Differential privacy" not in page(secure=True)


@pytest.mark.parametrize(("epsilon", "tier"), [(0.9, "a strong bound"), (10, "a reasonable bound"), (10.1, "a weak")])
def test_an_epsilon_is_put_into_words(epsilon: float, tier: str) -> None:
    privacy = replace(runs.PRIVACY, epsilon=epsilon)
    assert tier in render_report(runs.summary(secure=True, privacy=privacy), outcome="x", citation="y")


def test_the_summary_holds_what_noise_gave(tmp_path: Path) -> None:
    store_summary(tmp_path / "summary.json", runs.summary(secure=True, privacy=runs.PRIVACY))
    stored = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert stored["privacy"] == asdict(runs.PRIVACY)
    assert [entry["loss"] for entry in stored["log"]] == [None, None, None]


def test_the_summary_is_json_without_nan(tmp_path: Path) -> None:
    path = tmp_path / "out" / "summary.json"
    store_summary(path, runs.summary())
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["hospitals"] == 2
    assert stored["key_kinds"] == {"budapest": "tpm", "long-beach": "tpm"}
    assert stored["secure"] is False
    assert stored["privacy"] is None
    assert stored["log"][0]["auc"] is None
    assert set(stored["overall"]) == set(METHODS) <= set(stored["centres"][0])
    assert [item.name for item in path.parent.iterdir()] == ["summary.json"]


def test_a_chart_is_well_formed_and_leaves_a_gap_for_nan() -> None:
    chart = line_chart(
        Line("AUC", [1, 2, 3], [math.nan, 0.8, 0.9]), title="AUC & more", guides=[Guide("pooled <1>", 0.91)]
    )
    drawing = ET.fromstring(chart)
    assert len(drawing.findall("circle")) == 2
    assert "from 0.800 after 2 rounds to 0.900" in drawing.attrib["aria-label"]


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.93), (0.44, 0.69), (1, 21), (0.8, 0.8), (-0.3, 0.0)])
def test_ticks_enclose_the_values_and_are_few(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    assert len(ticks) <= 7
