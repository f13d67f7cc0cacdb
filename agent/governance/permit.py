"""The permit: whether a study may use a data set here, now. Every rule speaks, by name, and one no is enough.

Nothing here reads a file or a clock, and nothing depends on a value in the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from agent.core.errors import OperatorError
from agent.governance.duo import (
    CLINICAL_CARE,
    MODIFIERS,
    NO_RESTRICTION,
    PERMISSIONS,
    PURPOSES,
    TERMS,
    UseRequest,
    check_modifier,
    check_permission,
    is_within,
    rule_name,
)
from agent.governance.policy import DatasetPolicy, Policy
from agent.governance.visa import Evidence, meets_demand, weigh_visas
from agent.trust.study import Study
from agent.trust.terms import aggregation_terms


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule says.

    Args:
        rule: Its name.
        passed: Whether the study keeps it.
        sentence: Why, in plain words.
    """

    rule: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Consent:
    """An approval that stands, as far as the permit looks at it.

    Args:
        steward: Who gave it.
        dataset_digest: Of the data set as the steward saw it, hex.
        epsilon: What was approved; None: a study without a bound.
        not_after_s: Unix time at which it ends.
    """

    steward: str
    dataset_digest: str
    epsilon: float | None
    not_after_s: int


@dataclass(frozen=True, slots=True)
class PermitRequest:
    """All that a decision rests on.

    Args:
        study: As parsed.
        study_digest: SHA-256 of `study.json`, hex.
        policy: The site's.
        site: This hospital.
        now: Time, aware.
        dataset: The data set's name in the catalog.
        schema: Its schema in the catalog.
        dataset_digest: Of the data set as it is now, hex.
        model_digest: SHA-256 of the model file as it lies here, hex; empty where it is missing.
        epsilon: What the study would cost this data set; None: it has no bound.
        consents: The stewards' standing approvals of this very study (digest) on this data set.
        budget: What the privacy ledger says, under the rule `budget`.
        rows: How many usable rows the data set has, where that is known.
    """

    study: Study
    study_digest: str
    policy: Policy
    site: str
    now: datetime
    dataset: str
    schema: str
    dataset_digest: str
    model_digest: str
    epsilon: float | None
    consents: tuple[Consent, ...]
    budget: Finding
    rows: int | None = None

    @property
    def dataset_policy(self) -> DatasetPolicy:
        """What the site allows with the data set; nothing where its policy does not list it."""
        return self.policy.datasets.get(self.dataset, _NOTHING)

    @property
    def now_s(self) -> int:
        """Unix time."""
        return int(self.now.timestamp())


@dataclass(frozen=True, slots=True)
class Decision:
    """All findings, in the order of the table.

    Args:
        findings: Every rule's.
    """

    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The rules that the study does not keep."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def permitted(self) -> bool:
        """Whether the study may run; a decision without a finding permits nothing."""
        return bool(self.findings) and not self.refusals

    @property
    def awaits_steward(self) -> bool:
        """Whether nothing but the stewards' approval is missing."""
        return [finding.rule for finding in self.refusals] == ["approved"]


def evaluate(request: PermitRequest) -> Decision:
    """Hold a study against every rule.

    Args:
        request: All facts.
    """
    evidence = weigh_visas(
        request.study.visas, request.policy.issuers, identity=request.study.use.identity, now_s=request.now_s
    )
    return Decision(tuple(_plain(finding) for rule in _TABLE for finding in rule(request, evidence)))


def refuse_without_policy(error: OperatorError) -> Decision:
    """The decision on every study while the site's policy is missing or damaged.

    Args:
        error: What `load_policy` raised.
    """
    return Decision((Finding("policy", False, error.sentence),))


def check_permit(request: PermitRequest) -> Decision:
    """As `evaluate`, for callers that go on only with a permit.

    Raises:
        OperatorError: A rule is not kept; its code is `permit.<rule>` of the first, and it counts all.
    """
    decision = evaluate(request)
    if not decision.permitted:
        raise refusal_of(decision)
    return decision


def refusal_of(decision: Decision) -> OperatorError:
    """A refusing decision as the error to raise: `permit.<rule>` of its first finding.

    Args:
        decision: One that does not permit.
    """
    first = decision.refusals[0]
    error = next(item for item in _errors(first.sentence) if item.code == f"permit.{first.rule}")
    error.details["rules"] = [finding.rule for finding in decision.refusals]
    return error


def _plain(finding: Finding) -> Finding:
    """A finding as it may go to a terminal or a page, whatever a stranger wrote into the study."""
    sentence = "".join(letter if letter.isprintable() else "?" for letter in finding.sentence)
    return Finding(finding.rule, finding.passed, sentence)


_NOTHING: Final = DatasetPolicy()


