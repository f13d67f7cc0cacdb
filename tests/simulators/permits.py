"""A study and a site that fit each other in every respect; tests spoil one thing at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey

from agent.governance.permit import Consent, Finding, PermitRequest
from agent.governance.policy import Policy, parse_policy
from agent.governance.visa import VisaIssuer, parse_jwks
from agent.trust.study import Study, VisaIdentity, parse_study
from tests.simulators.hospital import study_json

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
ISSUER = "https://login.example.org/oidc"
JKU = "https://login.example.org/oidc/jwk"
SUBJECT = "10001"
IDENTITY = VisaIdentity(issuer=ISSUER, subject=SUBJECT)
BONA_FIDE = "https://doi.org/10.1038/s41431-018-0219-y"
SOURCE = "https://university.example.org"
DATASET = "cleveland"
DATASET_DIGEST = "d5" * 32
STUDY_DIGEST = "57" * 32

POLICY = f"""
[policy]
requesters = ["The tests"]

[[policy.visa_issuers]]
issuer = "{ISSUER}"
jku = "{JKU}"
jwks = "keys.json"

[policy.disease_ancestors]
"MONDO:0005068" = ["MONDO:0005010"]
"MONDO:0005010" = ["MONDO:0005267"]

[datasets.cleveland]
duo = ["DUO:0000042"]
fields = ["age", "ill"]
minimum_rows = 30
"""
TWO_PEOPLE = POLICY.replace("[policy]", "[policy]\ntwo_people = true")
VISA_DEMAND = f"""
[[datasets.cleveland.required_visas]]
type = "ResearcherStatus"
values = ["{BONA_FIDE}"]
sources = ["{SOURCE}"]
"""


@dataclass(frozen=True, slots=True)
class PlayedIssuer:
    """A visa issuer with its key."""

    issuer: str
    jku: str
    key: ECKey

    @property
    def jwks(self) -> bytes:
        """Its public keys as a file."""
        return json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()

    @property
    def trusted(self) -> VisaIssuer:
        """As a site that trusts it keeps it."""
        return VisaIssuer(self.issuer, self.jku, parse_jwks(self.jwks))

    def header(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any part of a header
        """A visa's header; a change to None leaves the part out."""
        parts = {"typ": "vnd.ga4gh.visa+jwt", "alg": "ES256", "kid": self.key.kid, "jku": self.jku}
        return {name: value for name, value in (parts | changes).items() if value is not None}

    def visa(
        self,
        *,
        header: dict[str, Any] | None = None,
        claims: dict[str, Any] | None = None,
        **changes: Any,  # noqa: ANN401 - any part of a visa object
    ) -> str:
        """A signed visa: `changes` to its visa object, `claims` to its other claims."""
        return jws.serialize_compact(
            self.header() if header is None else header,
            json.dumps(visa_claims(self.issuer, claims or {}, **changes)),
            self.key,
            algorithms=["ES256"],
        )


def visa_claims(issuer: str, claims: dict[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - the same
    """The payload of a visa that holds now; a change to None leaves the part out."""
    visa = {"type": "ResearcherStatus", "asserted": NOW_S - 86400, "value": BONA_FIDE, "source": SOURCE, "by": "so"}
    visa = {name: value for name, value in (visa | changes).items() if value is not None}
    payload = {"iss": issuer, "sub": SUBJECT, "iat": NOW_S - 60, "exp": NOW_S + 3600, "ga4gh_visa_v1": visa}
    return {name: value for name, value in (payload | claims).items() if value is not None}


def played_issuer(issuer: str = ISSUER, jku: str = JKU) -> PlayedIssuer:
    """An issuer with a fresh key."""
    key = ECKey.generate_key("P-256")
    key.ensure_kid()
    return PlayedIssuer(issuer, jku, key)


def played_policy(issuer: PlayedIssuer, text: str = POLICY) -> Policy:
    """The site's policy, which trusts one issuer."""
    return parse_policy(text.encode(), jwks={Path("keys.json"): issuer.jwks})


def played_study(**changes: Any) -> Study:  # noqa: ANN401 - any part of a study
    """A study of heart disease; `changes` replace its top-level fields, those to `use` only what they name."""
    use = {"purpose_terms": ["DUO:0000040"], "diseases": ["MONDO:0005068"]} | changes.pop("use", {})
    facts = {"expires": "2027-01-31T00:00:00Z"} | changes
    return parse_study(study_json(("hospital-a", "hospital-b", "hospital-c"), use=use, **facts))


def played_request(policy: Policy, **changes: Any) -> PermitRequest:  # noqa: ANN401 - any fact
    """A request that every rule lets pass."""
    study = changes.pop("study", None) or played_study()
    consent = Consent("steward-1", DATASET_DIGEST, 1.0, NOW_S + 3600)
    request = PermitRequest(
        study=study,
        study_digest=STUDY_DIGEST,
        policy=policy,
        site="hospital-a",
        now=NOW,
        dataset=DATASET,
        schema="played",
        dataset_digest=DATASET_DIGEST,
        model_digest=study.model.digest,
        epsilon=1.0,
        consents=(consent,),
        budget=Finding("budget", True, "Enough is left."),
    )
    return replace(request, **changes)
