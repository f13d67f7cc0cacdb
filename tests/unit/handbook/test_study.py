"""The published schema of study.json is made from the code, and judges studies as the code does."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.handbook.errors import ROOT
from tests.handbook.study import study_schema
from tests.simulators.played_study import study_files


def judge(**changes: Any) -> None:  # noqa: ANN401 - any part of a study
    jsonschema.validate(json.loads(study_files(**changes)[0]), json.loads(study_schema()))


def test_the_schema_is_up_to_date() -> None:
    assert (ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8") == study_schema(), "run `make docs`"


def test_it_takes_a_study_and_refuses_what_is_none() -> None:
    judge()
    for changes in ({"code": "import os"}, {"rounds": 0}, {"sites": ["Hospital A"]}, {"plan": {"learning_rate": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            judge(**changes)
