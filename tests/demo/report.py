"""The report: one HTML file that loads nothing, written for a reader who was not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tests.demo.findings import count_word, findings
from tests.demo.plots import Guide, Line, line_chart, round_ticks
from tests.demo.scores import Scores
from tests.demo.summary import METHODS, Centre, Compared, LogRecord, PrivacyRecord, RoundRecord, Summary

NOTHING = "\N{EN DASH}"
STRONG_EPSILON, REASONABLE_EPSILON = 1, 10
"""The tiers of Ponomareva et al., How to DP-fy ML, JAIR 77 (2023), section 5.2.1."""
PAGE = Path(__file__).parent / "page"
KEY_NAMES = {"tpm": "TPM", "software": "software", "piv": "smartcard", "fido2": "security key"}
KEY_WORDS = {
    "tpm": "a P-256 key, born in the box's own TPM 2.0 (here a software TPM), which it never leaves",
    "software": "a P-256 key in a file: for development only, no hardware holds it",
    "piv": "a P-256 key, born on a PIV smartcard (here a virtual one), which it never leaves",
    "fido2": "a key in a FIDO2 security key (here a virtual one), which vouched for the box after a PIN and a touch",
}

JOINING_WORDS = (
    "Each came with no word of the consortium, and was enrolled by a token from its own hospital: the registrar and "
    "the hospital's own tool appraised its key, the hospital signed its record, and every box reads all records there."
)
LINK_WORDS = (
    "A security key signs nothing without a person, so at the SuperLink its box shows another key, kept on the box; "
    "that one opens the door and speaks for nobody."
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One score as the report shows it."""

    name: str
    hint: str
    read: Callable[[Scores], float]
    higher_is_better: bool
    as_percent: bool = False

    def text(self, value: float) -> str:
        """The value for a reader; a dash where there is none."""
        if math.isnan(value):
            return NOTHING
        return f"{100 * value:.1f} %" if self.as_percent else f"{value:.3f}"

    def better(self, value: float, other: float) -> bool:
        """Whether `value` is better than `other` beyond what three decimals show."""
        return (value - other if self.higher_is_better else other - value) > 0.0005


METRICS = (
    Metric("AUC", "higher is better", lambda scores: scores.auc, higher_is_better=True),
    Metric("Log-loss", "lower is better", lambda scores: scores.log_loss, higher_is_better=False),
    Metric("Accuracy", "at a threshold of 0.5", lambda scores: scores.accuracy, higher_is_better=True, as_percent=True),
    Metric("Brier score", "lower is better", lambda scores: scores.brier, higher_is_better=False),
)


