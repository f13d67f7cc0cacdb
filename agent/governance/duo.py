"""The GA4GH Data Use Ontology (release 2021-02-23): its terms, their order, and whether a study's declared use fits.

A data set carries one permission (what it may be used for) and any number of modifiers (under which conditions).
Source: EBISPOT/DUO, `duo.owl`; a use fits a permission where the use is the permission's own or a narrower one.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from agent.trust.study import CountryCode, DataUse, DUOTerm, MondoID, VisaIdentity

NO_RESTRICTION: Final = "DUO:0000004"
BIOMEDICAL_PERMISSION: Final = "DUO:0000006"
DISEASE_PERMISSION: Final = "DUO:0000007"
ANCESTRY_PERMISSION: Final = "DUO:0000011"
GENERAL_PERMISSION: Final = "DUO:0000042"
CLINICAL_CARE: Final = "DUO:0000043"

METHODS_PURPOSE: Final = "DUO:0000031"
POPULATION_PURPOSE: Final = "DUO:0000032"
ANCESTRY_PURPOSE: Final = "DUO:0000033"
BIOMEDICAL_PURPOSE: Final = "DUO:0000037"
GENETIC_PURPOSE: Final = "DUO:0000038"

_PERMISSION, _MODIFIER, _INVESTIGATION = "DUO:0000001", "DUO:0000017", "OBI:0000066"
"""The classes below which permissions, modifiers and research purposes stand."""

_Name = Annotated[str, Field(min_length=1, max_length=300)]


@dataclass(frozen=True, slots=True)
class Term:
    """One term of the ontology.

    Args:
        id: "DUO:0000042".
        shorthand: "GRU"; empty for research purposes, which have none.
        label: The ontology's own.
        parent: The next wider term.
    """

    id: str
    shorthand: str
    label: str
    parent: str


def _terms(*rows: tuple[str, str, str, str]) -> Mapping[str, Term]:
    return MappingProxyType({f"DUO:00000{row[0]}": Term(f"DUO:00000{row[0]}", *row[1:]) for row in rows})


PERMISSIONS: Final = _terms(
    ("04", "NRES", "no restriction", _PERMISSION),
    ("42", "GRU", "general research use", _PERMISSION),
    ("06", "HMB", "health or medical or biomedical research", GENERAL_PERMISSION),
    ("07", "DS", "disease specific research", BIOMEDICAL_PERMISSION),
    ("11", "POA", "population origins or ancestry research only", _PERMISSION),
)
MODIFIERS: Final = _terms(
    ("12", "RS", "research specific restrictions", _MODIFIER),
    ("15", "NMDS", "no general methods research", _MODIFIER),
    ("16", "GSO", "genetic studies only", _MODIFIER),
    ("18", "NPUNCU", "not for profit, non commercial use only", _MODIFIER),
    ("19", "PUB", "publication required", _MODIFIER),
    ("20", "COL", "collaboration required", _MODIFIER),
    ("21", "IRB", "ethics approval required", _MODIFIER),
    ("22", "GS", "geographical restriction", _MODIFIER),
    ("24", "MOR", "publication moratorium", _MODIFIER),
    ("25", "TS", "time limit on use", _MODIFIER),
    ("26", "US", "user specific restriction", _MODIFIER),
    ("27", "PS", "project specific restriction", _MODIFIER),
    ("28", "IS", "institution specific restriction", _MODIFIER),
    ("29", "RTN", "return to database or resource", _MODIFIER),
    ("43", "CC", "clinical care use", _MODIFIER),
    ("44", "NPOA", "population origins or ancestry research prohibited", _MODIFIER),
    ("45", "NPU", "not for profit organisation use only", "DUO:0000018"),
    ("46", "NCU", "non-commercial use only", "DUO:0000018"),
)
PURPOSES: Final = _terms(
    ("31", "", "method development", _INVESTIGATION),
    ("32", "", "population research", _INVESTIGATION),
    ("33", "", "ancestry research", _INVESTIGATION),
    ("34", "", "age category research", _INVESTIGATION),
    ("35", "", "gender category research", _INVESTIGATION),
    ("36", "", "research control", _INVESTIGATION),
    ("37", "", "biomedical research", _INVESTIGATION),
    ("38", "", "genetic research", BIOMEDICAL_PURPOSE),
    ("39", "", "drug development research", BIOMEDICAL_PURPOSE),
    ("40", "", "disease category research", BIOMEDICAL_PURPOSE),
)
TERMS: Final = MappingProxyType({**PERMISSIONS, **MODIFIERS, **PURPOSES})


class TimeLimit(BaseModel):
    """How long data may be used: `months` from `since` on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: date
    months: int = Field(ge=1, le=1200)

    @property
    def end(self) -> date:
        """The last day; in a shorter month its last one."""
        year, month = divmod(self.since.year * 12 + self.since.month - 1 + self.months, 12)
        return date(year, month + 1, min(self.since.day, calendar.monthrange(year, month + 1)[1]))


