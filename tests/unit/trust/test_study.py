from __future__ import annotations

import hashlib
import json

import pytest

from agent.core.errors import OperatorError
from agent.statements.roots import EvidenceClass
from agent.trust.study import parse_study, study_digest
from agent.trust.terms import least_evidence
from tests.simulators.hospital import study_json


def test_a_study_from_before_evidence_was_asked_for_is_the_same_study() -> None:
    data = study_json()
    assert b"minimum_evidence" not in data
    assert least_evidence(parse_study(data)) is EvidenceClass.NONE
    assert study_digest(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("grade", list(EvidenceClass))
def test_a_study_says_how_much_evidence_it_wants(grade: EvidenceClass) -> None:
    assert least_evidence(parse_study(study_json(minimum_evidence=grade.name.lower()))) is grade


@pytest.mark.parametrize("grade", ["HARDWARE", "best", 3, None, ["hardware"]])
def test_evidence_of_no_class_is_refused(grade: object) -> None:
    with pytest.raises(OperatorError, match="minimum_evidence"):
        parse_study(json.dumps(json.loads(study_json()) | {"minimum_evidence": grade}).encode())


@pytest.mark.parametrize("standardise", ["none", "local"])
def test_noise_withholds_what_federated_standardisation_needs(standardise: str) -> None:
    data = json.loads(study_json())["data"]
    noise = {"epsilon": 10, "delta": 1e-5, "l2_clip": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(OperatorError, match="standardise must be local or none"):
        parse_study(study_json(privacy=noise, data=data | {"standardise": "federated"}))
    assert parse_study(study_json(privacy=noise, data=data | {"standardise": standardise})).privacy is not None
