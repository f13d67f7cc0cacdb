"""What hospitals read of a study, and what they are warned of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.core.errors import OperatorError
from agent.trust.study import parse_study
from provisioning.studies.words import PURPOSES, cautions, explain
from tests.simulators.played_study import study_files

NOW = datetime.now(UTC)
USE = {
    "purpose_terms": ["DUO:0000040"],
    "diseases": ["MONDO:0005267"],
    "not_for_profit": True,
    "ethics_approval": "EC 2026/12",
    "countries": ["BE", "NL"],
}
NOISE = {"epsilon": 100.0, "delta": 1e-3, "l2_clip": 1.0, "noise_multiplier": 2.0}
HARMLESS: dict[str, Any] = {
    "legal_basis": "Permit 12",
    "use": USE,
    "minimum_evidence": "hardware",
    "privacy": NOISE | {"epsilon": 9.0, "noise_multiplier": 20.0},
}


RECORD: dict[str, Any] = {
    "plan": {
        "learning_rate": 0.1,
        "batch_size": 8,
        "steps": 4,
        "record_privacy": {"epsilon": 9.0, "delta": 1e-5, "noise_multiplier": 5.0, "max_gradient_norm": 1.0},
    },
    "data": {
        "schema_name": "played",
        "features": [{"name": "age", "kind": "flag"}],
        "label": {"field": "ill"},
        "standardise": "none",
        "minimum_rows": 100,
    },
}
"""Noise in training, for one record."""


def said(**changes: Any) -> str:  # noqa: ANN401 - any part of a study
    data, _ = study_files(**changes)
    parts = explain(data, parse_study(data))
    return "\n".join(line for heading, lines in parts.items() for line in (heading, *lines))


def warned(**changes: Any) -> str:  # noqa: ANN401 - the same
    return "\n".join(cautions(parse_study(study_files(**changes)[0]), now=NOW))


def data_of(*names: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - the same
    features = [{"name": name, "kind": "number", "minimum": 0, "maximum": 9, "unit": "mg/dl"} for name in names]
    return {"schema_name": "played", "features": features, "label": {"field": "ill"}} | changes


def test_declared_use_is_said_in_the_ontology_s_words() -> None:
    text = said(use=USE)
    assert f"Purposes: {PURPOSES['DUO:0000040']} (DUO:0000040)." in text
    for words in ("MONDO:0005267", "not-for-profit", "EC 2026/12", "BE, NL"):
        assert words in text
    assert "Nothing is declared." in said()


def test_the_words_for_purposes_are_those_that_boxes_decide_by() -> None:
    from agent.governance.duo import PURPOSES as KNOWN  # noqa: PLC0415 - compared here alone

    assert {term.id: term.label for term in KNOWN.values()} == PURPOSES


def test_fields_come_with_bounds_units_and_codes() -> None:
    features = [
        {"name": "chol", "kind": "number", "minimum": 0, "maximum": 600, "unit": "mg/dl", "code": "loinc:2093-3"},
        {"name": "cp", "kind": "category", "categories": ["a", "b"]},
        {"name": "sex", "kind": "flag"},
    ]
    text = said(data=data_of() | {"features": features})
    assert "chol, 0 to 600 mg/dl, loinc:2093-3" in text
    assert "cp, one of a, b" in text
    assert "sex, 0 or 1" in text


def test_blocks_dropout_and_first_sums_are_said() -> None:
    sites = tuple(f"hospital-{letter}" for letter in "abcdef")
    blocks = [list(sites[:3]), list(sites[3:])]
    text = said(sites=sites, secagg={"blocks": blocks, "colluders": 1}, data=data_of("age", standardise="federated"))
    assert "hospital-a, hospital-b, hospital-c; hospital-d" in text
    assert "Before the first round: sums of each number field" in text
    assert "waits for every hospital" in text
    continuing = said(secagg={"dropout": "continue", "minimum_sites": 3}, privacy=NOISE)
    assert "noise covers" in continuing
    assert "Noise protects each hospital's whole data set: epsilon" in continuing


def test_noise_says_what_it_protects() -> None:
    assert "No noise is added" in said()
    assert "Noise protects each hospital's whole data set" in said(privacy=NOISE)
    assert "Noise protects any one record, by noise in every step of training: epsilon" in said(**RECORD)


def test_terms_that_contradict_each_other_are_not_explained_away() -> None:
    with pytest.raises(OperatorError, match="would cost epsilon"):
        said(privacy=NOISE | {"epsilon": 0.01})


def test_a_study_that_hospitals_accept_is_warned_of_nothing() -> None:
    assert warned(**HARMLESS) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expires": (NOW - timedelta(days=1)).isoformat()}, "has expired"),
        ({"expires": (NOW + timedelta(days=400)).isoformat()}, "more than a year"),
        ({"legal_basis": ""}, "no legal basis"),
        ({"use": {"ethics_approval": "EC 2026/12"}}, "declares no purpose"),
        ({"use": USE | {"ethics_approval": ""}}, "no ethics approval"),
        ({"privacy": None}, "its cost to a privacy budget is unbounded"),
        (
            {"privacy": None, **RECORD, "secagg": {"dropout": "continue", "accept_differencing": True}},
            "goes on without silent hospitals",
        ),
        ({"privacy": NOISE}, "protects little"),
        ({"minimum_evidence": "none"}, "keys may lie in files"),
        ({"data": data_of("age", "birth_date", "tip_speed")}, "name patients: birth_date."),
        ({"data": data_of(*(f"f{number}" for number in range(51)))}, "51 fields"),
        ({"data": data_of("age", minimum_rows=5)}, "fewer than 20 records"),
        ({"rounds": 501, "privacy": NOISE | {"noise_multiplier": 500.0, "epsilon": 9.0}}, "501 rounds"),
    ],
)
def test_what_hospitals_usually_refuse(changes: dict[str, Any], words: str) -> None:
    (sentence,) = cautions(parse_study(study_files(**HARMLESS | changes)[0]), now=NOW)
    assert words in sentence
