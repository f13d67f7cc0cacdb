"""From records to numbers: which rows take part, how they are split, coded and standardised.

The order is fixed, because published baselines and every hospital must agree on it: read, set aside, split,
fill gaps and standardise with the training rows' own figures, dummy-code with the first category dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agent.data.catalog import Dataset
from agent.data.cells import Column, State, read_feature, read_outcome
from agent.data.holdout import Indices, hold_out
from agent.data.quality import DataReport, Finding, FindingKind, SetAside, count_rows
from agent.data.records import Records, parse_records
from agent.data.requirement import FieldMoments, FieldRequirement, TableRequirement

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LEAST_DEVIATION = 1e-6
"""Of a field's range: a constant column must not divide by zero."""
_BROKEN = "the line has another number of columns than the file"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows as a model takes them.

    Args:
        inputs: Shape (rows, width), float32.
        labels: Shape (rows,), float32, 0 or 1.
    """

    inputs: Rows
    labels: Rows


@dataclass(frozen=True, slots=True)
class Moment:
    """Mean and standard deviation of one number field, in its own unit."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Table:
    """A data set that fits a study: read, split, gaps filled; not yet standardised.

    Args:
        requirement: What the study asks.
        values: Shape (rows, width), float64, in the fields' own units; dummy-coded.
        labels: Shape (rows,).
        train, held_out: Row numbers.
    """

    requirement: TableRequirement
    values: Floats
    labels: Mask
    train: Indices
    held_out: Indices

    def sums(self, limit: int) -> dict[str, float]:
        """Sums over the training rows, for federation-wide moments: `trained`, `sum:<field>`, `squares:<field>`.

        Each number is scaled by its field's range into 0..1 first.

        Args:
            limit: Rows counted at most; more are scaled down to it, so that sums and count keep their ratio.
        """
        share = min(1.0, limit / len(self.train))
        result = {"trained": len(self.train) * share}
        for position, field in _number_positions(self.requirement.features):
            low, span = _range(field)
            scaled = (self.values[self.train, position] - low) / span
            result[f"sum:{field.name}"] = float(scaled.sum()) * share
            result[f"squares:{field.name}"] = float(np.square(scaled).sum()) * share
        return result

    def local_moments(self) -> dict[str, Moment]:
        """Moments of each number field over the training rows of this data set."""
        result = {}
        for position, field in _number_positions(self.requirement.features):
            column = self.values[self.train, position]
            result[field.name] = Moment(float(column.mean()), float(column.std()))
        return result

    def parts(self, moments: Mapping[str, FieldMoments] | None = None) -> tuple[Part, Part]:
        """Standardise, and return the training and the held-out part.

        Args:
            moments: Of the whole federation; needed if and only if the study standardises with them.

        Raises:
            ValueError: Moments are needed and absent, or lack a field.
        """
        inputs = self.values.copy()
        used: Mapping[str, FieldMoments] = self.local_moments()
        if self.requirement.standardise == "federated":
            if moments is None:
                raise ValueError("the federation's moments are needed first")
            used = moments
        for position, field in _number_positions(self.requirement.features):
            if self.requirement.standardise != "none":
                moment = used[field.name]
                least = LEAST_DEVIATION * _range(field)[1]
                inputs[:, position] = (inputs[:, position] - moment.mean) / max(moment.deviation, least)
        return _part(inputs, self.labels, self.train), _part(inputs, self.labels, self.held_out)


def load_table(data: bytes, dataset: Dataset, requirement: TableRequirement) -> tuple[Table | None, DataReport]:
    """Read a data set for a study.

    Args:
        data: The file's bytes.
        dataset: Its catalog entry.
        requirement: What the study asks.

    Returns:
        The table, None where the data set does not fit; and the report, which says why.

    Raises:
        DeclinedError: The file as a whole cannot be read.
    """
    declared = check_declaration(dataset, requirement)
    needed = [*(field.name for field in requirement.features), requirement.label.field]
    records = parse_records(data, dataset, wanted={dataset.column(name) for name in needed})
    report = DataReport(dataset=dataset.id, rows=records.rows)
    absent = sorted({dataset.column(name) for name in needed} - set(records.names))
    if absent and records.names:
        listed = ", ".join(absent)
        sentence = f"The file has no column {listed}." if len(absent) == 1 else f"The file has no columns {listed}."
        declared.append(Finding(kind=FindingKind.COLUMNS, sentence=sentence[:1000]))
    if declared or not records.rows:
        empty = [] if records.rows else [Finding(kind=FindingKind.EMPTY, sentence="The file has no rows.")]
        return None, report.model_copy(update={"findings": tuple(declared + empty)})
    return _Reading(records, dataset, requirement).finish(report)


