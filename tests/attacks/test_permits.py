"""What a requester, a coordinator or a careless hand may try to get past a site's policy; named after the attack."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.core.errors import OperatorError
from agent.governance.permit import Consent, Finding, PermitRequest, check_permit, evaluate
from agent.governance.policy import Policy, load_policy
from agent.trust.study import parse_study
from tests.simulators.hospital import study_json
from tests.simulators.permits import (
    DATASET_DIGEST,
    IDENTITY,
    NOW_S,
    POLICY,
    TWO_PEOPLE,
    VISA_DEMAND,
    PlayedIssuer,
    played_issuer,
    played_policy,
    played_request,
    played_study,
    visa_claims,
)

DISEASES_ONLY = POLICY.replace('["DUO:0000042"]', '["DUO:0000007"]').replace(
    "minimum_rows = 30", 'minimum_rows = 30\nlimits = { diseases = ["MONDO:0005267"] }'
)
DEMANDING = POLICY + VISA_DEMAND

issuer = pytest.fixture(played_issuer, scope="module")
policy = pytest.fixture(played_policy, scope="module")


def codes(request: PermitRequest) -> list[str]:
    with pytest.raises(OperatorError) as caught:
        check_permit(request)
    assert caught.value.code == f"permit.{evaluate(request).refusals[0].rule}"
    return [finding.rule for finding in evaluate(request).refusals]


def test_a_study_whose_permit_expired_in_mid_run(policy: Policy) -> None:
    request = played_request(policy)
    assert check_permit(request).permitted
    later = replace(request, now=request.study.expires, consents=(Consent("s", DATASET_DIGEST, 1.0, NOW_S + 10**9),))
    assert codes(later) == ["not_expired"]


def test_an_approval_that_ended_in_mid_run(policy: Policy) -> None:
    request = played_request(policy)
    assert codes(replace(request, now=request.now + timedelta(seconds=3600))) == ["approved"]


def test_another_model_under_the_same_study(policy: Policy) -> None:
    assert codes(played_request(policy, model_digest="ab" * 32)) == ["model_digest"]


def test_a_site_that_is_not_named(policy: Policy) -> None:
    assert codes(played_request(policy, site="hospital-d")) == ["site_named"]


def test_records_added_after_the_approval(policy: Policy) -> None:
    assert codes(played_request(policy, dataset_digest="ab" * 32)) == ["dataset_unchanged", "approved"]


def test_an_old_approval_beside_a_new_one_for_changed_data(policy: Policy) -> None:
    old, new = (Consent("steward-1", digest, 1.0, NOW_S + 3600) for digest in ("ab" * 32, DATASET_DIGEST))
    assert codes(played_request(policy, consents=(old, new))) == ["dataset_unchanged"]


def test_the_approval_of_a_cheaper_study(policy: Policy) -> None:
    assert codes(played_request(policy, epsilon=9.0)) == ["approved"]


def test_the_approval_of_a_bounded_study_for_an_unbounded_one(issuer: PlayedIssuer) -> None:
    lenient = played_policy(issuer, POLICY.replace("minimum_rows", "unbounded_releases = 5\nminimum_rows"))
    assert codes(played_request(lenient, epsilon=None)) == ["approved"]


def test_one_steward_who_approves_twice(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, TWO_PEOPLE)
    consents = tuple(Consent("steward-1", DATASET_DIGEST, 1.0, NOW_S + seconds) for seconds in (60, 120))
    assert codes(played_request(policy, consents=consents)) == ["approved"]


def test_a_data_set_that_the_policy_does_not_list(policy: Policy) -> None:
    rules = codes(played_request(policy, dataset="budapest"))
    assert {"duo_permission", "fields", "minimum_rows"} <= set(rules)


@pytest.mark.parametrize("term", ["DUO:0000999", "DUO:0000005", "DUO:0000014", "DUO:0000001", "DUO:0000017"])
@pytest.mark.parametrize("place", ["data set", "purpose", "study"])
def test_a_term_that_the_ontology_does_not_have_or_no_longer(term: str, place: str, issuer: PlayedIssuer) -> None:
    policy, study = played_policy(issuer), played_study()
    if place == "data set":
        policy = played_policy(issuer, POLICY.replace('["DUO:0000042"]', f'["DUO:0000042", "{term}"]'))
    elif place == "purpose":
        study = played_study(use={"purpose_terms": ["DUO:0000040", term]})
    else:
        study = played_study(duo=[term])
    assert "duo_known" in codes(played_request(policy, study=study))


@pytest.mark.parametrize("term", ["DUO:0000040", "DUO:0000037"])
def test_a_purpose_in_the_place_of_a_permission(term: str, issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY.replace('["DUO:0000042"]', f'["{term}"]'))
    assert codes(played_request(policy)) == ["duo_known", "duo_permission"]


def test_a_permission_in_the_place_of_a_purpose(policy: Policy) -> None:
    study = played_study(use={"purpose_terms": ["DUO:0000004"]})
    assert codes(played_request(policy, study=study)) == ["duo_known", "duo_permission"]


def test_a_forbidden_purpose_hidden_behind_an_allowed_one(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY.replace("[policy]", '[policy]\nrefused_purposes = ["DUO:0000033"]'))
    study = played_study(use={"purpose_terms": ["DUO:0000040", "DUO:0000033"]})
    assert codes(played_request(policy, study=study)) == ["purpose"]


def test_a_wider_disease_than_the_data_are_for(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, DISEASES_ONLY.replace('MONDO:0005267"] }', 'MONDO:0005010"] }'))
    assert check_permit(played_request(policy)).permitted
    study = played_study(use={"diseases": ["MONDO:0005068", "MONDO:0005267"]})
    assert codes(played_request(policy, study=study)) == ["duo_permission"]


def test_a_study_cannot_say_itself_which_disease_lies_under_which() -> None:
    with pytest.raises(OperatorError, match="disease_ancestors"):
        parse_study(study_json(use={"disease_ancestors": {"MONDO:0005098": ["MONDO:0005267"]}}))


def test_the_label_field_that_nobody_allowed(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY.replace('"age", "ill"', '"age"'))
    assert codes(played_request(policy)) == ["fields"]


def test_a_cohort_of_two_colluders_and_one_hospital(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, POLICY.replace("[policy]", "[policy]\nminimum_cohort = 5"))
    study = played_study(secagg={"minimum_sites": 3})
    assert codes(played_request(policy, study=study)) == ["minimum_cohort"]


def test_a_ledger_that_does_not_speak_of_the_budget(policy: Policy) -> None:
    assert codes(played_request(policy, budget=Finding("site_named", True, "All is well."))) == ["budget"]


def test_a_requester_whose_name_paints_over_the_stewards_screen(policy: Policy) -> None:
    name = "Nobody\x1b[2J\u202eetutitsnI traeH\nsite_named: passed"
    study = played_study(requester=name, use={"ethics_approval": name, "institution": name})
    texts = [finding.sentence for finding in evaluate(played_request(policy, study=study)).findings]
    assert any("Nobody?[2J?" in text for text in texts)
    assert all(text.isprintable() for text in texts)


def test_a_forged_visa(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, DEMANDING)
    use = {"identity": IDENTITY.model_dump()}
    forger = played_issuer()
    study = played_study(use=use, visas=[forger.visa(header=forger.header(kid=issuer.key.kid))])
    assert codes(played_request(policy, study=study)) == ["visa"]
    assert check_permit(played_request(policy, study=played_study(use=use, visas=[issuer.visa()]))).permitted


def test_a_visa_that_expires_in_mid_run(issuer: PlayedIssuer) -> None:
    policy = played_policy(issuer, DEMANDING)
    end = visa_claims(IDENTITY.issuer, {})["exp"] - NOW_S
    consents = (Consent("steward-1", DATASET_DIGEST, 1.0, NOW_S + 10**6),)
    study = played_study(use={"identity": IDENTITY.model_dump()}, visas=[issuer.visa()])
    request = played_request(policy, study=study, consents=consents)
    assert check_permit(request).permitted
    assert codes(replace(request, now=request.now + timedelta(seconds=end))) == ["visa"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("[policy]", "[policy"),
        lambda text: text.replace("requesters", "requestors"),
        lambda text: text + "\x00",
        lambda text: text.replace("minimum_rows = 30", "minimum_rows = 30\nminimum_rows = 1"),
        lambda text: text + "\n[datasets.cleveland]\n",
    ],
    ids=["cut", "no TOML", "a word misspelt", "a NUL", "said twice", "a part twice"],
)
def test_a_damaged_policy_allows_nothing(damage: object, issuer: PlayedIssuer, tmp_path: Path) -> None:
    assert callable(damage)
    (tmp_path / "keys.json").write_bytes(issuer.jwks)
    (tmp_path / "policy.toml").write_text(POLICY)
    assert check_permit(played_request(load_policy(tmp_path / "policy.toml"))).permitted
    (tmp_path / "policy.toml").write_text(damage(POLICY))
    with pytest.raises(OperatorError) as caught:
        load_policy(tmp_path / "policy.toml")
    assert caught.value.code == "policy.invalid"


def test_an_issuers_key_file_with_a_second_key_that_is_secret(issuer: PlayedIssuer, tmp_path: Path) -> None:
    keys = json.loads(issuer.jwks)
    keys["keys"].append({"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"})
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    (tmp_path / "policy.toml").write_text(POLICY)
    with pytest.raises(OperatorError) as caught:
        load_policy(tmp_path / "policy.toml")
    assert caught.value.code == "visa.bad_keys"


def test_no_policy_at_all_allows_nothing(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        load_policy(tmp_path / "policy.toml")
    assert caught.value.code == "policy.unreadable"
    assert not evaluate(played_request(Policy())).permitted


@pytest.mark.parametrize(
    ("expires", "refused"), [("2026-12-31T23:00:00Z", False), ("2026-12-31T23:00:00-12:00", True)], ids=["utc", "bent"]
)
def test_a_time_limit_stretched_by_a_time_zone(issuer: PlayedIssuer, expires: str, refused: bool) -> None:
    text = POLICY.replace('["DUO:0000042"]', '["DUO:0000042", "DUO:0000025"]').replace(
        "minimum_rows = 30", "minimum_rows = 30\nlimits = { time_limit = { since = 2026-08-31, months = 4 } }"
    )
    request = played_request(played_policy(issuer, text), study=played_study(expires=expires))
    assert [finding.rule for finding in evaluate(request).refusals] == ["duo_time_limit"] * refused


@pytest.mark.parametrize("expires", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-12-31T00:00:00"])
def test_a_study_that_ends_beyond_all_calendars_hides_no_other_from_the_steward(expires: str) -> None:
    """Such a time, in UTC, is none: whatever lists the studies would break over it."""
    with pytest.raises(OperatorError, match="expires") as refused:
        played_study(expires=expires)
    assert refused.value.code == "study.invalid"