class Limits(BaseModel):
    """What a data set's terms restrict it to, where a term needs a value.

    Args:
        diseases: For DUO:0000007.
        research_types: For DUO:0000012; research purposes.
        countries: For DUO:0000022.
        publish_after: For DUO:0000024.
        time_limit: For DUO:0000025.
        users: For DUO:0000026.
        projects: For DUO:0000027.
        institutions: For DUO:0000028.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    diseases: tuple[MondoID, ...] = ()
    research_types: tuple[DUOTerm, ...] = ()
    countries: tuple[CountryCode, ...] = ()
    publish_after: date | None = None
    time_limit: TimeLimit | None = None
    users: tuple[VisaIdentity, ...] = ()
    projects: tuple[_Name, ...] = ()
    institutions: tuple[_Name, ...] = ()


@dataclass(frozen=True, slots=True)
class UseRequest:
    """What a study declares, as the rules look at it.

    Args:
        use: The study's own declaration.
        project: The study, as a project.
        expires: When it ends.
        proven: Who the requester is by visas that hold; None where no visa says so.
        ancestors: MONDO id -> wider diseases, as the site's policy lists them.
    """

    use: DataUse
    project: str
    expires: datetime
    proven: VisaIdentity | None
    ancestors: Mapping[str, tuple[str, ...]]

    @property
    def purposes(self) -> tuple[str, ...]:
        """What it is for."""
        return self.use.purpose_terms


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a use fits one term, and why."""

    passed: bool
    sentence: str


def is_within(term: str, wider: str) -> bool:
    """Whether a term is another one or narrower, by the ontology's own order; a term that is not in it never is."""
    while term in TERMS:
        if term == wider:
            return True
        term = TERMS[term].parent
    return False


