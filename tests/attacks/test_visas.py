"""What somebody may try who wants to pass for a requester that a site trusts; each test is named after its attack."""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey

from agent.core.errors import OperatorError, PeerProtocolError
from agent.governance.visa import (
    CLOCK_SKEW_S,
    MAX_JWKS_BYTES,
    Evidence,
    VisaDemand,
    meets_demand,
    parse_jwks,
    verify_visa,
    weigh_visas,
)
from agent.trust.study import VisaIdentity, parse_study
from tests.simulators.hospital import study_json
from tests.simulators.permits import (
    BONA_FIDE,
    IDENTITY,
    ISSUER,
    JKU,
    NOW_S,
    SOURCE,
    PlayedIssuer,
    played_issuer,
    visa_claims,
)

DEMAND = VisaDemand(type="ResearcherStatus", values=(BONA_FIDE,), sources=(SOURCE,))
FACULTY: dict[str, Any] = {"type": "AffiliationAndRole", "value": "faculty@university.example.org"}

issuer = pytest.fixture(played_issuer, scope="module")


def verify(token: str, *issuers: PlayedIssuer, now_s: int = NOW_S) -> object:
    return verify_visa(token, {item.issuer: item.trusted for item in issuers}, now_s=now_s)


def weigh(issuer: PlayedIssuer, *tokens: str) -> Evidence:
    return weigh_visas(tokens, {issuer.issuer: issuer.trusted}, identity=IDENTITY, now_s=NOW_S)


def refusal(token: str, *issuers: PlayedIssuer, now_s: int = NOW_S) -> str:
    with pytest.raises(PeerProtocolError) as caught:
        verify(token, *issuers, now_s=now_s)
    return caught.value.code


def part(content: object) -> str:
    return urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def forge(header: dict[str, Any], payload: dict[str, Any], signature: str = "") -> str:
    return f"{part(header)}.{part(payload)}.{signature}"


def test_an_honest_visa_counts(issuer: PlayedIssuer) -> None:
    evidence = weigh(issuer, issuer.visa())
    assert evidence.refusals == ()
    assert [visa.identity for visa in evidence.visas] == [IDENTITY]
    assert meets_demand(evidence.visas[0], DEMAND)


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "application/vnd.ga4gh.visa+jwt"])
def test_an_honest_visa_may_name_its_type_as_the_standard_allows(kind: str | None, issuer: PlayedIssuer) -> None:
    assert verify(issuer.visa(header=issuer.header(typ=kind)), issuer)


def test_an_honest_visa_may_be_signed_with_rsa() -> None:
    key = RSAKey.generate_key(2048)
    key.ensure_kid()
    trusted = parse_jwks(json.dumps({"keys": [key.as_dict(private=False)]}).encode())
    header = {"alg": "RS256", "kid": key.kid, "jku": JKU}
    token = jws.serialize_compact(header, json.dumps(visa_claims(ISSUER, {})), key, algorithms=["RS256"])
    issuer = played_issuer()
    assert verify_visa(token, {ISSUER: type(issuer.trusted)(ISSUER, JKU, trusted)}, now_s=NOW_S).identity == IDENTITY


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE"])
def test_no_algorithm_at_all(algorithm: str, issuer: PlayedIssuer) -> None:
    token = forge(issuer.header(alg=algorithm), visa_claims(ISSUER, {}))
    assert refusal(token, issuer) == "visa.untrusted"


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_public_key_as_a_secret_of_hs256(encoding: Encoding, issuer: PlayedIssuer) -> None:
    public = issuer.key.public_key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    signed = forge(issuer.header(alg="HS256"), visa_claims(ISSUER, {})).removesuffix(".")
    signature = hmac.digest(public, signed.encode(), "sha256")
    assert refusal(f"{signed}.{urlsafe_b64encode(signature).decode().rstrip('=')}", issuer) == "visa.untrusted"


def test_another_algorithm_of_the_same_key(issuer: PlayedIssuer) -> None:
    honest = issuer.visa()
    token = f"{part(issuer.header(alg='ES256K'))}.{honest.partition('.')[2]}"
    assert refusal(token, issuer) == "visa.untrusted"