def render_report(summary: Summary, *, outcome: str, citation: str) -> str:
    """Render the page.

    Args:
        summary: The run.
        outcome: What the model predicts, in words: "coronary heart disease".
        citation: Source and licence of the data.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    centres = summary.centres
    return environment.get_template("report.html.j2").render(
        css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        headline=f"{count_word(len(centres)).capitalize()} hospitals, one model, no record moved",
        lead=_lead(summary, outcome),
        chips=_chips(summary),
        figures=[_figure(metric, summary) for metric in METRICS[:3]],
        findings=findings(summary),
        dots=[_dot_plot(metric, centres) for metric in METRICS[:2]],
        table=_table(summary),
        charts=_charts(summary),
        rounds=[_round_row(record) for record in summary.log],
        secure=summary.secure,
        withheld=any(record.withheld for record in summary.log),
        seen=_seen(summary),
        protocol=_protocol(summary),
        privacy=None if summary.privacy is None else _privacy(summary.privacy),
        boxes=[_box_row(centre) for centre in centres],
        logs=[_log_row(centre.name, summary.logs[centre.site]) for centre in centres if centre.site in summary.logs],
        key_sentence=_key_sentence(summary),
        phases=_phases(summary),
        seconds=f"{summary.seconds:.1f}",
        round_median=f"{median([record.seconds for record in summary.log] or [0.0]):.2f}",
        data=summary.data,
        model=summary.model,
        citation=citation,
        started=summary.started,
    )


def _lead(summary: Summary, outcome: str) -> str:
    patients = sum(centre.trained + centre.held_out for centre in summary.centres)
    return (
        f"{summary.title}: {patients:,} real, de-identified patients in {count_word(len(summary.centres))} hospitals. "
        f"The model predicts {outcome}. Each hospital trained it on its own records, "
        f"{summary.rounds} rounds over Flower."
    )


def _chips(summary: Summary) -> list[dict[str, str]]:
    keys = ", ".join(f"{count} {KEY_NAMES.get(kind, kind)}" for kind, count in summary.key_kinds.items())
    secure = ("secure aggregation", "good") if summary.secure else ("plain aggregation: comparison only", "warn")
    chips = [
        (f"{len(summary.centres)} hospitals", ""),
        (f"{summary.rounds} rounds", ""),
        (f"{summary.seconds:.0f} s in all", ""),
        (f"keys: {keys}", "warn" if "software" in summary.key_kinds else ""),
        secure,
        *([] if not summary.logs else [(f"{len(summary.logs)} audit logs verified", "good")]),
        *(
            []
            if summary.privacy is None
            else [(f"differential privacy: epsilon {summary.privacy.epsilon:.3g}", "good")]
        ),
    ]
    return [{"text": text, "tone": tone} for text, tone in chips]


def _privacy_chip(spent: PrivacyRecord) -> tuple[str, str]:
    return f"differential privacy: epsilon {spent.epsilon:.3g}", "good" if spent.epsilon <= REASONABLE_EPSILON else ""


def _figure(metric: Metric, summary: Summary) -> dict[str, str]:
    values = {method: metric.text(metric.read(summary.mean.by(method))) for method in METHODS}
    return {"name": metric.name, "hint": metric.hint, **values}


def _dot_plot(metric: Metric, centres: Sequence[Centre]) -> dict[str, object]:
    values = [metric.read(centre.scores.by(method)) for centre in centres for method in METHODS]
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    ticks = round_ticks(min(finite), max(finite))
    low, span = ticks[0], max(ticks[-1] - ticks[0], 1e-9)

    def left(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return {
        "name": metric.name,
        "hint": metric.hint,
        "rows": [_dot_row(metric, centre, left) for centre in centres],
        "ticks": [{"left": left(tick), "text": f"{tick:g}"} for tick in ticks],
    }


def _dot_row(metric: Metric, centre: Centre, left: Callable[[float], float]) -> dict[str, object]:
    values = {method: metric.read(centre.scores.by(method)) for method in ("pooled", "alone", "federated")}
    marks = [
        {"method": method, "left": left(value), "text": metric.text(value)}
        for method, value in values.items()
        if math.isfinite(value)
    ]
    ends = sorted(left(values[method]) for method in ("alone", "federated") if math.isfinite(values[method]))
    gained = metric.better(values["federated"], values["alone"])
    bridge = {"left": ends[0], "width": round(ends[1] - ends[0], 2), "tone": "gain" if gained else "loss"}
    patients = f"{centre.trained + centre.held_out} patients"
    return {"name": centre.name, "patients": patients, "marks": marks, "bridge": bridge if len(ends) == 2 else None}


def _table(summary: Summary) -> dict[str, object]:
    rows = [
        {
            "name": centre.name,
            "held_out": f"{centre.held_out} ({centre.positives})",
            "cells": _cells(centre.scores),
            "tone": "",
        }
        for centre in summary.centres
    ]
    held_out = sum(centre.held_out for centre in summary.centres)
    positives = sum(centre.positives for centre in summary.centres)
    rows.append({"name": "Mean of the hospitals", "held_out": "", "cells": _cells(summary.mean), "tone": "total"})
    together = {"name": "All patients together", "held_out": f"{held_out} ({positives})", "tone": ""}
    rows.append({**together, "cells": _cells(summary.together)})
    notes = [f"{centre.name}: {centre.alone_note}" for centre in summary.centres if centre.alone_note]
    notes.append("In the last row, “alone” scores every patient by the model of his or her own hospital.")
    groups = [f"{metric.name}, %" if metric.as_percent else metric.name for metric in METRICS]
    return {"groups": groups, "rows": rows, "notes": notes}


def _cells(scores: Compared) -> list[dict[str, object]]:
    """Twelve cells; the better of alone and federated is marked."""
    cells: list[dict[str, object]] = []
    for metric in METRICS:
        values = {method: metric.read(scores.by(method)) for method in METHODS}
        best = {
            "alone": metric.better(values["alone"], values["federated"]),
            "federated": metric.better(values["federated"], values["alone"]),
        }
        cells += [
            {"text": metric.text(values[method]).removesuffix(" %"), "best": best.get(method, False)}
            for method in METHODS
        ]
    return cells


def _charts(summary: Summary) -> list[dict[str, object]]:
    if not summary.log:
        return []
    # Round r scores the model that it received, which has r - 1 rounds of training behind it.
    steps = [record.number - 1 for record in summary.log]
    together = summary.together
    curves = (
        ("AUC", [record.auc for record in summary.log], together.pooled.auc),
        ("Log-loss", [record.loss for record in summary.log], together.pooled.log_loss),
    )
    return [
        {
            "name": f"{name} on all held-out patients",
            "svg": Markup(
                line_chart(
                    Line(name, steps, values), title=f"{name} over the rounds", guides=[Guide("pooled model", pooled)]
                )
            ),
        }
        for name, values, pooled in curves
        if any(math.isfinite(value) for value in values)
    ]


def _round_row(record: RoundRecord) -> dict[str, object]:
    return {
        "number": str(record.number - 1),
        "withheld": record.withheld,
        "auc": f"{record.auc:.3f}" if math.isfinite(record.auc) else NOTHING,
        "loss": f"{record.loss:.4f}",
        "accuracy": f"{100 * record.accuracy:.1f} %",
        "evaluated": str(record.evaluated),
        "seconds": f"{record.seconds:.2f}",
    }


def _seen(summary: Summary) -> list[dict[str, str]]:
    """Who could see what, by kind of information."""
    masked = "masked" if summary.secure else "yes"
    update = "only the sum over the whole cohort" if summary.secure else "each hospital's own update, in the clear"
    counts = "only the cohort's sums" if summary.secure else "each hospital's own counts"
    if summary.privacy is not None:
        return _seen_under_noise()
    return [
        {"what": "Patient records", "left": "no", "reads": "nothing"},
        {"what": "Single values, identifiers, dates", "left": "no", "reads": "nothing"},
        {"what": "Sums of number fields (round 0)", "left": masked, "reads": counts.replace("counts", "sums")},
        {"what": "Model updates", "left": masked, "reads": update},
        {"what": "Row counts, correct answers, score histograms", "left": masked, "reads": counts},
        {"what": "The hospital's private key", "left": "no", "reads": "nothing"},
    ]


def _seen_under_noise() -> list[dict[str, str]]:
    return [
        {"what": "Patient records", "left": "no", "reads": "nothing"},
        {"what": "Single values, identifiers, dates", "left": "no", "reads": "nothing"},
        {"what": "Sums of number fields", "left": "no", "reads": "nothing: each hospital standardises by its own"},
        {"what": "Model updates", "left": "masked", "reads": "only the sum over the whole cohort, with noise"},
        {"what": "Row counts, correct answers, score histograms", "left": "no", "reads": "nothing: withheld"},
        {"what": "The hospital's private key", "left": "no", "reads": "nothing"},
    ]


def _protocol(summary: Summary) -> list[dict[str, str]]:
    """What secure aggregation cost, a round: who, how often, how much."""
    if not summary.secure or not summary.log:
        return []
    last = summary.log[-1]
    sent = median([record.bytes_up / max(record.cohort, 1) for record in summary.log])
    return [
        {"what": "Hospitals in every sum", "value": f"{min(record.cohort for record in summary.log)}"},
        {
            "what": "Legs a round (masked input, agree; keys once a run; reveal only if one vanishes)",
            "value": f"{last.legs}",
        },
        {"what": "Bytes sent by one hospital, a round", "value": f"{sent:,.0f}"},
        _learnt(summary),
        {"what": "Single updates, sizes or scores that it learnt", "value": "0"},
    ]


def _learnt(summary: Summary) -> dict[str, str]:
    if summary.privacy is not None:
        return {"what": "Sums that the coordinator learnt, each with noise", "value": f"{summary.privacy.rounds}"}
    return {"what": "Sums that the coordinator learnt, beside those of round 0", "value": f"{len(summary.log)}"}


def _privacy(spent: PrivacyRecord) -> dict[str, object]:
    """What noise gave each hospital, in words and numbers."""
    return {
        "sentence": (
            "Noise stands between each hospital and everything that left. Epsilon bounds how surely anybody who reads "
            "all models of this run, whatever else he or she knows, could tell whether a certain hospital took part: "
            f"at 0 not at all. This one is {_tier(spent)}."
        ),
        "rows": [
            {
                "what": f"Epsilon, over all {spent.rounds} rounds (smaller is more private)",
                "value": f"{spent.epsilon:.2f}",
            },
            {"what": "Delta, the chance that the bound does not hold", "value": f"{spent.delta:g}"},
            {"what": "Clip: the longest update that counts whole (Euclidean norm)", "value": f"{spent.l2_clip:g}"},
            {
                "what": "Noise multiplier: deviation of the cohort's noise, in units of what one hospital can change",
                "value": f"{spent.noise_multiplier:g}",
            },
        ],
    }


def _tier(spent: PrivacyRecord) -> str:
    if spent.epsilon <= STRONG_EPSILON:
        return f"a strong bound ({STRONG_EPSILON} or less)"
    if spent.epsilon <= REASONABLE_EPSILON:
        return f"a reasonable bound ({REASONABLE_EPSILON} or less)"
    return f"a weak bound by itself (more than {REASONABLE_EPSILON})"


def _box_row(centre: Centre) -> dict[str, object]:
    key = KEY_NAMES.get(centre.key_kind, centre.key_kind)
    rows = {"trained": centre.trained, "held_out": centre.held_out, "positives": centre.positives}
    enrolled = "" if centre.enrolled_s is None else f"{centre.enrolled_s:.1f} s"
    return {"name": centre.name, "key": key, "enrolled": enrolled, **rows}


def _log_row(name: str, record: LogRecord) -> dict[str, object]:
    return {
        "name": name,
        "entries": record.entries,
        "cosigned": record.cosigned,
        "receipts": record.receipts,
        "bytes_out": f"{record.bytes_out:,}",
    }


def _key_sentence(summary: Summary) -> str:
    """What stands behind the hospitals' identities."""
    parts = [f"{count_word(count)} with {KEY_WORDS.get(kind, kind)}" for kind, count in summary.key_kinds.items()]
    sentence = f"Each box proves to the coordinator and to its peers who it is: {'; '.join(parts)}. {JOINING_WORDS}"
    return f"{sentence} {LINK_WORDS}" if "fido2" in summary.key_kinds else sentence


def _phases(summary: Summary) -> list[dict[str, object]]:
    longest = max(summary.phases.values(), default=1.0) or 1.0
    return [
        {"name": name, "share": round(100 * value / longest, 1), "seconds": f"{value:.1f}"}
        for name, value in _nonzero(summary.phases.items())
    ]


def _nonzero(items: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in items if value >= 0.05]
