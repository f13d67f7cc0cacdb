"""A study as the consortium signs it: what is asked, of whom, with which model and plan. It carries no code."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from agent.core.errors import OperatorError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid

MAX_STUDY_BYTES = 1 << 20
MAX_MODEL_BYTES = (1 << 31) - 1
"""Protocol buffers end here."""
MAX_PARAMETERS = 1 << 28
MAX_SITES = 100
MAX_FIELDS = 4096
MAX_VISAS = 16

Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
EvidenceName = Literal["none", "test", "virtual", "hardware"]
FieldName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
DUOTerm = Annotated[str, Field(pattern=r"^DUO:[0-9]{7}$")]
MondoID = Annotated[str, Field(pattern=r"^MONDO:[0-9]{7}$")]
CountryCode = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
"""ISO 3166-1 alpha-2."""
ShortText = Annotated[str, Field(max_length=300)]
VisaToken = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*$", max_length=1 << 14)]
"""JWS compact serialisation (RFC 7515 7.1)."""


def _to_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("needs a time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("lies beyond all calendars") from None


UTCTime = Annotated[datetime, AfterValidator(_to_utc)]
"""In UTC, so that its date is the same for everybody, whatever time zone it was written in."""


class _Statement(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FieldKind(StrEnum):
    """How a field's text is read and becomes numbers."""

    NUMBER = "number"  # one column, standardised
    CATEGORY = "category"  # one column a category after the first (dummy coding)
    FLAG = "flag"  # one column, 0 or 1


class FieldSpec(_Statement):
    """One field that the study needs, with the meaning that every hospital's values must have.

    Which texts mean "missing" is the hospital's own affair and stands in its catalog. A value outside
    `minimum..maximum` is unreadable: the row is set aside and counted.
    """

    name: FieldName
    kind: FieldKind
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()
    code: str | None = None
    """Terminology code of the concept, e.g. `loinc:8480-6`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind is FieldKind.CATEGORY) != (len(self.categories) > 1):
            raise ValueError(f"field {self.name}: a category field lists at least two categories, another kind none")
        if self.kind is FieldKind.NUMBER and (self.minimum is None or self.maximum is None):
            raise ValueError(f"field {self.name}: a number field states its minimum and maximum")
        if self.minimum is not None and self.maximum is not None and not self.minimum < self.maximum:
            raise ValueError(f"field {self.name}: minimum must lie below maximum")
        return self


class LabelSpec(_Statement):
    """The outcome to predict: positive where the field's number exceeds `positive_above`."""

    field: FieldName
    positive_above: float = 0.5


class DataRequirement(_Statement):
    """Which local data set fits.

    `standardise`: `local` uses mean and standard deviation of the hospital's own training rows; `federated` uses
    those of the whole federation, from sums that no hospital shows singly (round 0).
    """

    schema_name: IdentifierText
    features: tuple[FieldSpec, ...] = Field(min_length=1, max_length=MAX_FIELDS)
    label: LabelSpec
    missing: Literal["drop-row", "impute-mean"] = "drop-row"
    standardise: Literal["none", "local", "federated"] = "local"
    minimum_rows: int = Field(default=30, ge=2)
    holdout: Fraction = 0.34
    holdout_seed: int = Field(default=43, ge=0, lt=1 << 32)

    @property
    def width(self) -> int:
        """Number of model inputs after dummy coding."""
        return sum(max(1, len(spec.categories) - 1) for spec in self.features)


class RecordPrivacy(_Statement):
    """Record-level differential privacy: DP-SGD in every hospital's own training (Abadi et al., 2016).

    Args:
        epsilon, delta: What the whole study promises for any one record.
        noise_multiplier: Standard deviation of the noise in a gradient step over `max_gradient_norm`.
        max_gradient_norm: Euclidean bound on what one record adds to a step.
    """

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=0.01)
    noise_multiplier: float = Field(gt=0, le=1e4)
    max_gradient_norm: float = Field(gt=0, le=1e6)