def check_declaration(dataset: Dataset, requirement: TableRequirement) -> list[Finding]:
    """What the catalog alone already shows not to fit: another schema, another unit, or none stated."""
    findings = []
    if dataset.schema_name != requirement.schema_name:
        sentence = f"It holds {dataset.schema_name!r} records, and the study needs {requirement.schema_name!r}."
        findings.append(Finding(kind=FindingKind.SCHEMA, sentence=sentence))
    for field in requirement.features:
        unit = dataset.field(field.name).unit
        if field.unit is not None and unit != field.unit:
            here = f"is in {unit} here" if unit else "has no unit in the catalog"
            sentence = f"Field {field.name} {here}, and the study needs {field.unit}."
            findings.append(Finding(kind=FindingKind.UNIT, sentence=sentence[:1000]))
    return findings


class _Reading:
    """One pass over a data set's records: read the cells, set rows aside, split."""

    def __init__(self, records: Records, dataset: Dataset, requirement: TableRequirement) -> None:
        self._records = records
        self._requirement = requirement
        self._columns = [
            read_feature(records.columns[dataset.column(field.name)], field, dataset) for field in requirement.features
        ]
        outcome = requirement.label.field
        self._outcome = read_outcome(records.columns[dataset.column(outcome)], outcome, dataset)
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, tuple[int, ...]] = {}
        if records.broken:
            self._note(_BROKEN, records.broken)

    def finish(self, report: DataReport) -> tuple[Table | None, DataReport]:
        """Return the table, or None, and the completed report."""
        kept = self._keep_rows()
        labels = self._outcome.values[kept] > self._requirement.label.positive_above
        report = report.model_copy(update={"set_aside": self._set_aside(), "missing": self._missing(kept)})
        if findings := [*self._doubtful_units(), *self._cohort_findings(labels), *self._empty_fields(kept)]:
            return None, report.model_copy(update={"findings": tuple(findings)})
        train, held_out = hold_out(labels, share=self._requirement.holdout, seed=self._requirement.holdout_seed)
        values = _encode(self._requirement.features, [_rows_of(column, kept) for column in self._columns], train)
        figures = {
            "train_rows": len(train),
            "held_out_rows": len(held_out),
            "train_positive": int(labels[train].sum()),
            "held_out_positive": int(labels[held_out].sum()),
        }
        return Table(self._requirement, values, labels, train, held_out), report.model_copy(update=figures)

    def _keep_rows(self) -> Mask:
        kept = np.ones(len(self._records.lines), dtype=bool)
        kept = self._drop(kept, self._outcome, State.MISSING, f"{self._requirement.label.field} (outcome): no value")
        kept = self._drop(kept, self._outcome, State.NO_NUMBER, f"{self._requirement.label.field} (outcome): no number")
        for field, column in zip(self._requirement.features, self._columns, strict=True):
            for state, reason in _reasons(field, drop_missing=self._requirement.missing == "drop-row").items():
                kept = self._drop(kept, column, state, reason)
        return kept

    def _drop(self, kept: Mask, column: Column, state: State, reason: str) -> Mask:
        """Set aside the rows still kept whose cell has this state."""
        hit: Mask = kept & (column.states == state)
        if hit.any():
            self._note(reason, [self._records.lines[row] for row in np.flatnonzero(hit).tolist()])
        return kept & np.logical_not(hit)

    def _note(self, reason: str, lines: Sequence[int]) -> None:
        self._reasons[reason] += len(lines)
        self._examples[reason] = tuple(lines[:5])

    def _set_aside(self) -> tuple[SetAside, ...]:
        return tuple(
            SetAside(reason=reason, rows=rows, examples=self._examples[reason])
            for reason, rows in self._reasons.most_common()
        )

    def _missing(self, kept: Mask) -> dict[str, int]:
        pairs = zip(self._requirement.features, self._columns, strict=True)
        counts = {field.name: int((column.states[kept] == State.MISSING).sum()) for field, column in pairs}
        return {name: count for name, count in counts.items() if count}

    def _doubtful_units(self) -> list[Finding]:
        """A column most of whose numbers are impossible has another unit than the catalog says."""
        findings = []
        for field, column in zip(self._requirement.features, self._columns, strict=True):
            outside = int((column.states == State.OUTSIDE).sum())
            numbers = outside + int((column.states == State.READ).sum())
            if outside > numbers / 2:
                low, span = _range(field)
                sentence = (
                    f"{outside} of {numbers} values of {field.name} lie outside {low:g} to {low + span:g}"
                    f"{' ' + field.unit if field.unit else ''}; the column probably has another unit."
                )
                findings.append(Finding(kind=FindingKind.UNIT, sentence=sentence))
        return findings

    def _cohort_findings(self, labels: Mask) -> list[Finding]:
        rows, least = len(labels), self._requirement.minimum_rows
        if rows >= least and math.ceil(self._requirement.holdout * rows) < rows:
            return []
        sentence = f"Only {count_rows(rows)} of {self._records.rows} can be used, and the study needs {least}."
        return [Finding(kind=FindingKind.COHORT if rows else FindingKind.EMPTY, sentence=sentence)]

    def _empty_fields(self, kept: Mask) -> list[Finding]:
        """A gap is filled with a mean; a field without a single value has none."""
        if not kept.any():
            return []
        pairs = zip(self._requirement.features, self._columns, strict=True)
        empty = [field.name for field, column in pairs if not (column.states[kept] == State.READ).any()]
        sentences = (f"Field {name} has no value in any row." for name in empty)
        return [Finding(kind=FindingKind.EMPTY, sentence=sentence) for sentence in sentences]