def test_an_issuer_that_the_site_does_not_list(issuer: PlayedIssuer) -> None:
    foreign = played_issuer("https://evil.example.org", JKU)
    assert refusal(foreign.visa(), issuer) == "visa.untrusted"


def test_an_issuer_under_anothers_name(issuer: PlayedIssuer) -> None:
    assert refusal(played_issuer().visa(), issuer) == "visa.untrusted"


def test_another_key_under_the_trusted_keys_name(issuer: PlayedIssuer) -> None:
    mine = played_issuer()
    assert refusal(mine.visa(header=mine.header(kid=issuer.key.kid)), issuer) == "visa.untrusted"


def test_one_trusted_issuer_in_the_name_of_another(issuer: PlayedIssuer) -> None:
    other = played_issuer("https://other.example.org", "https://other.example.org/jwk")
    assert refusal(other.visa(claims={"iss": ISSUER}), issuer, other) == "visa.untrusted"


@pytest.mark.parametrize("key", ["jwk", "x5u", "x5c"])
def test_a_key_that_the_visa_brings_itself(key: str, issuer: PlayedIssuer) -> None:
    mine = played_issuer()
    brought = {"jwk": mine.key.as_dict(private=False), "x5u": "https://evil.example.org/x", "x5c": ["AAAA"]}[key]
    header = mine.header() | {key: brought}
    token = f"{part(header)}.{mine.visa().partition('.')[2]}"
    assert refusal(token, issuer) == "visa.untrusted"


@pytest.mark.parametrize("jku", ["https://evil.example.org/jwk", JKU + "/", JKU.replace("login", "LOGIN"), None])
def test_keys_said_to_be_elsewhere(jku: str | None, issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(header=issuer.header(jku=jku)), issuer) == "visa.untrusted"


def test_a_key_without_a_name(issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(header=issuer.header(kid=None)), issuer) == "visa.untrusted"


@pytest.mark.parametrize("kind", ["at+jwt", "vnd.ga4gh.passport+jwt", "logout+jwt", ""])
def test_another_kind_of_token_of_the_same_issuer(kind: str, issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(header=issuer.header(typ=kind)), issuer) == "visa.untrusted"


def test_a_header_that_must_be_understood_and_is_not(issuer: PlayedIssuer) -> None:
    header = issuer.header() | {"crit": ["b64"], "b64": False}
    assert refusal(f"{part(header)}.{issuer.visa().partition('.')[2]}", issuer).startswith("visa.")


def test_a_changed_payload(issuer: PlayedIssuer) -> None:
    head, _, signature = issuer.visa().split(".")
    assert refusal(f"{head}.{part(visa_claims(ISSUER, {'sub': 'me'}))}.{signature}", issuer) == "visa.untrusted"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": NOW_S},
        {"exp": NOW_S - 1},
        {"iat": NOW_S + CLOCK_SKEW_S + 1},
        {"nbf": NOW_S + CLOCK_SKEW_S + 1},
    ],
)
def test_an_expired_visa_or_one_of_tomorrow(claims: dict[str, int], issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(claims=claims), issuer) == "visa.expired"


@pytest.mark.parametrize(
    "claims",
    [{"exp": None}, {"iat": None}, {"sub": None}, {"iss": None}, {"exp": "9999999999"}, {"exp": 1e300}, {"sub": 10001}],
)
def test_a_visa_without_its_end_or_its_person(claims: dict[str, Any], issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(claims=claims), issuer) == "visa.malformed"


def test_a_visa_made_for_somebody_elses_service(issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(claims={"aud": "https://other.example.org"}), issuer) == "visa.malformed"


@pytest.mark.parametrize("missing", ["type", "value", "source", "asserted"])
def test_a_visa_that_leaves_out_what_it_asserts(missing: str, issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(**{missing: None}), issuer) == "visa.malformed"


def test_an_access_token_without_a_visa(issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(claims={"ga4gh_visa_v1": None}), issuer) == "visa.malformed"


