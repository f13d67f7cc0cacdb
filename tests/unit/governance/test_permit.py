"""Each rule of the permit table, both ways: what fits passes, and one fault refuses by its rule's name alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from agent.core.errors import OperatorError
from agent.governance.duo import MODIFIERS, rule_name
from agent.governance.permit import (
    Consent,
    Decision,
    Finding,
    PermitRequest,
    check_permit,
    evaluate,
    refusal_of,
    refuse_without_policy,
)
from agent.governance.policy import Policy
from tests.simulators.permits import (
    DATASET_DIGEST,
    IDENTITY,
    NOW,
    NOW_S,
    POLICY,
    TWO_PEOPLE,
    VISA_DEMAND,
    PlayedIssuer,
    played_issuer,
    played_policy,
    played_request,
    played_study,
)

RULES = [
    "site_named",
    "not_expired",
    "requester",
    "purpose",
    "duo_known",
    "duo_permission",
    "fields",
    "schema",
    "minimum_rows",
    "minimum_cohort",
    "visa",
    "privacy_bounded",
    "model_digest",
    "dataset_unchanged",
    "approved",
    "budget",
]

issuer = pytest.fixture(played_issuer, scope="module")
policy = pytest.fixture(played_policy, scope="module")


def refused(decision: Decision) -> list[str]:
    return [finding.rule for finding in decision.refusals]


def consent(steward: str, **changes: Any) -> Consent:  # noqa: ANN401 - any field
    return replace(Consent(steward, DATASET_DIGEST, 1.0, NOW_S + 3600), **changes)


def test_a_study_that_fits_is_permitted_and_every_rule_spoke(policy: Policy) -> None:
    decision = check_permit(played_request(policy))
    assert decision.permitted
    assert [finding.rule for finding in decision.findings] == RULES
    assert all(finding.sentence.endswith(".") for finding in decision.findings)


SPOILT: dict[str, Callable[[PermitRequest], PermitRequest]] = {
    "site_named": lambda request: replace(request, site="hospital-z"),
    "not_expired": lambda request: replace(request, study=played_study(expires=NOW.isoformat())),
    "requester": lambda request: replace(request, study=played_study(requester="Somebody else")),
    "purpose": lambda request: replace(request, policy=_with(request, refused_purposes=("DUO:0000037",))),
    "duo_known": lambda request: replace(request, study=played_study(duo=["DUO:0000999"])),
    "fields": lambda request: replace(request, policy=_with_dataset(request, fields=("age",))),
    "schema": lambda request: replace(request, schema="other"),
    "minimum_rows": lambda request: replace(request, policy=_with_dataset(request, minimum_rows=31)),
    "minimum_cohort": lambda request: replace(request, policy=_with(request, minimum_cohort=4)),
    "privacy_bounded": lambda request: replace(request, epsilon=None, consents=(consent("steward-1", epsilon=None),)),
    "model_digest": lambda request: replace(request, model_digest=""),
    "approved": lambda request: replace(request, consents=()),
    "budget": lambda request: replace(request, budget=Finding("budget", False, "Nothing is left.")),
}


def _with(request: PermitRequest, **changes: Any) -> Policy:  # noqa: ANN401 - any field
    return replace(request.policy, rules=request.policy.rules.model_copy(update=changes))


def _with_dataset(request: PermitRequest, **changes: Any) -> Policy:  # noqa: ANN401 - any field
    own = request.dataset_policy.model_copy(update=changes)
    return replace(request.policy, datasets={request.dataset: own})


@pytest.mark.parametrize("rule", SPOILT)
def test_one_fault_is_refused_by_its_rule_alone(rule: str, policy: Policy) -> None:
    request = SPOILT[rule](played_request(policy))
    assert refused(evaluate(request)) == [rule]
    with pytest.raises(OperatorError) as caught:
        check_permit(request)
    assert caught.value.code == f"permit.{rule}"
    assert caught.value.details["rules"] == [rule]


def test_all_faults_are_named_and_not_only_the_first(policy: Policy) -> None:
    request = played_request(policy, site="hospital-z", schema="other", model_digest="00" * 32)
    assert refused(evaluate(request)) == ["site_named", "schema", "model_digest"]
    with pytest.raises(OperatorError, match=r"does not name this hospital") as caught:
        check_permit(request)
    assert caught.value.details["rules"] == ["site_named", "schema", "model_digest"]


def test_an_empty_policy_refuses_by_every_rule_of_the_sites(policy: Policy) -> None:
    rules = {"requester", "duo_permission", "fields", "minimum_rows"}
    assert set(refused(evaluate(played_request(Policy())))) == rules
    assert "privacy_bounded" in refused(evaluate(played_request(Policy(), epsilon=None)))


def test_requesters_may_be_all_whom_the_consortium_lets_publish(policy: Policy) -> None:
    request = played_request(policy, study=played_study(requester="Somebody else"))
    assert evaluate(replace(request, policy=_with(request, requesters="all"))).permitted


def test_a_refused_purpose_refuses_what_is_narrower_and_not_what_is_wider(policy: Policy) -> None:
    request = played_request(policy, study=played_study(use={"purpose_terms": ["DUO:0000037"]}))
    assert refused(evaluate(replace(request, policy=_with(request, refused_purposes=("DUO:0000040",))))) == []
    assert refused(evaluate(replace(request, policy=_with(request, refused_purposes=("DUO:0000037",))))) == ["purpose"]


def test_a_study_without_a_declared_purpose_is_refused(policy: Policy) -> None:
    request = played_request(policy, study=played_study(use={"purpose_terms": []}))
    assert refused(evaluate(request)) == ["purpose", "duo_permission"]


def test_all_fields_may_be_allowed(policy: Policy) -> None:
    request = played_request(policy)
    assert evaluate(replace(request, policy=_with_dataset(request, fields="all"))).permitted


def test_the_label_is_a_field_too(policy: Policy) -> None:
    request = played_request(policy)
    decision = evaluate(replace(request, policy=_with_dataset(request, fields=("age",))))
    assert "ill" in decision.refusals[0].sentence


@pytest.mark.parametrize(("rows", "passes"), [(99, False), (100, True)])
def test_counted_rows_outweigh_the_studys_word(rows: int, passes: bool, policy: Policy) -> None:
    request = played_request(policy, rows=rows)
    decision = evaluate(replace(request, policy=_with_dataset(request, minimum_rows=100)))
    assert decision.permitted is passes
    sentence = next(finding.sentence for finding in decision.findings if finding.rule == "minimum_rows")
    assert re.findall(r"\d+", sentence) == ["100", "30"], "no count of this hospital's rows is written down"


def test_the_greater_of_both_least_cohorts_counts(policy: Policy) -> None:
    request = played_request(policy)
    assert refused(evaluate(replace(request, policy=_with_dataset(request, minimum_cohort=4)))) == ["minimum_cohort"]
    assert _with_dataset(request, minimum_cohort=3).least_cohort("cleveland") == 3
    own = replace(request, policy=_with_dataset(request, minimum_cohort=4))
    assert _with(own, minimum_cohort=5).least_cohort("cleveland") == 5


def test_a_study_whose_terms_of_aggregation_contradict_each_other_has_no_cohort(policy: Policy) -> None:
    request = played_request(policy, study=played_study(secagg={"colluders": 2, "minimum_sites": 3}))
    assert refused(evaluate(request)) == ["minimum_cohort"]


def test_without_differential_privacy_only_where_the_policy_allows_it(policy: Policy) -> None:
    request = played_request(policy, epsilon=None, consents=(consent("steward-1", epsilon=None),))
    assert evaluate(replace(request, policy=_with_dataset(request, unbounded_releases=1))).permitted


def test_a_changed_data_set_is_refused_and_needs_a_new_approval(policy: Policy) -> None:
    request = played_request(policy, dataset_digest="00" * 32)
    assert refused(evaluate(request)) == ["dataset_unchanged", "approved"]


def test_before_an_approval_nothing_else_is_missing(policy: Policy) -> None:
    request = played_request(policy, consents=())
    assert evaluate(request).awaits_steward
    assert not evaluate(replace(request, site="hospital-z")).awaits_steward
    assert not evaluate(played_request(policy)).awaits_steward


@pytest.mark.parametrize(
    "stale",
    [{"not_after_s": NOW_S}, {"epsilon": 2.0}, {"epsilon": None}],
    ids=["ended", "another cost", "without a bound"],
)
def test_an_approval_of_another_time_or_cost_does_not_count(stale: dict[str, Any], policy: Policy) -> None:
    assert refused(evaluate(played_request(policy, consents=(consent("steward-1", **stale),)))) == ["approved"]


@pytest.mark.parametrize(("stewards", "passes"), [(["a"], False), (["a", "a"], False), (["a", "b"], True)])
def test_two_people_are_two_different_stewards(stewards: list[str], passes: bool, issuer: PlayedIssuer) -> None:
    request = played_request(played_policy(issuer, TWO_PEOPLE), consents=tuple(map(consent, stewards)))
    assert evaluate(request).permitted is passes


def test_a_demanded_visa_is_shown_or_missing(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY + VISA_DEMAND)
    with_visa = played_study(visas=[issuer.visa()], use={"identity": IDENTITY.model_dump()})
    assert evaluate(played_request(policy, study=with_visa)).permitted
    assert refused(evaluate(played_request(policy))) == ["visa"]


def test_the_whole_sites_demands_count_too(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY + VISA_DEMAND.replace("datasets.cleveland", "policy"))
    assert refused(evaluate(played_request(policy))) == ["visa"]


def test_an_approved_user_is_shown_by_a_visa(issuer: PlayedIssuer) -> None:
    text = POLICY.replace('["DUO:0000042"]', '["DUO:0000042", "DUO:0000026"]')
    text += (
        f'\n[datasets.cleveland.limits]\nusers = [{{ issuer = "{IDENTITY.issuer}", subject = "{IDENTITY.subject}" }}]\n'
    )
    policy, use = played_policy(issuer, text), {"identity": IDENTITY.model_dump()}
    assert evaluate(played_request(policy, study=played_study(use=use, visas=[issuer.visa()]))).permitted
    assert refused(evaluate(played_request(policy, study=played_study(use=use)))) == ["duo_user"]


@pytest.mark.parametrize("term", MODIFIERS)
def test_every_modifier_of_a_data_set_speaks_under_its_own_name(term: str, policy: Policy) -> None:
    request = played_request(policy)
    decision = evaluate(replace(request, policy=_with_dataset(request, duo=("DUO:0000042", term))))
    findings = {finding.rule: finding for finding in decision.findings}
    assert findings.keys() == {*RULES, rule_name(term)}
    if not findings[rule_name(term)].passed:
        assert refusal_of(decision).code == f"permit.{rule_name(term)}"


def test_clinical_use_needs_the_term_that_allows_it(policy: Policy) -> None:
    request = played_request(policy, study=played_study(use={"clinical_care": True}))
    assert refused(evaluate(request)) == ["duo_clinical_care"]
    for allowing in (("DUO:0000042", "DUO:0000043"), ("DUO:0000004",)):
        assert evaluate(replace(request, policy=_with_dataset(request, duo=allowing))).permitted


def test_without_a_usable_policy_every_study_is_refused_with_the_reason() -> None:
    error = OperatorError("policy.invalid", "The site's policy cannot be used: no TOML.", next_step="Correct it.")
    decision = refuse_without_policy(error)
    assert not decision.permitted
    assert refusal_of(decision).code == "permit.policy"
    assert refusal_of(decision).sentence == error.sentence


def test_a_decision_without_a_finding_permits_nothing() -> None:
    assert not Decision(()).permitted


def test_a_study_is_good_until_its_very_end(policy: Policy) -> None:
    last = played_study(expires=(NOW + timedelta(seconds=1)).isoformat())
    assert evaluate(played_request(policy, study=last)).permitted