def _reasons(field: FieldRequirement, *, drop_missing: bool) -> dict[State, str]:
    unit = f" {field.unit}" if field.unit else ""
    bounds = "" if field.minimum is None or field.maximum is None else f"{field.minimum:g} to {field.maximum:g}{unit}"
    reasons = {
        State.NO_NUMBER: f"{field.name}: not a number",
        State.OUTSIDE: f"{field.name}: outside {bounds}",
        State.UNKNOWN: f"{field.name}: a text that the study does not list",
    }
    return reasons | ({State.MISSING: f"{field.name}: no value"} if drop_missing else {})


def _rows_of(column: Column, kept: Mask) -> Column:
    return replace(column, values=column.values[kept], states=column.states[kept])


def _encode(features: Sequence[FieldRequirement], columns: Sequence[Column], train: Indices) -> Floats:
    """Dummy-code, and fill each gap with the mean of the training rows' values in its column."""
    encoded = []
    for field, column in zip(features, columns, strict=True):
        if field.kind == "category":
            present = column.states == State.READ
            dummies = (column.values[:, None] == np.arange(1, len(field.categories))).astype(np.float64)
            dummies[~present] = np.nan
            encoded.append(dummies)
        else:
            encoded.append(column.values[:, None])
    values = np.concatenate(encoded, axis=1)
    for position in range(values.shape[1]):
        gaps = np.isnan(values[:, position])
        if gaps.any():
            values[gaps, position] = _mean_of_known(values[:, position], train)
    return values


def _mean_of_known(column: Floats, train: Indices) -> float:
    """Mean of a column's training rows, or of all rows where no training row has a value."""
    known = column[train][~np.isnan(column[train])]
    return float((known if len(known) else column[~np.isnan(column)]).mean())


def _number_positions(features: Sequence[FieldRequirement]) -> list[tuple[int, FieldRequirement]]:
    """Column of each number field in the coded table."""
    positions = []
    position = 0
    for field in features:
        if field.kind == "number":
            positions.append((position, field))
        position += max(1, len(field.categories) - 1)
    return positions


def _range(field: FieldRequirement) -> tuple[float, float]:
    """(minimum, span); the study states both for every number field."""
    low = 0.0 if field.minimum is None else field.minimum
    return low, (1.0 if field.maximum is None else field.maximum) - low


def _part(inputs: Floats, labels: Mask, rows: Indices) -> Part:
    return Part(inputs[rows].astype(np.float32), labels[rows].astype(np.float32))