@pytest.mark.parametrize("token", ["", "a.b.c", "..", "e30.e30.", "e30.W10.", "A" * 200_000, "eyJ.eyJ.e", "\u00e9.a.b"])
def test_garbage(token: str, issuer: PlayedIssuer) -> None:
    assert refusal(token, issuer) == "visa.malformed"


def test_deeply_nested_json(issuer: PlayedIssuer) -> None:
    bomb = urlsafe_b64encode(b"[" * 50_000).decode().rstrip("=")
    assert refusal(f"{part(issuer.header())}.{bomb}.AAAA", issuer) == "visa.malformed"
    assert refusal(f"{bomb[:500]}.{part({})}.AAAA", issuer) == "visa.malformed"


def test_the_visa_of_another_person(issuer: PlayedIssuer) -> None:
    evidence = weigh(issuer, issuer.visa(claims={"sub": "10002"}))
    assert evidence.visas == ()
    assert "another person" in evidence.refusals[0]


def test_the_same_name_at_another_trusted_issuer(issuer: PlayedIssuer) -> None:
    other = played_issuer("https://other.example.org", "https://other.example.org/jwk")
    trusted = {item.issuer: item.trusted for item in (issuer, other)}
    assert weigh_visas([other.visa()], trusted, identity=IDENTITY, now_s=NOW_S).visas == ()


def test_a_study_that_names_no_person_gains_nothing_by_visas(issuer: PlayedIssuer) -> None:
    assert weigh_visas([issuer.visa()], {ISSUER: issuer.trusted}, identity=None, now_s=NOW_S).visas == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "ControlledAccessGrants"},
        {"type": "researcherstatus"},
        {"value": BONA_FIDE + "/"},
        {"value": BONA_FIDE.upper()},
        {"source": "https://no.organization"},
        {"by": "self"},
        {"by": None},
    ],
)
def test_a_visa_of_another_type_value_source_or_authority(changes: dict[str, Any], issuer: PlayedIssuer) -> None:
    evidence = weigh(issuer, issuer.visa(**changes))
    assert len(evidence.visas) == 1
    assert not meets_demand(evidence.visas[0], DEMAND)


def test_an_authority_that_the_site_did_not_ask_for(issuer: PlayedIssuer) -> None:
    visa = weigh(issuer, issuer.visa(by="peer")).visas[0]
    assert not meets_demand(visa, DEMAND.model_copy(update={"by": ("so", "dac")}))
    assert meets_demand(visa, DEMAND.model_copy(update={"by": ("peer",)}))


def conditions(**clause: object) -> list[list[dict[str, object]]]:
    return [[{"type": "AffiliationAndRole"} | clause]]


MET = [
    conditions(value="const:faculty@university.example.org"),
    conditions(value="pattern:faculty@*"),
    conditions(value="pattern:f?culty@*.org", by="const:so"),
    conditions(value="split_pattern:faculty@*"),
    [[{"type": "Other", "value": "const:x"}], *conditions(by="const:so")],
]
UNMET: dict[str, Any] = {
    "another value": conditions(value="const:student@university.example.org"),
    "a part of the value": conditions(value="pattern:faculty@"),
    "another case": conditions(value="const:Faculty@university.example.org"),
    "one claim of two": conditions(value="pattern:faculty@*", by="const:dac"),
    "unknown way to match": conditions(value="regex:.*"),
    "no way to match": conditions(value="faculty@university.example.org"),
    "brackets are plain": conditions(value="pattern:[f]aculty@*"),
    "no claim but the type": conditions(),
    "a claim of time": conditions(asserted=f"const:{NOW_S}"),
    "a condition on conditions": conditions(conditions="const:"),
    "an unknown claim": conditions(value="pattern:*", colour="const:red"),
    "no text": conditions(value=1),
    "no type": [[{"value": "pattern:*"}]],
    "one clause of two": [[*conditions(value="pattern:*")[0], {"type": "Other", "value": "pattern:*"}]],
    "no clause": [[]],
}


