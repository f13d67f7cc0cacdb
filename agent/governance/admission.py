"""What the federation asks before it answers a message, and what it tells the audit log; `gate` decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from agent.core.errors import SecureHealthError
from agent.data.catalog import Dataset
from agent.trust.study import Study

DATA_RULES: Final = frozenset({"permit.schema", "permit.minimum_rows", "permit.dataset_unchanged"})
"""Refusals whose cause lies in this hospital's data: the other side learns no more than `declined` (rule 5)."""

PASSING: Final = frozenset({"audit.not_compared", "audit.not_witnessed"})
"""What waiting for the witness puts right: the other side may ask again."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A study that wants to run on a data set, as both lie here.

    Args:
        study: As parsed.
        digest: SHA-256 of `study.json`, hex.
        model: The model file.
        dataset: The catalog's entry.
    """

    study: Study
    digest: str
    model: Path
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class Permit:
    """A decision that let a study pass.

    Args:
        study: The study's id.
        study_digest: SHA-256 of `study.json`, hex.
        dataset: The data set's name.
        dataset_digest: What it was then.
        leaf: Of the decision in the audit log.
        approvals: Numbers of the approvals that it rests on, in order.
        minimum_cohort: Fewest hospitals in whose sum the data may stand.
    """

    study: str
    study_digest: str
    dataset: str
    dataset_digest: str
    leaf: int
    approvals: tuple[int, ...]
    minimum_cohort: int

    def upholds(self, earlier: Permit | None) -> bool:
        """Whether all that an earlier decision rested on still holds; that more was approved since changes nothing."""
        return (
            earlier is not None
            and (self.study_digest, self.dataset, self.dataset_digest, self.minimum_cohort)
            == (earlier.study_digest, earlier.dataset, earlier.dataset_digest, earlier.minimum_cohort)
            and set(earlier.approvals) <= set(self.approvals)
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What left, about to be sent.

    Args:
        round_number: 0 for sums of fields, 1..rounds for training, rounds + 1 for the evaluation.
        attempt: At that round.
        context: Of the attempt, (32,).
        cohort: The hospitals in it, sorted.
        size: Bytes.
        sha256: Of those bytes, hex.
        last: Whether nothing of the study is left to release after it.
    """

    round_number: int
    attempt: int
    context: bytes
    cohort: tuple[str, ...]
    size: int
    sha256: str
    last: bool


class Gate(Protocol):
    """Decides, and writes down. Thread-safe; every call may raise `HardwareError` where the disk does not answer."""

    def admit(self, candidate: Candidate) -> Permit:
        """Decide whether a study may run on a data set now; asked at every message.

        Raises:
            OperatorError: It may not; the code is `permit.<rule>`.
        """
        ...

    def note_opened(self, permit: Permit) -> None:
        """The data set is about to be opened."""
        ...

    def reserve(self, permit: Permit, study: Study) -> None:
        """Set the study's budget aside before anything of it can leave; once a study and data set.

        Raises:
            OperatorError: The budget does not suffice, or uploads are blocked (`permit.budget`, `audit.*`).
            PeerProtocolError: A witness saw another history of the log.
        """
        ...

    def check_uploads(self) -> None:
        """Check that anything may leave.

        Raises:
            OperatorError: The log was rolled back, or the witness was not heard for too long (`audit.*`).
        """
        ...

    def note_sent(self, permit: Permit, receipt: Receipt, study: Study) -> None:
        """Something is about to leave; it may, once this returns.

        Raises:
            OperatorError: It left already (`rounds.put_back`).
        """
        ...

    def note_refused(self, study: str, rule: str) -> None:
        """A message about a known study was refused.

        Args:
            study: Its id.
            rule: The permit's rule, or the error's code.
        """
        ...


def is_on_data(error: SecureHealthError) -> bool:
    """Whether nothing but this hospital's data refuses a study: one refused anyway learns nothing of them."""
    named = error.details.get("rules")
    rules = {f"permit.{rule}" for rule in (named if isinstance(named, list) else [rule_of(error)])}
    # That nobody approved what the data are now follows from their change; what they were, somebody did.
    follows = {"permit.approved"} if "permit.dataset_unchanged" in rules else set()
    return rules <= DATA_RULES | follows


def rule_of(error: SecureHealthError) -> str:
    """The permit's rule that an error names, or its code."""
    return error.code.removeprefix("permit.")
