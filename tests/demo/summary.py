"""What a finished demonstration says about itself: the content of summary.json and of the report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.demo.scores import Scores, mean_scores

METHODS = ("alone", "federated", "pooled")


@dataclass(frozen=True, slots=True)
class Compared:
    """The three ways to get a model, scored on the same held-out rows."""

    alone: Scores
    federated: Scores
    pooled: Scores

    def as_json(self) -> dict[str, object]:
        """By method."""
        return {method: self.by(method).as_json() for method in METHODS}

    def by(self, method: str) -> Scores:
        """The scores of one of `METHODS`."""
        return {"alone": self.alone, "federated": self.federated, "pooled": self.pooled}[method]


@dataclass(frozen=True, slots=True)
class Centre:
    """One hospital.

    Args:
        site: Its identifier in the study.
        name: As people call it.
        key_kind: "tpm", "software", ...
        trained: Rows in its training part.
        held_out: Rows that no model has seen.
        positives: Held-out rows with the outcome.
        scores: Its held-out rows under the three models.
        alone_note: What a reader must know about its own model; empty if nothing.
        enrolled_s: From its token handed in to "Enrolled", in seconds; None where it did not come by a token.
    """

    site: str
    name: str
    key_kind: str
    trained: int
    held_out: int
    positives: int
    scores: Compared
    alone_note: str = ""
    enrolled_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round as the coordinator saw it: the cohort's sums, about the model that the round started from."""

    number: int
    seconds: float
    loss: float
    auc: float
    accuracy: float
    evaluated: int
    cohort: int
    legs: int
    bytes_up: int

    @property
    def withheld(self) -> bool:
        """Whether the hospitals reported no scores, as they do under noise."""
        return not self.evaluated


@dataclass(frozen=True, slots=True)
class PrivacyRecord:
    """The differential privacy that the run gave each hospital.

    Args:
        epsilon: Reached over all rounds, as the coordinator accounted it.
        delta: The study's.
        rounds: Noisy sums released.
        l2_clip: Euclidean bound on one hospital's update.
        noise_multiplier: Standard deviation of the cohort's noise over the sensitivity.
    """

    epsilon: float
    delta: float
    rounds: int
    l2_clip: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A hospital's audit log, as its exported file was verified.

    Args:
        entries: How many.
        receipts: Of updates that left.
        bytes_out: Of masked updates, all together.
        cosigned: How many entries the witness had cosigned.
        path: Where the file lies.
    """

    entries: int
    receipts: int
    bytes_out: int
    cosigned: int
    path: str


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The trained model.

    Args:
        path: Where it lies.
        digest: SHA-256 of the file, in hex.
        parameters: Length of its parameter vector.
        description: What it is, in words.
    """

    path: str
    digest: str
    parameters: int
    description: str


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run.

    Args:
        data: Identifier of the data set, e.g. "heart".
        title: The study's title.
        started: When, in ISO 8601.
        seconds: From the command to the written report.
        secure: Whether updates were aggregated under masks.
        rounds: Rounds of training.
        centres: The hospitals.
        together: All held-out rows as one set; "alone" scores each row by its own hospital's model.
        log: The rounds, in order.
        phases: Seconds by phase, in order.
        model: The trained model.
        privacy: The differential privacy that noise gave; None without noise.
    """

    data: str
    title: str
    started: str
    seconds: float
    secure: bool
    rounds: int
    centres: tuple[Centre, ...]
    together: Compared
    log: tuple[RoundRecord, ...]
    phases: Mapping[str, float]
    model: ModelRecord
    privacy: PrivacyRecord | None = None
    logs: Mapping[str, LogRecord] = field(default_factory=dict)

    @property
    def mean(self) -> Compared:
        """Mean over the centres, each counting the same."""
        return Compared(*(mean_scores(centre.scores.by(method) for centre in self.centres) for method in METHODS))

    @property
    def key_kinds(self) -> dict[str, int]:
        """How many hospitals hold a key of each kind."""
        return dict(Counter(centre.key_kind for centre in self.centres))

    def as_json(self) -> dict[str, object]:
        """The summary as `summary.json` keeps it; NaN becomes null."""
        return {
            "data": self.data,
            "title": self.title,
            "started": self.started,
            "hospitals": len(self.centres),
            "rounds": self.rounds,
            "seconds": round(self.seconds, 2),
            "secure": self.secure,
            "privacy": None if self.privacy is None else asdict(self.privacy),
            "key_kinds": {centre.site: centre.key_kind for centre in self.centres},
            "audit_logs": {site: asdict(record) | {"verified": True} for site, record in self.logs.items()},
            "model": self.model.path,
            "model_sha256": self.model.digest,
            "overall": self.together.as_json(),
            "mean_of_centres": self.mean.as_json(),
            "centres": [_centre_json(centre) for centre in self.centres],
            "log": [_without_nan(asdict(record)) for record in self.log],
            "phases": {name: round(value, 2) for name, value in self.phases.items()},
        }


def store_text(path: Path, text: str) -> None:
    """Write `text`, whole or not at all."""
    store_bytes(path, text.encode())


def store_bytes(path: Path, data: bytes) -> None:
    """Write `data`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def store_summary(path: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    store_text(path, json.dumps(summary.as_json(), indent=2, allow_nan=False) + "\n")


def _centre_json(centre: Centre) -> dict[str, object]:
    return {
        "site": centre.site,
        "name": centre.name,
        "key_kind": centre.key_kind,
        "trained": centre.trained,
        "held_out": centre.held_out,
        "positives": centre.positives,
        "note": centre.alone_note,
        "enrolled_s": None if centre.enrolled_s is None else round(centre.enrolled_s, 2),
        **centre.scores.as_json(),
    }


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
