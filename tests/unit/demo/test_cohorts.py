"""The data sets: copies of the published files, studies that parse, rows as the published protocol has them."""

import hashlib
import json
from datetime import UTC, datetime

import numpy as np
import pytest

from agent.trust.model import verify_model
from agent.trust.study import PrivacyTerms, Study, parse_study
from tests.demo.baselines import BaseRate, fit_baseline
from tests.demo.cohorts import COHORTS, DATA, Cohort
from tests.demo.scoring import onnx_predictor, read_rows

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def study_of(cohort: Cohort) -> tuple[Study, bytes]:
    model = cohort.model(cohort.data.width)
    return cohort.study(cohort.hospitals, model, rounds=20, now=NOW), model


@pytest.mark.parametrize("name", sorted(COHORTS))
def test_a_study_survives_its_file_and_fits_its_model(name: str) -> None:
    cohort = COHORTS[name]()
    study, model = study_of(cohort)
    assert parse_study(study.model_dump_json().encode()) == study
    parsed = verify_model(model, study.model)
    assert not parsed.parameters.any()
    assert onnx_predictor(model)(np.ones((3, cohort.data.width))) == pytest.approx([0.5, 0.5, 0.5])


def test_under_noise_nobody_sums_fields() -> None:
    cohort = COHORTS["heart"]()
    noise = PrivacyTerms(epsilon=100, delta=1e-5, l2_clip=1.0, noise_multiplier=1.0)
    study = cohort.study(cohort.hospitals, cohort.model(13), rounds=20, now=NOW, privacy=noise)
    assert (study.privacy, study.data.standardise) == (noise, "local")
    (train, *_) = [item.train_x for item in read_rows(cohort, cohort.hospitals, study).values()]
    assert train[:, 0].mean() == pytest.approx(0, abs=1e-3)


def test_heart_has_the_published_rows() -> None:
    cohort = COHORTS["heart"]()
    rows = read_rows(cohort, cohort.hospitals, study_of(cohort)[0])
    sizes = [(len(item.train_y), len(item.test_y)) for item in rows.values()]
    assert sizes == [(199, 104), (172, 89), (30, 16), (85, 45)]
    stacked = np.concatenate([item.train_x for item in rows.values()])
    assert stacked.shape == (486, 13)
    assert stacked[:, 0].mean() == pytest.approx(0, abs=1e-3)
    assert stacked[:, 0].std() == pytest.approx(1, abs=1e-3)


def test_stroke_has_twenty_hospitals_with_the_published_files() -> None:
    cohort = COHORTS["stroke"]()
    manifest = json.loads((DATA / "stroke" / "MANIFEST.json").read_text(encoding="utf-8"))
    digests = {item.site: hashlib.sha256(item.source.read_bytes()).hexdigest() for item in cohort.hospitals}
    assert {site: entry["sha256"] for site, entry in manifest.items()} == {
        site: digest[:16] for site, digest in digests.items()
    }
    rows = read_rows(cohort, cohort.hospitals, study_of(cohort)[0])
    assert sum(len(item.train_y) + len(item.test_y) for item in rows.values()) == 1850


@pytest.mark.parametrize("name", sorted(COHORTS))
def test_licence_and_citation_lie_beside_the_data(name: str) -> None:
    text = (DATA / name / "CITATION.md").read_text(encoding="utf-8")
    assert "Licence: " in text
    assert "Cite: " in text


def test_a_baseline_learns_and_one_outcome_leaves_the_base_rate() -> None:
    random = np.random.default_rng(3)
    inputs = random.normal(size=(120, 2))
    labels = (inputs[:, 0] + 0.3 * random.normal(size=120) > 0).astype(float)
    chance = fit_baseline(inputs, labels)(np.array([[2.0, 0.0], [-2.0, 0.0]]))
    assert chance[0] > 0.9
    assert chance[1] < 0.1
    alone = fit_baseline(inputs, np.ones(120))
    assert alone == BaseRate(121 / 122)