class TrainingPlan(_Statement):
    """How a box trains: data, not code.

    Exactly one of `epochs` and `steps` is set: passes over the local rows, or gradient steps, in each round.
    """

    loss: Literal["binary-cross-entropy", "cross-entropy", "mean-squared-error"] = "binary-cross-entropy"
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0, le=10)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    proximal: float = Field(default=0.0, ge=0, le=1e3)
    batch_size: int = Field(ge=1, le=1 << 16)
    epochs: int | None = Field(default=None, ge=1, le=1000)
    steps: int | None = Field(default=None, ge=1, le=1_000_000)
    seed: int = Field(default=42, ge=0, lt=1 << 32)
    metrics: tuple[Literal["auc", "accuracy", "brier", "calibration"], ...] = (
        "auc",
        "accuracy",
        "brier",
        "calibration",
    )
    histogram_bins: int = Field(default=100, ge=10, le=1000)
    record_privacy: RecordPrivacy | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("state either epochs or steps, not both")
        return self


class ModelSpec(_Statement):
    """The model file: an ONNX graph whose float initialisers, in order of appearance, form one flat vector."""

    digest: Sha256Hex
    size_bytes: int = Field(gt=0, le=1 << 31)
    parameters: int = Field(gt=0, le=MAX_PARAMETERS)


class Strategy(_Statement):
    """How the coordinator moves the model with the cohort's mean update: one of Flower's own strategies."""

    name: Literal["fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox"] = "fedavg"
    server_learning_rate: float = Field(default=1.0, gt=0, le=100)
    momentum: float = Field(default=0.0, ge=0, lt=1)


class SecureAggregationTerms(_Statement):
    """Bounds of the protocol, fixed for the study; a node refuses anything that would loosen them.

    Args:
        clip: Greatest magnitude of one coordinate of an update before quantisation.
        bits: Quantisation bits a coordinate, sign included.
        colluders: Most colluding sites assumed; None means max(1, floor((sites - 1) / 3)).
        minimum_sites: Smallest cohort (at least colluders + 2); None means colluders + 2.
        dropout: `wait` for the whole cohort (or whole blocks), or `continue` without the missing.
        accept_differencing: The steward accepted, in plain words, what `continue` without noise can reveal.
        blocks: A partition of the sites; survivors must be a union of whole blocks. Empty: one block, all sites.
        weight_cap: Rows counted at most for one hospital.
        max_step_l2: How far the model may move a round, Euclidean norm.
        max_step_linf: How far any one coordinate may move a round.
    """

    clip: float = Field(default=1.0, gt=0, le=1e6)
    bits: int = Field(default=14, ge=8, le=24)
    colluders: int | None = Field(default=None, ge=1)
    minimum_sites: int | None = Field(default=None, ge=3)
    dropout: Literal["wait", "continue"] = "wait"
    accept_differencing: bool = False
    blocks: tuple[tuple[IdentifierText, ...], ...] = ()
    weight_cap: int = Field(default=1000, ge=1, le=1 << 20)
    max_step_l2: float = Field(default=1e3, gt=0)
    max_step_linf: float = Field(default=10.0, gt=0)


class PrivacyTerms(_Statement):
    """Hospital-level differential privacy of the released sums, by noise shared out over the honest cohort.

    Args:
        epsilon, delta: The whole study's budget.
        l2_clip: Euclidean bound on one hospital's update.
        noise_multiplier: Standard deviation of the cohort's noise over the sensitivity.
    """

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, lt=0.01)
    l2_clip: float = Field(gt=0)
    noise_multiplier: float = Field(gt=0)


class VisaIdentity(_Statement):
    """A person, as a visa issuer knows them (GA4GH Passport 1.2, Visa Identity).

    Args:
        issuer: The visas' `iss`.
        subject: The visas' `sub`.
    """

    issuer: str = Field(min_length=1, max_length=300)
    subject: str = Field(min_length=1, max_length=255)


