"""The site's policy: which studies may use which data set here. What it does not allow is refused.

[policy]
requesters = ["Heart Research Institute"]          # or "all": whoever the consortium lets publish
refused_purposes = ["DUO:0000039"]
minimum_cohort = 4
two_people = true
approval_days = 90

[[policy.visa_issuers]]
issuer = "https://login.example.org/oidc"
jku = "https://login.example.org/oidc/jwk"
jwks = "login.example.org.json"                    # beside the policy, or an absolute path

[policy.disease_ancestors]                         # as MONDO lists them
"MONDO:0005068" = ["MONDO:0005267"]

[datasets.cleveland]
duo = ["DUO:0000007", "DUO:0000021"]
fields = ["age", "cholesterol"]                    # or "all"
minimum_rows = 100
budget = { hospital = { epsilon = 3.0, delta = 1e-5 } }

[datasets.cleveland.limits]
diseases = ["MONDO:0005267"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.errors import OperatorError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.governance.duo import PERMISSIONS, PURPOSES, Limits
from agent.governance.visa import MAX_JWKS_BYTES, VisaDemand, VisaIssuer, parse_jwks
from agent.trust.study import MAX_SITES, DUOTerm, FieldName, MondoID

MAX_POLICY_BYTES = 1 << 18

RequesterName = Annotated[str, Field(min_length=1, max_length=200)]
URLText = Annotated[str, Field(min_length=1, max_length=300)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BudgetLimit(_Section):
    """How much all studies together may learn."""

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=0.01)


class Budgets(_Section):
    """A data set's privacy budgets; the two are never added.

    Args:
        record: For what a study may learn about one patient.
        hospital: For what a study may learn about the hospital's data as a whole.
    """

    record: BudgetLimit | None = None
    hospital: BudgetLimit | None = None


class DatasetPolicy(_Section):
    """What one data set may be used for.

    Args:
        duo: Its DUO terms: one permission, any modifiers. Without a permission nothing is allowed.
        limits: What those terms restrict it to.
        fields: Which of its fields studies may ask for.
        minimum_rows: Fewest rows on which a study may train here.
        minimum_cohort: Fewest hospitals in whose sum it may stand; the site's own where None.
        required_visas: Which visas a requester must show, beside those of the whole site.
        unbounded_releases: How many sums may leave for studies without differential privacy, all together.
        budget: What studies with differential privacy may spend.
    """

    duo: tuple[DUOTerm, ...] = ()
    limits: Limits = Limits()
    fields: tuple[FieldName, ...] | Literal["all"] = ()
    minimum_rows: int = Field(default=30, ge=1)
    minimum_cohort: int | None = Field(default=None, ge=3, le=MAX_SITES)
    required_visas: tuple[VisaDemand, ...] = ()
    unbounded_releases: int = Field(default=0, ge=0, le=1_000_000)
    budget: Budgets = Budgets()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.duo)) != len(self.duo):
            raise ValueError("a DUO term is listed twice")
        if len(PERMISSIONS.keys() & set(self.duo)) > 1:
            raise ValueError("a data set has one DUO permission, and any number of modifiers")
        return self


class IssuerSection(_Section):
    """A visa issuer that the site trusts.

    Args:
        issuer: Its visas' `iss`.
        jku: What its visas' `jku` says; it is compared, never fetched.
        jwks: File with its public keys.
    """

    issuer: URLText
    jku: URLText
    jwks: Path


class SiteRules(_Section):
    """What holds for all data sets.

    Args:
        requesters: Whose studies may come, as they name themselves; `all`: whoever the consortium lets publish.
        refused_purposes: Research purposes (DUO) that the site serves with no data, with all that is narrower.
        minimum_cohort: Fewest hospitals in whose sum the site's data may stand.
        two_people: Whether two stewards must approve each study.
        approval_days: How long an approval holds at most.
        visa_issuers: Whose visas count.
        required_visas: Which visas every requester must show.
        disease_ancestors: MONDO id -> wider diseases.
    """

    requesters: tuple[RequesterName, ...] | Literal["all"] = ()
    refused_purposes: tuple[DUOTerm, ...] = ()
    minimum_cohort: int = Field(default=3, ge=3, le=MAX_SITES)
    two_people: bool = False
    approval_days: int = Field(default=90, ge=1, le=3660)
    visa_issuers: tuple[IssuerSection, ...] = ()
    required_visas: tuple[VisaDemand, ...] = ()
    disease_ancestors: Mapping[MondoID, tuple[MondoID, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A purpose that nobody can declare would be refused in vain.
        for term in self.refused_purposes:
            if term not in PURPOSES:
                raise ValueError(f"refused_purposes: {term} is no research purpose of DUO")
        if len({section.issuer for section in self.visa_issuers}) != len(self.visa_issuers):
            raise ValueError("visa_issuers: an issuer is listed twice")
        return self


class _PolicyFile(_Section):
    policy: SiteRules = SiteRules()
    datasets: Mapping[IdentifierText, DatasetPolicy] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Policy:
    """A site's policy. One without arguments allows nothing.

    Args:
        rules: What holds for all data sets.
        datasets: What each may be used for, by its name in the catalog.
        issuers: The visa issuers with their keys, by `iss`.
    """

    rules: SiteRules = field(default_factory=SiteRules)
    datasets: Mapping[str, DatasetPolicy] = field(default_factory=dict)
    issuers: Mapping[str, VisaIssuer] = field(default_factory=dict)

    def least_cohort(self, dataset: str) -> int:
        """Fewest hospitals in whose sum a data set may stand: the greater of its own and the site's number."""
        own = self.datasets[dataset].minimum_cohort if dataset in self.datasets else None
        return max(own or 0, self.rules.minimum_cohort)


def parse_policy(data: bytes, *, jwks: Mapping[Path, bytes]) -> Policy:
    """Parse a policy file.

    Args:
        data: TOML in UTF-8.
        jwks: What the issuers' key files hold, by the path that the policy gives.

    Raises:
        OperatorError: It is no TOML, breaks a rule, or a key file cannot be used; the sentence names the place.
    """
    file = _parse(data)
    issuers = {
        section.issuer: VisaIssuer(section.issuer, section.jku, parse_jwks(jwks[section.jwks]))
        for section in file.policy.visa_issuers
    }
    return Policy(file.policy, file.datasets, issuers)


def load_policy(path: Path) -> Policy:
    """Read a policy and its issuers' key files.

    Args:
        path: The file; key files lie beside it unless their paths are absolute.

    Raises:
        OperatorError: There is none, it cannot be read or is damaged. Then no study may use any data here.
    """
    data = _read(path, limit=MAX_POLICY_BYTES)
    files = {section.jwks for section in _parse(data).policy.visa_issuers}
    return parse_policy(data, jwks={file: _read(path.parent / file, limit=MAX_JWKS_BYTES) for file in files})


def _parse(data: bytes) -> _PolicyFile:
    try:
        return _PolicyFile.model_validate(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(str(error)) from error
    except ValidationError as error:
        raise _invalid(explain_invalid(error, whole="policy")) from error


def _read(path: Path, *, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise OperatorError(
            "policy.unreadable",
            f"The site's policy needs {path}, which cannot be read: {error.strerror}.",
            next_step="Write it (docs/steward.md shows how); until then no study may use any data here.",
        ) from error
    if len(data) > limit:
        raise _invalid(f"{path.name} is larger than {limit} bytes")
    return data


def _invalid(what: str) -> OperatorError:
    return OperatorError(
        "policy.invalid",
        f"The site's policy cannot be used: {what}.",
        next_step="Correct the file; until then no study may use any data here.",
    )