def _site_named(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    named = request.site in request.study.sites
    yield Finding(
        "site_named",
        named,
        f"The study names this hospital ({request.site})."
        if named
        else f"The study does not name this hospital ({request.site}).",
    )


def _not_expired(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    runs = request.now < request.study.expires
    end = f"{request.study.expires:%Y-%m-%d %H:%M %Z}"
    yield Finding("not_expired", runs, f"The study runs until {end}." if runs else f"The study expired on {end}.")


def _requester(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    listed, name = request.policy.rules.requesters, request.study.requester
    known = listed == "all" or name in listed
    yield Finding(
        "requester",
        known,
        f"Studies of {name} may come."
        if known
        else f"{name} is not among the requesters that the site's policy lists.",
    )


def _purpose(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    purposes = request.study.use.purpose_terms
    refused = [
        term for term in purposes if any(is_within(term, other) for other in request.policy.rules.refused_purposes)
    ]
    if not purposes:
        yield Finding("purpose", False, "The study does not declare its research purpose in DUO terms.")
    elif refused:
        labels = ", ".join(f"{PURPOSES[term].label} ({term})" for term in refused)
        yield Finding("purpose", False, f"This site serves no study for {labels}.")
    else:
        yield Finding("purpose", True, "The site's policy refuses none of the study's purposes.")


def _duo(request: PermitRequest, evidence: Evidence) -> Iterator[Finding]:
    own = request.dataset_policy
    yield _terms_known(request)
    use = UseRequest(
        request.study.use,
        request.study.id,
        request.study.expires,
        request.study.use.identity if evidence.visas else None,
        request.policy.rules.disease_ancestors,
    )
    permission = next((term for term in own.duo if term in PERMISSIONS), None)
    if permission is None:
        yield Finding(
            "duo_permission", False, f"The site's policy gives the data set {request.dataset} no DUO permission."
        )
    else:
        answer = check_permission(permission, use, own.limits)
        yield Finding("duo_permission", answer.passed, answer.sentence)
    for term in own.duo:
        if term in MODIFIERS:
            answer = check_modifier(term, use, own.limits)
            yield Finding(rule_name(term), answer.passed, answer.sentence)
    if request.study.use.clinical_care and not {CLINICAL_CARE, NO_RESTRICTION} & set(own.duo):
        yield Finding(
            rule_name(CLINICAL_CARE),
            False,
            "The study also serves clinical care, which the data set's terms do not allow (DUO:0000043 is missing).",
        )


def _terms_known(request: PermitRequest) -> Finding:
    """A term that this box does not know may mean anything, so it allows nothing."""
    study, own = request.study, request.dataset_policy
    unknown = [term for term in own.duo if term not in PERMISSIONS and term not in MODIFIERS]
    unknown += [term for term in study.use.purpose_terms if term not in PURPOSES]
    unknown += [term for term in study.duo if term not in TERMS]
    if unknown:
        return Finding("duo_known", False, f"This box does not know {', '.join(unknown)} in its place.")
    return Finding("duo_known", True, "This box knows all DUO terms of study and data set.")


def _fields(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    data, allowed = request.study.data, request.dataset_policy.fields
    asked = {spec.name for spec in data.features} | {data.label.field}
    beyond = [] if allowed == "all" else sorted(asked - set(allowed))
    yield Finding(
        "fields",
        not beyond,
        f"The study asks for fields that the site's policy does not allow: {', '.join(beyond)}."
        if beyond
        else "The site's policy allows every field that the study asks for.",
    )


def _schema(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    wanted = request.study.data.schema_name
    yield Finding(
        "schema",
        request.schema == wanted,
        f"The study is about data of the schema {wanted}; the data set {request.dataset} is of {request.schema}.",
    )


def _minimum_rows(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    if request.dataset not in request.policy.datasets:
        yield Finding("minimum_rows", False, f"The site's policy does not list the data set {request.dataset}.")
        return
    least, promised = request.dataset_policy.minimum_rows, request.study.data.minimum_rows
    enough = promised >= least if request.rows is None else request.rows >= least
    yield Finding(
        "minimum_rows",
        enough,
        f"The site's policy wants at least {least} rows; the study trains on no fewer than {promised}"
        + (" by its own word." if request.rows is None else ", and the data set's rows were counted."),
    )


def _minimum_cohort(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    least = request.policy.least_cohort(request.dataset)
    try:
        smallest = aggregation_terms(request.study, request.study_digest).minimum_sites
    except OperatorError as error:
        yield Finding("minimum_cohort", False, error.sentence)
        return
    yield Finding(
        "minimum_cohort",
        smallest >= least,
        f"The study never sums fewer than {smallest} hospitals; the site's policy wants at least {least}.",
    )


def _visa(request: PermitRequest, evidence: Evidence) -> Iterator[Finding]:
    demands = (*request.policy.rules.required_visas, *request.dataset_policy.required_visas)
    missing = [demand for demand in demands if not any(meets_demand(visa, demand) for visa in evidence.visas)]
    if missing:
        kinds = ", ".join(demand.type for demand in missing)
        yield Finding(
            "visa", False, " ".join((f"The requester shows no visa that counts as {kinds}.", *evidence.refusals))
        )
    else:
        yield Finding(
            "visa",
            True,
            "The requester shows every visa that the site asks for." if demands else "The site asks for no visa.",
        )


def _privacy_bounded(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    if request.epsilon is not None:
        yield Finding("privacy_bounded", True, f"The study bounds what it learns: epsilon {request.epsilon:g}.")
        return
    allowed = request.dataset_policy.unbounded_releases
    yield Finding(
        "privacy_bounded",
        allowed > 0,
        "The study does not bound what it learns (no differential privacy); the site's policy allows "
        + (f"{allowed} such sums in all." if allowed else "no such study."),
    )


def _model_digest(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    same = request.model_digest == request.study.model.digest
    yield Finding(
        "model_digest",
        same,
        "The model file here is the very one that the study names."
        if same
        else "The model file here is missing, or is not the one that the study names.",
    )


def _dataset_unchanged(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    same = all(consent.dataset_digest == request.dataset_digest for consent in request.consents)
    yield Finding(
        "dataset_unchanged",
        same,
        "The data set is as it was when it was approved, or was not approved yet."
        if same
        else f"The data set {request.dataset} changed since a steward approved the study.",
    )


def _approved(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    stewards = {
        consent.steward
        for consent in request.consents
        if request.now_s < consent.not_after_s
        and consent.dataset_digest == request.dataset_digest
        and consent.epsilon == request.epsilon
    }
    needed = 2 if request.policy.rules.two_people else 1
    yield Finding(
        "approved",
        len(stewards) >= needed,
        f"{len(stewards)} of {needed} stewards approved this study, this data set and this privacy cost.",
    )


def _budget(request: PermitRequest, _evidence: Evidence) -> Iterator[Finding]:
    yield Finding("budget", request.budget.passed and request.budget.rule == "budget", request.budget.sentence)


_TABLE: Final[tuple[Callable[[PermitRequest, Evidence], Iterator[Finding]], ...]] = (
    _site_named,
    _not_expired,
    _requester,
    _purpose,
    _duo,
    _fields,
    _schema,
    _minimum_rows,
    _minimum_cohort,
    _visa,
    _privacy_bounded,
    _model_digest,
    _dataset_unchanged,
    _approved,
    _budget,
)
"""All rules; a study must keep every one."""

_ASK = "Ask the study's requester for a study that fits; nothing was done."
_SITE = "If the site wants to allow this, its policy must say so (docs/steward.md); nothing was done."
_HERE = "Look at the study again (`seh-agent study show`), and approve it anew if it is still right; nothing was done."


def _errors(why: str) -> tuple[OperatorError, ...]:
    """One error a rule."""
    return (
        OperatorError("permit.policy", why, next_step="Correct the site's policy (docs/steward.md); nothing was done."),
        OperatorError("permit.site_named", why, next_step=_ASK),
        OperatorError("permit.not_expired", why, next_step=_ASK),
        OperatorError("permit.requester", why, next_step=_SITE),
        OperatorError("permit.purpose", why, next_step=_ASK),
        OperatorError("permit.duo_known", why, next_step=_ASK),
        OperatorError("permit.duo_permission", why, next_step=_ASK),
        OperatorError("permit.duo_research_type", why, next_step=_ASK),
        OperatorError("permit.duo_no_methods", why, next_step=_ASK),
        OperatorError("permit.duo_genetic_only", why, next_step=_ASK),
        OperatorError("permit.duo_not_for_profit_non_commercial", why, next_step=_ASK),
        OperatorError("permit.duo_publication", why, next_step=_ASK),
        OperatorError("permit.duo_collaboration", why, next_step=_ASK),
        OperatorError("permit.duo_ethics_approval", why, next_step=_ASK),
        OperatorError("permit.duo_region", why, next_step=_ASK),
        OperatorError("permit.duo_moratorium", why, next_step=_ASK),
        OperatorError("permit.duo_time_limit", why, next_step=_ASK),
        OperatorError("permit.duo_user", why, next_step=_ASK),
        OperatorError("permit.duo_project", why, next_step=_ASK),
        OperatorError("permit.duo_institution", why, next_step=_ASK),
        OperatorError("permit.duo_return_results", why, next_step=_ASK),
        OperatorError("permit.duo_clinical_care", why, next_step=_ASK),
        OperatorError("permit.duo_no_ancestry", why, next_step=_ASK),
        OperatorError("permit.duo_not_for_profit", why, next_step=_ASK),
        OperatorError("permit.duo_non_commercial", why, next_step=_ASK),
        OperatorError("permit.fields", why, next_step=_SITE),
        OperatorError("permit.schema", why, next_step=_ASK),
        OperatorError("permit.minimum_rows", why, next_step=_ASK),
        OperatorError("permit.minimum_cohort", why, next_step=_ASK),
        OperatorError("permit.visa", why, next_step=_ASK),
        OperatorError("permit.privacy_bounded", why, next_step=_SITE),
        OperatorError("permit.model_digest", why, next_step="Fetch the study again, with its model; nothing was done."),
        OperatorError("permit.dataset_unchanged", why, next_step=_HERE),
        OperatorError("permit.approved", why, next_step=_HERE),
        OperatorError("permit.budget", why, next_step=_SITE),
    )
