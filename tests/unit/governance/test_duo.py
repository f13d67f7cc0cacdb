"""Each DUO term, both ways: a use that it allows, and the nearest one that it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pytest

from agent.governance.duo import (
    MODIFIERS,
    PERMISSIONS,
    PURPOSES,
    TERMS,
    Limits,
    TimeLimit,
    UseRequest,
    check_modifier,
    check_permission,
    disease_within,
    is_within,
    rule_name,
)
from agent.trust.study import DataUse, VisaIdentity

INFARCTION, CORONARY, HEART, STROKE = "MONDO:0005068", "MONDO:0005010", "MONDO:0005267", "MONDO:0005098"
ANCESTORS = {INFARCTION: (CORONARY,), CORONARY: (HEART,)}
METHODS, POPULATION, ANCESTRY, AGE = "DUO:0000031", "DUO:0000032", "DUO:0000033", "DUO:0000034"
BIOMEDICAL, GENETIC, DRUGS, DISEASE = "DUO:0000037", "DUO:0000038", "DUO:0000039", "DUO:0000040"
ADA = VisaIdentity(issuer="https://a.example.org", subject="1")
HER_NAMESAKE = VisaIdentity(issuer="https://b.example.org", subject="1")


@dataclass(frozen=True)
class Case:
    """A data set's term with its limits, a use that fits and one that does not."""

    term: str
    fits: dict[str, Any]
    misses: dict[str, Any]
    limits: dict[str, Any] = field(default_factory=dict)


def request(declared: dict[str, Any]) -> UseRequest:
    facts = dict(declared)
    expires = facts.pop("expires", datetime(2027, 1, 31, 23, tzinfo=UTC))
    return UseRequest(
        DataUse.model_validate(facts),
        facts.get("project", "") or "played-study",
        expires,
        facts.get("identity"),
        ANCESTORS,
    )


PERMISSION_CASES = [
    Case("DUO:0000042", {"purpose_terms": [METHODS]}, {"purpose_terms": []}),
    Case("DUO:0000042", {"purpose_terms": [ANCESTRY]}, {"purpose_terms": ["DUO:0000999"]}),
    Case("DUO:0000006", {"purpose_terms": [DRUGS]}, {"purpose_terms": [AGE]}),
    Case("DUO:0000006", {"purpose_terms": [BIOMEDICAL, METHODS]}, {"purpose_terms": [BIOMEDICAL, ANCESTRY]}),
    Case(
        "DUO:0000007",
        {"purpose_terms": [DISEASE], "diseases": [HEART]},
        {"purpose_terms": [DISEASE], "diseases": [STROKE]},
        {"diseases": (HEART,)},
    ),
    Case(
        "DUO:0000007",
        {"purpose_terms": [DISEASE], "diseases": [INFARCTION]},
        {"purpose_terms": [DISEASE], "diseases": [INFARCTION, STROKE]},
        {"diseases": (HEART,)},
    ),
    Case(
        "DUO:0000007",
        {"purpose_terms": [DISEASE], "diseases": [INFARCTION]},
        {"purpose_terms": [DISEASE], "diseases": []},
        {"diseases": (CORONARY,)},
    ),
    Case(
        "DUO:0000007",
        {"purpose_terms": [DISEASE], "diseases": [INFARCTION]},
        {"purpose_terms": [METHODS], "diseases": [INFARCTION]},
        {"diseases": (INFARCTION,)},
    ),
    Case(
        "DUO:0000007",
        {"purpose_terms": [DISEASE], "diseases": [INFARCTION]},
        {"purpose_terms": [DISEASE], "diseases": [HEART]},
        {"diseases": (INFARCTION,)},
    ),
    Case("DUO:0000011", {"purpose_terms": [ANCESTRY, POPULATION]}, {"purpose_terms": [ANCESTRY, DISEASE]}),
    Case("DUO:0000011", {"purpose_terms": [ANCESTRY]}, {"purpose_terms": [POPULATION]}),
]