class DataUse(_Statement):
    """What the data are to be used for and what the requester undertakes, in terms of the Data Use Ontology (DUO).

    Every hospital compares it with what its own data allow. What is left out is not claimed, and counts against the
    study where a hospital's data need it.

    Args:
        purpose_terms: Research purposes, DUO:0000031 to DUO:0000040.
        diseases: The diseases that are studied.
        clinical_care: Whether results serve the care of patients, beside research.
        not_for_profit: The requester is a not-for-profit organisation.
        non_commercial: The results are used for no commercial purpose.
        ethics_approval: Reference of the ethics committee's approval.
        publishes: The results are made available to other researchers.
        publishes_not_before: The results stay unpublished until this day.
        collaborates: The requester works together with the investigators whose data they are.
        returns_results: What is derived from the data goes back to the hospitals.
        countries: All countries in which the data's results are worked on.
        institution: The requester's institution, as data sets name it (best its ROR identifier).
        project: The project that the study belongs to.
        identity: The person whom the study's visas speak of.
    """

    purpose_terms: tuple[DUOTerm, ...] = Field(default=(), max_length=16)
    diseases: tuple[MondoID, ...] = Field(default=(), max_length=64)
    clinical_care: bool = False
    not_for_profit: bool = False
    non_commercial: bool = False
    ethics_approval: ShortText = ""
    publishes: bool = False
    publishes_not_before: date | None = None
    collaborates: bool = False
    returns_results: bool = False
    countries: tuple[CountryCode, ...] = Field(default=(), max_length=64)
    institution: ShortText = ""
    project: ShortText = ""
    identity: VisaIdentity | None = None


class Study(_Statement):
    """`study.json`.

    `minimum_evidence`: How well a hospital must have seen that a box's key lives in hardware, for the others to let it
    take part; an absent one is `none`.

    `duo`: Under which DUO codes the requester counts the study, for people; a box judges by `use`.

    `visas`: GA4GH visas of `use.identity`, as evidence of the requester.
    """

    format: Literal["secur-e-health/study/1"] = "secur-e-health/study/1"
    id: IdentifierText
    title: str = Field(min_length=1, max_length=200)
    purpose: str = Field(min_length=1, max_length=4000)
    requester: str = Field(min_length=1, max_length=200)
    duo: tuple[str, ...] = ()
    legal_basis: str = ""
    sites: tuple[IdentifierText, ...] = Field(min_length=1, max_length=MAX_SITES)
    rounds: int = Field(ge=1, le=10_000)
    round_deadline_s: float = Field(default=600.0, gt=0, le=7 * 86400)
    expires: UTCTime
    model: ModelSpec
    data: DataRequirement
    plan: TrainingPlan
    strategy: Strategy = Strategy()
    secagg: SecureAggregationTerms = SecureAggregationTerms()
    privacy: PrivacyTerms | None = None
    minimum_evidence: EvidenceName = "none"
    use: DataUse = DataUse()
    visas: tuple[VisaToken, ...] = Field(default=(), max_length=MAX_VISAS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("a site is named twice")
        if self.privacy is not None and self.data.standardise == "federated":
            raise ValueError("noise withholds the sums of number fields, so standardise must be local or none")
        if self.plan.record_privacy is not None:
            self._check_records()
        return self

    def _check_records(self) -> None:
        """Refuse what would let one record reach the update past the noise."""
        if self.privacy is not None:
            raise ValueError("state either privacy or plan.record_privacy: a study protects one unit")
        if self.data.standardise != "none" or self.data.missing != "drop-row":
            raise ValueError(
                "with plan.record_privacy, data.standardise must be none and data.missing drop-row: what is computed "
                "from all rows would let each row past the noise"
            )


def parse_study(data: bytes) -> Study:
    """Parse `study.json`.

    Args:
        data: The file's bytes, at most 1 MiB.

    Raises:
        OperatorError: It is too large, no JSON, or breaks a rule; the sentence names the first field at fault.
    """
    if len(data) > MAX_STUDY_BYTES:
        raise _bad_study(f"it is larger than {MAX_STUDY_BYTES} bytes")
    try:
        return Study.model_validate_json(data, strict=False)
    except ValidationError as error:
        raise _bad_study(explain_invalid(error, whole="study"), faults=error.error_count()) from error


def study_digest(data: bytes) -> str:
    """SHA-256 of the file as signed, in hex; approvals, ledgers and secure aggregation bind this."""
    return hashlib.sha256(data).hexdigest()


def _bad_study(what: str, **details: object) -> OperatorError:
    return OperatorError(
        "study.invalid",
        f"The study file cannot be used: {what}.",
        next_step="Correct the file, or ask the study's requester for a corrected one; nothing was started.",
        **details,
    )
