"""A study in plain words: what a hospital will be asked, and what hospitals usually refuse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from agent.secagg.accounting import PrivacySpent
from agent.trust.study import FieldKind, FieldSpec, Study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy

LONG_STUDY: Final = timedelta(days=366)
MANY_FIELDS: Final = 50
FEW_ROWS: Final = 20
WEAK_EPSILON: Final = 10.0
MANY_ROUNDS: Final = 500

PURPOSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "DUO:0000031": "method development",
        "DUO:0000032": "population research",
        "DUO:0000033": "ancestry research",
        "DUO:0000034": "age category research",
        "DUO:0000035": "gender category research",
        "DUO:0000036": "research control",
        "DUO:0000037": "biomedical research",
        "DUO:0000038": "genetic research",
        "DUO:0000039": "drug development research",
        "DUO:0000040": "disease category research",
    }
)
"""Research purposes of the Data Use Ontology (release 2021-02-23), by its own labels."""

_EVIDENCE: Final = {
    "none": "Any box that its hospital names takes part, also one whose key is a file that can be copied.",
    "test": "Only boxes whose key shows some evidence take part; a simulator's is enough, so this protects nothing.",
    "virtual": "Only boxes take part whose key lives in hardware, or in a virtual TPM that its operator can copy.",
    "hardware": "Only boxes take part whose key lives in hardware, by the word of its maker.",
}
_IDENTIFYING: Final = re.compile(
    r"(^|_)(name|surname|forename|address|street|postcode|postal|zip|phone|telephone|email|mail|ssn|nhs|mrn|bsn"
    r"|insurance|birth|birthdate|birthday|dob|iban|passport|ip|patient_?id|case_?id)(_|$)",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """A study's words as they may go to a terminal: no control character that could hide the others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def explain(data: bytes, study: Study) -> dict[str, Sequence[str]]:
    """What a hospital will be asked: sentences by heading.

    Args:
        data: `study.json`.
        study: The same, parsed.

    Raises:
        OperatorError: Its terms contradict each other, or cost more privacy than it promises.
    """
    terms = aggregation_terms(study, study_digest(data))
    return {
        "The study": _identity(study),
        "What the data are for": declared_use(study) or ["Nothing is declared."],
        "What each hospital is asked": _asked(study),
        "What leaves a hospital": _leaves(study, terms.minimum_sites, terms.colluders),
        "When a hospital is silent": _silence(study, terms.minimum_sites),
        "Noise": [_noise(study, check_privacy(terms))],
        "Who may take part": [_evidence(study)],
    }


def cautions(study: Study, *, now: datetime) -> list[str]:
    """What hospitals usually refuse, or ask about, in this study; a sentence each."""
    return [sentence for holds, sentence in _doubts(study, now) if holds]


def _doubts(study: Study, now: datetime) -> Iterable[tuple[bool, str]]:
    continues, names = study.secagg.dropout == "continue", [spec.name for spec in study.data.features]
    noise = study.privacy or study.plan.record_privacy
    identifying = [name for name in names if _IDENTIFYING.search(name)]
    yield study.expires <= now, "It has expired: every box refuses it."
    yield study.expires > now + LONG_STUDY, "It runs for more than a year; many hospitals approve for a year at most."
    yield not study.legal_basis, "It names no legal basis or data permit; most data protection officers ask for one."
    yield (
        not study.use.purpose_terms,
        "It declares no purpose in terms of the Data Use Ontology (use.purpose_terms): data that are restricted to a "
        "purpose do not fit.",
    )
    yield not study.use.ethics_approval, "It names no ethics approval; data that need one (DUO:0000021) do not fit."
    yield (
        continues and study.privacy is None,
        "It goes on without silent hospitals, and no noise covers what two such sums show of one hospital.",
    )
    yield (
        noise is None,
        "It adds no noise, so its cost to a privacy budget is unbounded: a hospital must allow that by policy.",
    )
    yield (
        noise is not None and noise.epsilon > WEAK_EPSILON,
        f"Its epsilon is above {WEAK_EPSILON:g}, which protects little.",
    )
    yield study.minimum_evidence in {"none", "test"}, "It takes boxes whose keys may lie in files (minimum_evidence)."
    yield bool(identifying), f"Its fields look as if they name patients: {', '.join(identifying)}."
    yield len(names) > MANY_FIELDS, f"It asks for {len(names)} fields; hospitals ask why each is needed."
    yield study.data.minimum_rows < FEW_ROWS, f"It accepts data sets of fewer than {FEW_ROWS} records."
    yield study.rounds > MANY_ROUNDS, f"It takes {study.rounds} rounds; each is one more look at the same records."


def _identity(study: Study) -> list[str]:
    lines = [
        f"{study.title} ({study.id}), asked by {study.requester}, until {study.expires:%Y-%m-%d}.",
        study.purpose,
    ]
    if study.legal_basis:
        lines.append(f"Legal basis: {study.legal_basis}.")
    return lines