MODIFIER_CASES = [
    Case(
        "DUO:0000012", {"purpose_terms": [GENETIC]}, {"purpose_terms": [GENETIC, AGE]}, {"research_types": [BIOMEDICAL]}
    ),
    Case("DUO:0000012", {"purpose_terms": [AGE]}, {"purpose_terms": []}, {"research_types": [AGE]}),
    Case("DUO:0000015", {"purpose_terms": [DISEASE]}, {"purpose_terms": [DISEASE, METHODS]}),
    Case("DUO:0000015", {"purpose_terms": [DISEASE]}, {"purpose_terms": []}),
    Case("DUO:0000016", {"purpose_terms": [GENETIC]}, {"purpose_terms": [BIOMEDICAL]}),
    Case(
        "DUO:0000018",
        {"not_for_profit": True, "non_commercial": True},
        {"not_for_profit": True, "non_commercial": False},
    ),
    Case(
        "DUO:0000018",
        {"not_for_profit": True, "non_commercial": True},
        {"not_for_profit": False, "non_commercial": True},
    ),
    Case("DUO:0000019", {"publishes": True}, {"publishes": False}),
    Case("DUO:0000020", {"collaborates": True}, {"collaborates": False}),
    Case("DUO:0000021", {"ethics_approval": "EK 2026/17"}, {"ethics_approval": " "}),
    Case("DUO:0000022", {"countries": ["DE"]}, {"countries": ["DE", "US"]}, {"countries": ["DE", "NL"]}),
    Case("DUO:0000022", {"countries": ["NL"]}, {"countries": []}, {"countries": ["DE", "NL"]}),
    Case(
        "DUO:0000024",
        {"publishes_not_before": date(2027, 3, 1)},
        {"publishes_not_before": date(2027, 2, 28)},
        {"publish_after": date(2027, 3, 1)},
    ),
    Case(
        "DUO:0000024",
        {"publishes_not_before": date(2027, 3, 1)},
        {"publishes": False},
        {"publish_after": date(2027, 3, 1)},
    ),
    Case(
        "DUO:0000025",
        {"expires": datetime(2027, 2, 28, 23, tzinfo=UTC)},
        {"expires": datetime(2027, 3, 1, 0, tzinfo=UTC)},
        {"time_limit": {"since": date(2026, 8, 31), "months": 6}},
    ),
    Case("DUO:0000026", {"identity": ADA}, {"identity": HER_NAMESAKE}, {"users": [ADA]}),
    Case("DUO:0000026", {"identity": ADA}, {"identity": None}, {"users": [ADA]}),
    Case("DUO:0000027", {"project": "heart-2026"}, {"project": "heart-2027"}, {"projects": ["heart-2026"]}),
    Case("DUO:0000027", {"project": ""}, {"project": "heart-2027"}, {"projects": ["played-study"]}),
    Case(
        "DUO:0000028",
        {"institution": "https://ror.org/038t36y30"},
        {"institution": ""},
        {"institutions": ["https://ror.org/038t36y30"]},
    ),
    Case("DUO:0000028", {"institution": "a"}, {"institution": "b"}, {"institutions": ["a"]}),
    Case("DUO:0000029", {"returns_results": True}, {"returns_results": False}),
    Case("DUO:0000044", {"purpose_terms": [DISEASE]}, {"purpose_terms": [DISEASE, ANCESTRY]}),
    Case("DUO:0000044", {"purpose_terms": [DISEASE]}, {"purpose_terms": [POPULATION]}),
    Case("DUO:0000044", {"purpose_terms": [DISEASE]}, {"purpose_terms": []}),
    Case("DUO:0000045", {"not_for_profit": True}, {"not_for_profit": False, "non_commercial": True}),
    Case("DUO:0000046", {"non_commercial": True}, {"non_commercial": False, "not_for_profit": True}),
]


@pytest.mark.parametrize("case", PERMISSION_CASES, ids=lambda case: case.term)
def test_a_permission_allows_its_own_use_and_no_other(case: Case) -> None:
    limits = Limits.model_validate(case.limits)
    assert check_permission(case.term, request(case.fits), limits).passed
    assert not check_permission(case.term, request(case.misses), limits).passed


@pytest.mark.parametrize("case", MODIFIER_CASES, ids=lambda case: case.term)
def test_a_modifier_is_met_or_missed(case: Case) -> None:
    limits = Limits.model_validate(case.limits)
    met, missed = (check_modifier(case.term, request(use), limits) for use in (case.fits, case.misses))
    assert met.passed
    assert not missed.passed
    assert case.term in met.sentence
    assert case.term in missed.sentence
    assert met.sentence != missed.sentence


