"""The data sets of the demonstration: who the hospitals are, what a study asks of them, how it trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.core.ids import SiteID
from agent.trust.study import (
    DataRequirement,
    DataUse,
    FieldKind,
    FieldSpec,
    LabelSpec,
    ModelSpec,
    PrivacyTerms,
    SecureAggregationTerms,
    Study,
    TrainingPlan,
)
from tests.demo.models import logistic_regression

DATA = Path(__file__).parent / "data"
STUDY_LIFETIME = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Hospital:
    """One hospital of a cohort.

    Args:
        site: Its identifier.
        name: As people call it.
        source: Its own file.
    """

    site: SiteID
    name: str
    source: Path


@dataclass(frozen=True, slots=True)
class Cohort:
    """One data set, spread over hospitals.

    Args:
        id: "heart", "stroke".
        title, purpose, outcome, citation: For people.
        hospitals: All there are; a run may take the first few.
        data: What the study asks of a hospital.
        plan: How a hospital trains.
        terms: Bounds of secure aggregation.
        catalog: What every hospital's catalog says about its file, as TOML lines below `[datasets.ID]`.
        diseases: What it is about, MONDO ids: the only ones that the hospitals' terms allow (DUO:0000007).
        model: Makes the untrained ONNX file for a number of inputs.
        model_description: What it is, in words.
    """

    id: str
    title: str
    purpose: str
    outcome: str
    citation: str
    hospitals: tuple[Hospital, ...]
    data: DataRequirement
    plan: TrainingPlan
    terms: SecureAggregationTerms
    catalog: str
    diseases: tuple[str, ...]
    model: Callable[[int], bytes] = logistic_regression
    model_description: str = "logistic regression"

    def study(
        self,
        hospitals: Sequence[Hospital],
        model: bytes,
        *,
        rounds: int,
        now: datetime,
        privacy: PrivacyTerms | None = None,
    ) -> Study:
        """The study over some of the hospitals.

        Args:
            hospitals: Who takes part.
            model: The untrained ONNX file.
            rounds: Rounds of training.
            now: When it is published.
            privacy: Noise on what is released; then no sums of number fields can be had, and each hospital
                standardises by its own.
        """
        data = self.data if privacy is None else self.data.model_copy(update={"standardise": "local"})
        return Study(
            id=f"{self.id}-demonstration",
            title=self.title,
            purpose=self.purpose,
            requester="Demonstration consortium",
            duo=("DUO:0000007",),
            use=DataUse(purpose_terms=("DUO:0000037",), diseases=self.diseases, not_for_profit=True),
            legal_basis="De-identified, openly licensed data.",
            sites=tuple(hospital.site for hospital in hospitals),
            rounds=rounds,
            expires=now.astimezone(UTC).replace(microsecond=0) + STUDY_LIFETIME,
            model=ModelSpec(
                digest=hashlib.sha256(model).hexdigest(), size_bytes=len(model), parameters=self.data.width + 1
            ),
            data=data,
            plan=self.plan,
            secagg=self.terms,
            privacy=privacy,
        )

    def catalog_text(self, hospital: Hospital, source: Path) -> str:
        """The catalog of one hospital whose file lies at `source`."""
        head = f"[datasets.{self.id}]\ntitle = {json.dumps(f'{self.title}, {hospital.name}')}\n"
        place = f"schema = {json.dumps(self.data.schema_name)}\nsource = {json.dumps(str(source))}\n"
        return head + place + self.catalog


def _number(name: str, minimum: float, maximum: float, unit: str | None = None, code: str | None = None) -> FieldSpec:
    return FieldSpec(name=name, kind=FieldKind.NUMBER, minimum=minimum, maximum=maximum, unit=unit, code=code)


def _category(name: str, *categories: str) -> FieldSpec:
    return FieldSpec(name=name, kind=FieldKind.CATEGORY, categories=categories)


def _flag(name: str) -> FieldSpec:
    return FieldSpec(name=name, kind=FieldKind.FLAG)


def _heart() -> Cohort:
    """Four centres under the published FLamby protocol (Ogier du Terrail et al., 2022): 13 inputs, 740 rows."""
    centres = {
        "cleveland": ("Cleveland", "processed.cleveland.data"),
        "budapest": ("Budapest", "processed.hungarian.data"),
        "zurich-basel": ("Zurich and Basel", "processed.switzerland.data"),
        "long-beach": ("Long Beach", "processed.va.data"),
    }
    columns = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
        "slope",
        "ca",
        "thal",
        "num",
    ]
    return Cohort(
        id="heart",
        title="Predicting coronary heart disease",
        purpose="Find patients with a narrowed coronary artery from what is known before angiography.",
        outcome="coronary heart disease as angiography found it",
        citation=(
            "Janosi, Steinbrunn, Pfisterer, Detrano (1988), Heart Disease, UCI Machine Learning Repository, "
            "doi 10.24432/C52P4X; CC BY 4.0."
        ),
        hospitals=tuple(Hospital(SiteID(site), name, DATA / "heart" / file) for site, (name, file) in centres.items()),
        data=DataRequirement(
            schema_name="uci-heart-disease",
            features=(
                _number("age", 0, 120, "a"),
                _flag("sex"),
                _category("cp", "1", "2", "3", "4"),
                _number("trestbps", 0, 300, "mm[Hg]", "loinc:8480-6"),
                _number("chol", 0, 1000, "mg/dl", "loinc:2093-3"),
                _flag("fbs"),
                _category("restecg", "0", "1", "2"),
                _number("thalach", 0, 300, "/min"),
                _flag("exang"),
                _number("oldpeak", -10, 10, "mm"),
            ),
            label=LabelSpec(field="num", positive_above=0),
            missing="drop-row",
            standardise="federated",
            minimum_rows=30,
        ),
        plan=TrainingPlan(learning_rate=0.02, batch_size=8, steps=50),
        terms=SecureAggregationTerms(clip=1.0, weight_cap=256),
        diseases=("MONDO:0005010",),  # coronary artery disorder
        catalog=_heart_catalog(columns),
    )


def _heart_catalog(columns: Sequence[str]) -> str:
    units = {"age": "a", "trestbps": "mm[Hg]", "chol": "mg/dl", "thalach": "/min", "oldpeak": "mm"}
    head = f'header = false\ncolumns = {json.dumps(columns)}\nmissing = ["?"]\n'
    fields = [f"\n[datasets.heart.fields.{name}]\nunit = {json.dumps(unit)}\n" for name, unit in units.items()]
    return head + "".join(fields)


def _stroke() -> Cohort:
    """Twenty hospitals of the International Stroke Trial, 20 fields known at randomisation."""
    files = sorted((DATA / "stroke").glob("h*.csv"))
    return Cohort(
        id="stroke",
        title="Predicting death within six months of a stroke",
        purpose="Tell at admission which stroke patients are in most danger, in hospitals too small to learn it alone.",
        outcome="death within six months",
        citation=(
            "Sandercock, Niewada, Czlonkowska et al. (2011), The International Stroke Trial database, Trials 12:101, "
            "data doi 10.7488/ds/104; Open Data Commons Attribution License (ODC-By)."
        ),
        hospitals=tuple(Hospital(SiteID(file.stem), f"Hospital {file.stem[1:]}", file) for file in files),
        data=DataRequirement(
            schema_name="international-stroke-trial",
            features=(
                _number("RDELAY", 0, 72, "h"),
                _category("RCONSC", "F", "D", "U"),
                _category("SEX", "F", "M"),
                _number("AGE", 0, 120, "a"),
                *(_category(name, "N", "Y") for name in ["RSLEEP", "RATRIAL", "RCT", "RVISINF", "RHEP24", "RASP3"]),
                _number("RSBP", 0, 350, "mm[Hg]", "loinc:8480-6"),
                *(_category(f"RDEF{number}", "N", "Y", "C") for number in range(1, 9)),
                _category("STYPE", "PACS", "TACS", "LACS", "POCS", "OTH"),
            ),
            label=LabelSpec(field="label"),
            missing="impute-mean",
            standardise="federated",
            minimum_rows=30,
            holdout_seed=42,
        ),
        plan=TrainingPlan(learning_rate=1.0, batch_size=128, steps=20, weight_decay=1e-3),
        terms=SecureAggregationTerms(clip=2.0, weight_cap=128),
        diseases=("MONDO:0005098",),  # stroke disorder
        catalog="".join(
            f"\n[datasets.stroke.fields.{name}]\nunit = {json.dumps(unit)}\n"
            for name, unit in {"RDELAY": "h", "AGE": "a", "RSBP": "mm[Hg]"}.items()
        ),
    )


COHORTS: Mapping[str, Callable[[], Cohort]] = {"heart": _heart, "stroke": _stroke}
"""The data sets that `--data` names."""
