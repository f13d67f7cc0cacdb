"""The model card that goes with a trained model.

Source: Mitchell et al., Model Cards for Model Reporting (FAT* 2019), section 4: its nine parts, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from agent.trust.study import FieldKind, FieldSpec, Study
from provisioning.studies.provenance import Counted
from provisioning.studies.words import declared_use

_METRICS: Final = {
    "auc": "area under the ROC curve, from summed histograms of scores",
    "loss": "mean loss a record",
    "accuracy": "share of records on the right side of 0.5",
    "brier": "mean squared error of the probability",
    "calibration": "expected calibration error over ten bins",
}


def model_card(
    study: Study, counted: Counted, final: Mapping[str, Any], moments: Mapping[str, Any], *, digest: str, finished: str
) -> bytes:
    """Write the card.

    Args:
        study: The study.
        counted: What was counted.
        final: The last evaluation, as the coordinator keeps it.
        moments: Mean and deviation of each number field, where the whole federation's were used.
        digest: SHA-256 of the trained model, hex.
        finished: When the study ended, ISO 8601.
    """
    parts = {
        "Model details": _details(study, counted, digest, finished),
        "Intended use": _use(study),
        "Factors": _factors(study),
        "Metrics": [f"- {name}: {what}" for name, what in _METRICS.items()],
        "Evaluation data": _evaluation(study, final),
        "Training data": _training(study, counted, moments),
        "Quantitative analyses": _figures(final),
        "Ethical considerations": _ethics(counted),
        "Caveats and recommendations": _caveats(study),
    }
    lines = [f"# {_plain(study.title)}", ""]
    for heading, body in parts.items():
        lines += [f"## {heading}", "", *body, ""]
    return "\n".join(lines).encode()


def _details(study: Study, counted: Counted, digest: str, finished: str) -> Sequence[str]:
    return [
        f"- Study: {study.id}, asked by {_plain(study.requester)}",
        f"- File: model.onnx, SHA-256 {digest}, {study.model.parameters:,} parameters",
        f"- Began from the model with SHA-256 {study.model.digest}",
        f"- Trained: {study.rounds} rounds ({counted.rounds} counted), strategy {study.strategy.name}",
        f"- In each hospital: {study.plan.optimiser} at learning rate {study.plan.learning_rate:g}, batches of "
        f"{study.plan.batch_size}, loss {study.plan.loss}",
        f"- Finished: {finished}",
    ]


def _use(study: Study) -> Sequence[str]:
    lines = [f"- Purpose, as approved: {_plain(study.purpose)}"]
    lines += [f"- {_plain(sentence)}" for sentence in declared_use(study)]
    if study.legal_basis:
        lines.append(f"- Legal basis: {_plain(study.legal_basis)}")
    return [
        *lines,
        "- Out of scope: every other purpose; it is no medical device, and decides nothing about a patient.",
    ]


def _factors(study: Study) -> Sequence[str]:
    return [
        f"- Hospitals: {', '.join(sorted(study.sites))}",
        f"- Inputs: {', '.join(spec.name for spec in study.data.features)}",
        "- Groups of patients were not told apart: no hospital shows anything but sums over hospitals.",
    ]


def _evaluation(study: Study, final: Mapping[str, Any]) -> Sequence[str]:
    return [
        f"- {study.data.holdout:.0%} of each hospital's records, never trained on: {final['evaluated']:,} in all",
        "- Only sums over hospitals are known; no hospital's own figures are.",
    ]


def _training(study: Study, counted: Counted, moments: Mapping[str, Any]) -> Sequence[str]:
    data = study.data
    lines = [
        f"- Records of schema {data.schema_name} in {counted.hospitals} hospitals; at least {data.minimum_rows} each",
        f"- Outcome: {data.label.field}, positive above {data.label.positive_above:g}",
        f"- Missing values: {data.missing}",
        f"- Standardised: {_STANDARDISED[data.standardise]}",
        "",
        "The model takes one float32 row a record, in this order:",
        "",
        "| column | field | coded |",
        "| --- | --- | --- |",
    ]
    column = 0
    for spec in data.features:
        for coded in _columns(spec, moments):
            lines.append(f"| {column} | {spec.name} | {coded} |")
            column += 1
    return lines


_STANDARDISED: Final = {
    "none": "not at all",
    "local": "each number field by mean and deviation of the hospital's own training records",
    "federated": "each number field by mean and deviation of all hospitals' training records",
}


def _columns(spec: FieldSpec, moments: Mapping[str, Any]) -> Sequence[str]:
    if spec.kind is FieldKind.CATEGORY:
        return [f"1 where it is {_plain(name)}, else 0" for name in spec.categories[1:]]
    if spec.kind is FieldKind.FLAG:
        return ["0 or 1"]
    unit = f" in {_plain(spec.unit)}" if spec.unit else ""
    known = moments.get(spec.name)
    return [f"number{unit}" + (f", minus {known['mean']:.6g}, over {known['deviation']:.6g}" if known else "")]


def _figures(final: Mapping[str, Any]) -> Sequence[str]:
    rows = [f"| {name} | {_figure(final.get(name))} |" for name in _METRICS]
    return ["| metric | of the trained model |", "| --- | --- |", *rows, "", "By round: curve.svg and metrics.json."]


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "not known"


def _ethics(counted: Counted) -> Sequence[str]:
    return ["- No record left a hospital; the coordinator saw sums over hospitals.", f"- {counted.noise}"]


def _caveats(study: Study) -> Sequence[str]:
    return [
        "- Validate it on local patients before any use; figures of a federation need not hold in one hospital.",
        f"- It knows values as {study.data.schema_name} defines them, within each field's stated bounds.",
    ]


def _plain(text: str) -> str:
    """Somebody's words on one line, as text and never as markup."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
