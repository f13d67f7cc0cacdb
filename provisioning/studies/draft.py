"""Writes a study's first draft: valid as it stands, with what the model file itself says filled in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from agent.core.errors import OperatorError
from agent.trust.model import ModelFile, parse_model
from agent.trust.study import DataRequirement, Study, parse_study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy
from provisioning.studies.fields import Column

DEFAULT_ROUNDS: Final = 20
DEFAULT_DAYS: Final = 180
DEFAULT_PLAN: Final[Mapping[str, object]] = {"learning_rate": 0.05, "batch_size": 32, "epochs": 5}
"""One pass a round leaves linear models of the demonstration far from trained after the default rounds; five do not."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a researcher decides; everything else has a default that suits most studies.

    Args:
        id, title, purpose, requester, legal_basis: For people.
        purpose_terms: Research purposes, DUO:0000031 to DUO:0000040.
        sites: The hospitals.
        rounds: How many.
        expires: Until when; with a time zone.
        schema_name: What a hospital's data set must describe.
        label: The field of the outcome.
        positive_above: From where on it counts as positive.
        columns: The other fields, in the order of the model's inputs.
        minimum_evidence: How well keys must be known to live in hardware.
    """

    id: str
    title: str
    purpose: str
    requester: str
    sites: Sequence[str]
    expires: datetime
    schema_name: str
    label: str
    columns: Sequence[Column] = field(repr=False)
    positive_above: float = 0.5
    rounds: int = DEFAULT_ROUNDS
    legal_basis: str = ""
    purpose_terms: Sequence[str] = ()
    minimum_evidence: str = "hardware"


def write_study(draft: Draft, model: bytes) -> bytes:
    """Write study.json.

    Args:
        draft: What was decided.
        model: The ONNX file to train.

    Raises:
        OperatorError: The model cannot be trained, does not fit the fields, or something that was decided breaks a
            rule; the sentence names it.
    """
    parsed = parse_model(model)
    content = {
        "format": "secur-e-health/study/1",
        "id": draft.id,
        "title": draft.title,
        "purpose": draft.purpose,
        "requester": draft.requester,
        "legal_basis": draft.legal_basis,
        "use": {"purpose_terms": list(draft.purpose_terms)},
        "sites": list(draft.sites),
        "rounds": draft.rounds,
        "expires": draft.expires.isoformat(timespec="seconds"),
        "minimum_evidence": draft.minimum_evidence,
        "model": {
            "digest": hashlib.sha256(model).hexdigest(),
            "size_bytes": len(model),
            "parameters": len(parsed.parameters),
        },
        "data": {
            "schema_name": draft.schema_name,
            "features": [column.as_json() for column in draft.columns],
            "label": {"field": draft.label, "positive_above": draft.positive_above},
            # So that the result says how to standardise rows that no hospital of the study has seen.
            "standardise": "federated",
        },
        "plan": dict(DEFAULT_PLAN),
    }
    data = json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
    study = parse_study(data)
    check_privacy(aggregation_terms(study, study_digest(data)))
    check_width(study, parsed)
    return data


def check_width(study: Study, model: ModelFile) -> None:
    """Check that the model's rows are as wide as the study's coded fields.

    Raises:
        OperatorError: They are not.
    """
    width, shape = study.data.width, model.row_shape
    known = math.prod(size for size in shape if size is not None)
    fits = width == known if None not in shape else width % max(known, 1) == 0
    if not fits:
        raise OperatorError(
            "study.wrong_width",
            f"The model takes rows of {known} numbers, and the study's fields give {width}: {_coded(study.data)}.",
            next_step="Name the model's fields in its own order, or export a model for these fields.",
        )


def _coded(data: DataRequirement) -> str:
    return ", ".join(f"{spec.name} {max(1, len(spec.categories) - 1)}" for spec in data.features)
