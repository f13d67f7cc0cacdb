"""Scores the trained model once more, from its file and by onnxruntime, beside the baselines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.core.errors import OperatorError
from agent.data.catalog import parse_catalog
from agent.data.tabular import Table, load_table
from agent.trust.metrics import Moments, moments_from_sums, moments_layout
from agent.trust.study import Study
from tests.demo.baselines import Comparison, Floats, HospitalRows, Predictor, compare
from tests.demo.cohorts import Cohort, Hospital


@dataclass(frozen=True, slots=True)
class Scored:
    """A trained model beside the baselines.

    Args:
        model: The ONNX file.
        rows: Site -> its rows.
        comparison: The scores.
    """

    model: bytes
    rows: Mapping[str, HospitalRows]
    comparison: Comparison

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.model).hexdigest()


def score_model(cohort: Cohort, hospitals: Sequence[Hospital], study: Study, model: bytes) -> Scored:
    """Score a model on every hospital's held-out rows.

    Args:
        cohort: The data set.
        hospitals: Whose rows.
        study: Says how rows are split and standardised.
        model: The trained ONNX file.
    """
    rows = read_rows(cohort, hospitals, study)
    return Scored(model, rows, compare(rows, onnx_predictor(model)))


def read_rows(cohort: Cohort, hospitals: Sequence[Hospital], study: Study) -> dict[str, HospitalRows]:
    """Every hospital's rows as its own box makes them; the moments, too, go through the words that boxes send."""
    tables = {str(hospital.site): read_table(cohort, hospital, study) for hospital in hospitals}
    moments = federation_moments(study, tables.values()) if study.data.standardise == "federated" else None
    result = {}
    for site, table in tables.items():
        train, test = table.parts(moments)
        arrays = (train.inputs, train.labels, test.inputs, test.labels)
        result[site] = HospitalRows(*(array.astype(np.float64) for array in arrays))
    return result


def read_table(cohort: Cohort, hospital: Hospital, study: Study) -> Table:
    """One hospital's table.

    Raises:
        OperatorError: Its file does not fit the study.
    """
    catalog = parse_catalog(cohort.catalog_text(hospital, hospital.source), folder=Path())
    table, report = load_table(hospital.source.read_bytes(), catalog.dataset(cohort.id), study.data)
    if table is None:
        raise OperatorError(
            "demo.data",
            f"{hospital.source.name} does not fit the study: {report.findings}",
            next_step="Restore the file.",
        )
    return table


def federation_moments(study: Study, tables: Iterable[Table]) -> dict[str, Moments]:
    """Moments over all training rows, from the sums as they travel."""
    layout = moments_layout(study)
    words = sum(layout.encode(table.sums(study.secagg.weight_cap)) for table in tables)
    return moments_from_sums(study, layout.decode(np.asarray(words, dtype=np.uint64)))


def onnx_predictor(model: bytes) -> Predictor:
    """Probabilities from an ONNX file of one output, by onnxruntime."""
    # Loaded here: it takes a while that the start of the demonstration need not wait for.
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(inputs: Floats, /) -> Floats:
        (output,) = session.run(None, {name: inputs.astype(np.float32)})
        return np.asarray(output, dtype=np.float64).reshape(len(inputs))

    return predict