@pytest.mark.parametrize("met", MET)
def test_a_condition_that_another_visa_meets_is_met(met: object, issuer: PlayedIssuer) -> None:
    assert len(weigh(issuer, issuer.visa(conditions=met), issuer.visa(**FACULTY)).visas) == 2


@pytest.mark.parametrize("unmet", UNMET)
def test_a_condition_that_is_unmet_or_unknown(unmet: str, issuer: PlayedIssuer) -> None:
    evidence = weigh(issuer, issuer.visa(conditions=UNMET[unmet]), issuer.visa(**FACULTY))
    assert [visa.type for visa in evidence.visas] == ["AffiliationAndRole"]
    assert "conditions" in evidence.refusals[0]


def test_a_condition_met_by_nobody_else(issuer: PlayedIssuer) -> None:
    itself = [[{"type": "ResearcherStatus", "value": f"const:{BONA_FIDE}"}]]
    assert weigh(issuer, issuer.visa(conditions=itself)).visas == ()


def test_conditions_that_meet_each_other(issuer: PlayedIssuer) -> None:
    needs_faculty = issuer.visa(conditions=conditions(value="pattern:*"))
    needs_status = issuer.visa(**FACULTY, conditions=[[{"type": "ResearcherStatus", "value": "pattern:*"}]])
    assert weigh(issuer, needs_faculty, needs_status).visas == ()


@pytest.mark.parametrize("claims", [{"sub": "10002"}, {"exp": NOW_S}])
def test_a_condition_met_by_a_visa_that_does_not_count(claims: dict[str, Any], issuer: PlayedIssuer) -> None:
    conditional = issuer.visa(conditions=conditions(value="pattern:*"))
    assert weigh(issuer, conditional, issuer.visa(**FACULTY, claims=claims)).visas == ()


@pytest.mark.parametrize("nonsense", ["const:x", [{"type": "A"}], [["A"]], {"type": "A"}, 1])
def test_conditions_of_no_known_form(nonsense: object, issuer: PlayedIssuer) -> None:
    assert refusal(issuer.visa(conditions=nonsense), issuer) == "visa.malformed"


def test_a_pattern_that_never_ends_to_be_compared(issuer: PlayedIssuer) -> None:
    endless = conditions(value="pattern:" + "*a" * 450 + "b")
    evidence = weigh(issuer, issuer.visa(conditions=endless), issuer.visa(**FACULTY | {"value": "a" * 900}))
    assert len(evidence.visas) == 1


def test_a_flood_of_visas_is_no_study(issuer: PlayedIssuer) -> None:
    with pytest.raises(OperatorError, match="visas"):
        parse_study(study_json(visas=[issuer.visa()] * 17))
    with pytest.raises(OperatorError, match="visas"):
        parse_study(study_json(visas=["a.b." + "c" * (1 << 14)]))


def oct_key() -> dict[str, str]:
    return {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}


@pytest.mark.parametrize(
    "keys",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": []}',
        b'{"keys": 1}',
        b'{"keys": ["a"]}',
        b'{"keys": [{"kty": "RSA"}]}',
        b"[" * 100_000,
        b" " * (MAX_JWKS_BYTES + 1),
        json.dumps({"keys": [oct_key()]}).encode(),
        json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=True)]}).encode(),
    ],
    ids=lambda data: str(data[:24]),
)
def test_a_key_file_with_secrets_or_nonsense(keys: bytes) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_jwks(keys)
    assert caught.value.code == "visa.bad_keys"


def test_a_key_file_with_a_weak_key() -> None:
    with pytest.warns(match="2048"):
        weak = RSAKey.generate_key(1024, private=False)
    with pytest.warns(match="2048"), pytest.raises(OperatorError) as caught:
        parse_jwks(json.dumps({"keys": [weak.as_dict(private=False)]}).encode())
    assert caught.value.code == "visa.bad_keys"


def test_identity_is_a_pair() -> None:
    assert VisaIdentity(issuer=IDENTITY.subject, subject=IDENTITY.issuer) != IDENTITY