def disease_within(disease: str, allowed: Iterable[str], ancestors: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a disease is one of the allowed ones, or below one by the listed ancestors."""
    wanted, seen, left = set(allowed), set[str](), [disease]
    while left:
        current = left.pop()
        if current in wanted:
            return True
        if current not in seen:
            seen.add(current)
            left += ancestors.get(current, ())
    return False


def check_permission(term: str, request: UseRequest, limits: Limits) -> Answer:
    """Whether the study's purposes lie within a data set's permission.

    Args:
        term: One of `PERMISSIONS`.
        request: The study's declared use.
        limits: What the data set's terms restrict it to.
    """
    return _PERMISSION_RULES[term](request, limits)


def check_modifier(term: str, request: UseRequest, limits: Limits) -> Answer:
    """Whether the study meets the condition that a modifier sets.

    Args:
        term: One of `MODIFIERS`.
        request: The study's declared use.
        limits: What the data set's terms restrict it to.
    """
    return _MODIFIER_RULES[term].check(request, limits)


def rule_name(modifier: str) -> str:
    """The name of a modifier's rule, `duo_...`."""
    return _MODIFIER_RULES[modifier].name


def _no_restriction(_request: UseRequest, _limits: Limits) -> Answer:
    return Answer(True, "The data may be used without restriction (DUO:0000004).")


def _general(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        bool(request.purposes) and all(term in PURPOSES for term in request.purposes),
        "The data may be used for research of any kind (DUO:0000042)",
        met="the study declares its research purpose",
        missed="the study declares no research purpose that this box knows",
    )


def _biomedical(request: UseRequest, _limits: Limits) -> Answer:
    if any(is_within(term, ANCESTRY_PURPOSE) for term in request.purposes):
        return Answer(
            False, "The data may be used for health research, which excludes research on ancestry (DUO:0000006)."
        )
    if not any(is_within(term, BIOMEDICAL_PURPOSE) for term in request.purposes):
        return Answer(
            False, "The data may be used for health research only (DUO:0000006), and the study declares none."
        )
    return Answer(True, "The data may be used for health research (DUO:0000006), and the study declares that.")


def _disease(request: UseRequest, limits: Limits) -> Answer:
    wider = _biomedical(request, limits)
    if not wider.passed:
        return wider
    allowed = ", ".join(limits.diseases) or "none that the site's policy lists"
    if not request.use.diseases:
        return Answer(False, f"The data may be used for certain diseases only ({allowed}), and the study names none.")
    outside = [name for name in request.use.diseases if not disease_within(name, limits.diseases, request.ancestors)]
    if outside:
        return Answer(
            False, f"The data may be used for {allowed} (DUO:0000007); the study is about {', '.join(outside)}."
        )
    return Answer(True, f"The study's diseases lie within those that the data may be used for ({allowed}).")


def _ancestry(request: UseRequest, _limits: Limits) -> Answer:
    fits = ANCESTRY_PURPOSE in request.purposes and set(request.purposes) <= {ANCESTRY_PURPOSE, POPULATION_PURPOSE}
    return Answer(
        fits,
        "The data may be used for research on population origins or ancestry only (DUO:0000011), and the study "
        + ("declares that." if fits else "declares another purpose, or none."),
    )


_PERMISSION_RULES: Mapping[str, Callable[[UseRequest, Limits], Answer]] = MappingProxyType(
    {
        NO_RESTRICTION: _no_restriction,
        GENERAL_PERMISSION: _general,
        BIOMEDICAL_PERMISSION: _biomedical,
        DISEASE_PERMISSION: _disease,
        ANCESTRY_PERMISSION: _ancestry,
    }
)


def _condition(passed: bool, condition: str, *, met: str, missed: str) -> Answer:
    return Answer(passed, f"{condition}; {met if passed else missed}.")


def _research_type(request: UseRequest, limits: Limits) -> Answer:
    fits = bool(request.purposes) and all(
        any(is_within(term, allowed) for allowed in limits.research_types) for term in request.purposes
    )
    types = ", ".join(_label(term) for term in limits.research_types) or "none that the site's policy lists"
    return _condition(
        fits,
        f"The data may be used for research of these types only: {types} (DUO:0000012)",
        met="the study's purposes are among them",
        missed="the study's purposes are not all among them",
    )


def _no_methods(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        bool(request.purposes) and METHODS_PURPOSE not in request.purposes,
        "The data may not be used to develop methods (DUO:0000015)",
        met="the study declares other purposes",
        missed="the study declares that, or no purpose at all",
    )


def _genetic_only(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        any(is_within(term, GENETIC_PURPOSE) for term in request.purposes),
        "The data may be used for genetic studies only (DUO:0000016)",
        met="the study declares to be one",
        missed="the study does not declare to be one",
    )


def _not_for_profit(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.not_for_profit,
        "The data are for not-for-profit organisations only (DUO:0000045)",
        met="the requester declares to be one",
        missed="the requester does not declare to be one",
    )


def _non_commercial(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.non_commercial,
        "The data may be used for no commercial purpose (DUO:0000046)",
        met="the requester declares none",
        missed="the requester does not rule that out",
    )


def _not_for_profit_non_commercial(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.not_for_profit and request.use.non_commercial,
        "The data are for not-for-profit organisations, and for no commercial purpose (DUO:0000018)",
        met="the requester declares both",
        missed="the requester does not declare both",
    )


def _publication(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.publishes,
        "The results must be made available to other researchers (DUO:0000019)",
        met="the requester undertakes to",
        missed="the requester does not undertake to",
    )


def _collaboration(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.collaborates,
        "The requester must work together with the investigators whose data they are (DUO:0000020)",
        met="the requester undertakes to",
        missed="the requester does not undertake to",
    )


def _ethics_approval(request: UseRequest, _limits: Limits) -> Answer:
    reference = request.use.ethics_approval.strip()
    return _condition(
        bool(reference),
        "An ethics committee must have approved the study (DUO:0000021)",
        met=f"the study names the approval {reference}",
        missed="the study names no approval",
    )


def _region(request: UseRequest, limits: Limits) -> Answer:
    return _condition(
        bool(request.use.countries) and set(request.use.countries) <= set(limits.countries),
        f"The data may be used in these countries only: {', '.join(limits.countries) or 'none listed'} (DUO:0000022)",
        met="the study names no other",
        missed=f"the study names {', '.join(request.use.countries) or 'none'}",
    )


def _moratorium(request: UseRequest, limits: Limits) -> Answer:
    until, earliest = limits.publish_after, request.use.publishes_not_before
    return _condition(
        until is not None and earliest is not None and earliest >= until,
        f"Results may not be published before {until or 'a day that the site must name'} (DUO:0000024)",
        met="the requester undertakes to wait",
        missed="the requester does not undertake to wait so long",
    )


def _time_limit(request: UseRequest, limits: Limits) -> Answer:
    end = None if limits.time_limit is None else limits.time_limit.end
    return _condition(
        end is not None and request.expires.date() <= end,
        f"The data may be used until {end or 'a day that the site must name'} (DUO:0000025)",
        met="the study ends by then",
        missed=f"the study ends on {request.expires.date()}",
    )


def _user(request: UseRequest, limits: Limits) -> Answer:
    return _condition(
        request.proven is not None and request.proven in limits.users,
        "The data are for approved users only (DUO:0000026)",
        met="a visa shows that the requester is one",
        missed="no visa shows that the requester is one",
    )


def _project(request: UseRequest, limits: Limits) -> Answer:
    return _condition(
        request.project in limits.projects or request.use.project in limits.projects,
        "The data are for approved projects only (DUO:0000027)",
        met="the study is one, or belongs to one",
        missed="the study is none and belongs to none",
    )


def _institution(request: UseRequest, limits: Limits) -> Answer:
    name = request.use.institution
    return _condition(
        name in limits.institutions,
        "The data are for approved institutions only (DUO:0000028)",
        met="the requester's is one",
        missed=f"the requester's ({name or 'not named'}) is none",
    )


def _return_results(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        request.use.returns_results,
        "What is derived from the data must come back (DUO:0000029)",
        met="the requester undertakes to return it",
        missed="the requester does not undertake to return it",
    )


def _clinical_care(_request: UseRequest, _limits: Limits) -> Answer:
    return Answer(True, "The data may also serve clinical care (DUO:0000043).")


def _no_ancestry(request: UseRequest, _limits: Limits) -> Answer:
    return _condition(
        bool(request.purposes) and not {ANCESTRY_PURPOSE, POPULATION_PURPOSE} & set(request.purposes),
        "The data may not be used for research on populations, origins or ancestry (DUO:0000044)",
        met="the study declares other purposes",
        missed="the study declares that, or no purpose at all",
    )


@dataclass(frozen=True, slots=True)
class _ModifierRule:
    name: str
    check: Callable[[UseRequest, Limits], Answer]


_MODIFIER_RULES: Mapping[str, _ModifierRule] = MappingProxyType(
    {
        "DUO:0000012": _ModifierRule("duo_research_type", _research_type),
        "DUO:0000015": _ModifierRule("duo_no_methods", _no_methods),
        "DUO:0000016": _ModifierRule("duo_genetic_only", _genetic_only),
        "DUO:0000018": _ModifierRule("duo_not_for_profit_non_commercial", _not_for_profit_non_commercial),
        "DUO:0000019": _ModifierRule("duo_publication", _publication),
        "DUO:0000020": _ModifierRule("duo_collaboration", _collaboration),
        "DUO:0000021": _ModifierRule("duo_ethics_approval", _ethics_approval),
        "DUO:0000022": _ModifierRule("duo_region", _region),
        "DUO:0000024": _ModifierRule("duo_moratorium", _moratorium),
        "DUO:0000025": _ModifierRule("duo_time_limit", _time_limit),
        "DUO:0000026": _ModifierRule("duo_user", _user),
        "DUO:0000027": _ModifierRule("duo_project", _project),
        "DUO:0000028": _ModifierRule("duo_institution", _institution),
        "DUO:0000029": _ModifierRule("duo_return_results", _return_results),
        CLINICAL_CARE: _ModifierRule("duo_clinical_care", _clinical_care),
        "DUO:0000044": _ModifierRule("duo_no_ancestry", _no_ancestry),
        "DUO:0000045": _ModifierRule("duo_not_for_profit", _not_for_profit),
        "DUO:0000046": _ModifierRule("duo_non_commercial", _non_commercial),
    }
)


def _label(term: str) -> str:
    return TERMS[term].label if term in TERMS else term