def test_no_restriction_restricts_nothing() -> None:
    assert check_permission("DUO:0000004", request({}), Limits()).passed


def test_clinical_care_widens_and_never_refuses() -> None:
    for clinical in (True, False):
        assert check_modifier("DUO:0000043", request({"clinical_care": clinical}), Limits()).passed


@pytest.mark.parametrize("case", [case for case in MODIFIER_CASES if case.limits], ids=lambda case: case.term)
def test_a_modifier_whose_value_the_policy_forgot_refuses(case: Case) -> None:
    assert not check_modifier(case.term, request(case.fits), Limits()).passed


def test_a_disease_permission_without_diseases_refuses() -> None:
    use = request({"purpose_terms": [DISEASE], "diseases": [HEART]})
    assert not check_permission("DUO:0000007", use, Limits()).passed


def test_every_term_of_the_ontology_has_its_case() -> None:
    """The terms are those of duo.csv (release 2021-02-23), without the two classes above them."""
    permissions = {"04", "06", "07", "11", "42"}
    modifiers = {
        "12",
        "15",
        "16",
        "18",
        "19",
        "20",
        "21",
        "22",
        "24",
        "25",
        "26",
        "27",
        "28",
        "29",
        "43",
        "44",
        "45",
        "46",
    }
    assert PERMISSIONS.keys() == {f"DUO:00000{number}" for number in permissions}
    assert MODIFIERS.keys() == {f"DUO:00000{number}" for number in modifiers}
    assert {case.term for case in PERMISSION_CASES} | {"DUO:0000004"} == PERMISSIONS.keys()
    assert {case.term for case in MODIFIER_CASES} | {"DUO:0000043"} == MODIFIERS.keys()
    assert PURPOSES.keys() == {f"DUO:00000{number}" for number in range(31, 41)}


def test_shorthands_and_rule_names_are_of_one_term_each() -> None:
    shorthands = [term.shorthand for term in (*PERMISSIONS.values(), *MODIFIERS.values())]
    assert len(set(shorthands)) == len(shorthands)
    assert len({rule_name(term) for term in MODIFIERS}) == len(MODIFIERS)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("DUO:0000007", "DUO:0000006"),
        ("DUO:0000007", "DUO:0000042"),
        ("DUO:0000006", "DUO:0000042"),
        ("DUO:0000045", "DUO:0000018"),
        ("DUO:0000046", "DUO:0000018"),
        (GENETIC, BIOMEDICAL),
        (DRUGS, BIOMEDICAL),
        (DISEASE, BIOMEDICAL),
        (DISEASE, DISEASE),
    ],
)
def test_the_ontology_orders_its_terms(narrow: str, wide: str) -> None:
    assert is_within(narrow, wide)
    assert narrow == wide or not is_within(wide, narrow)


@pytest.mark.parametrize("term", ["DUO:0000011", "DUO:0000004"])
def test_what_stands_beside_general_research_is_not_within_it(term: str) -> None:
    assert not is_within(term, "DUO:0000042")


def test_a_term_outside_the_ontology_is_within_nothing() -> None:
    assert "DUO:0000999" not in TERMS
    assert not is_within("DUO:0000999", "DUO:0000999")


def test_diseases_that_are_each_others_ancestors_end_the_search() -> None:
    circle = {HEART: (STROKE,), STROKE: (HEART,)}
    assert not disease_within(HEART, [INFARCTION], circle)
    assert disease_within(HEART, [STROKE], circle)


@pytest.mark.parametrize(
    ("since", "months", "end"),
    [
        (date(2026, 1, 31), 1, date(2026, 2, 28)),
        (date(2027, 11, 30), 3, date(2028, 2, 29)),
        (date(2026, 12, 15), 1, date(2027, 1, 15)),
        (date(2026, 1, 1), 24, date(2028, 1, 1)),
    ],
)
def test_months_end_in_the_month_they_reach(since: date, months: int, end: date) -> None:
    assert TimeLimit(since=since, months=months).end == end