def declared_use(study: Study) -> list[str]:
    """What the requester declares in terms of the Data Use Ontology; a sentence each."""
    use = study.use
    purposes = [f"{PURPOSES.get(term, 'a purpose')} ({term})" for term in use.purpose_terms]
    said = [
        (bool(purposes), f"Purposes: {', '.join(purposes)}."),
        (bool(use.diseases), f"Diseases: {', '.join(use.diseases)}."),
        (use.clinical_care, "Its results serve the care of patients, too."),
        (use.not_for_profit, "Its requester declares to be a not-for-profit organisation."),
        (use.non_commercial, "Its results are used for no commercial purpose."),
        (bool(use.ethics_approval), f"Ethics approval: {use.ethics_approval}."),
        (use.publishes, "Its results are made available to other researchers."),
        (use.publishes_not_before is not None, f"Nothing is published before {use.publishes_not_before}."),
        (use.collaborates, "Its requester works together with those whose data they are."),
        (use.returns_results, "What is derived from the data goes back to the hospitals."),
        (bool(use.countries), f"Results are worked on in: {', '.join(use.countries)}."),
        (bool(use.institution), f"Institution: {use.institution}."),
        (bool(use.project), f"Project: {use.project}."),
        (bool(study.visas), f"{len(study.visas)} visas speak for the requester; each hospital checks their issuers."),
        (bool(study.duo), f"Its requester counts it under {', '.join(study.duo)}."),
    ]
    return [sentence for holds, sentence in said if holds]


def _asked(study: Study) -> list[str]:
    data = study.data
    passes = f"passes: {study.plan.epochs}" if study.plan.epochs else f"steps: {study.plan.steps}"
    return [
        f"Asked of {len(study.sites)} hospitals: {', '.join(study.sites)}.",
        f"Each needs at least {data.minimum_rows} records of the schema {data.schema_name}, with {data.label.field} "
        f"(counts as positive above {data.label.positive_above:g}) and these {len(data.features)} fields:",
        *(f"  {_field(spec)}" for spec in data.features),
        f"Each trains a model of {study.model.parameters:,} numbers on its own records in {study.rounds} rounds "
        f"({passes} in each); {data.holdout:.0%} of the records are held out to measure it.",
    ]


def _field(spec: FieldSpec) -> str:
    parts = [spec.name]
    if spec.kind is FieldKind.CATEGORY:
        parts.append(f"one of {', '.join(spec.categories)}")
    elif spec.kind is FieldKind.FLAG:
        parts.append("0 or 1")
    else:
        parts.append(f"{spec.minimum:g} to {spec.maximum:g}{f' {spec.unit}' if spec.unit else ''}")
    if spec.code:
        parts.append(spec.code)
    return ", ".join(parts)


def _leaves(study: Study, minimum: int, colluders: int) -> list[str]:
    lines = [
        f"In each round: the change of the model's {study.model.parameters:,} numbers, and counts (records trained and "
        "scored, sums of errors, histograms of scores), all masked. Never a record.",
        f"Only sums over at least {minimum} hospitals leave, also if {colluders} of them and the coordinator conspire.",
    ]
    if study.data.standardise == "federated":
        lines.append("Before the first round: sums of each number field and of its squares, masked alike.")
    if study.secagg.blocks:
        blocks = "; ".join(", ".join(block) for block in study.secagg.blocks)
        lines.append(f"Hospitals stand in blocks, and a sum holds whole blocks only: {blocks}.")
    return lines


def _silence(study: Study, minimum: int) -> list[str]:
    if study.secagg.dropout == "wait":
        lines = ["A round waits for every hospital (or every whole block)."]
        if len(study.sites) == minimum:
            lines.append("Mind: with this few hospitals, one silent hospital halts the study.")
        return lines
    if study.privacy is None:
        return [
            "Mind: rounds go on without a silent hospital, and no noise is added. Two sums that differ by one hospital "
            "can show that hospital's update and size; each steward is asked to accept that."
        ]
    return ["Rounds go on without a silent hospital; noise covers what two sums that differ by one hospital show."]


def _noise(study: Study, spent: PrivacySpent | None) -> str:
    asked = study.privacy or study.plan.record_privacy
    if spent is None or asked is None:
        return "No noise is added: what the sums themselves reveal is not bounded."
    what = "each hospital's whole data set" if study.privacy else "any one record, by noise in every step of training"
    return (
        f"Noise protects {what}: epsilon {spent.epsilon:.2f} at delta {spent.delta:g} for all rounds together; "
        f"the study promises at most {asked.epsilon:g}."
    )


def _evidence(study: Study) -> str:
    if study.minimum_evidence == "none":
        return _EVIDENCE["none"]
    return f"{_EVIDENCE[study.minimum_evidence]} Every other hospital's box refuses one that shows less."
