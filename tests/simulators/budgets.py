"""A privacy ledger's surroundings: a log and a counter in memory, power that goes between any two of their moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from agent.audit.leaves import ApprovalGiven, ApprovalWithdrawn, Leaf, UpdateSent
from agent.governance.budget import BudgetBook
from agent.governance.policy import BudgetLimit, Budgets, DatasetPolicy, Policy
from agent.trust.study import Study
from tests.simulators.clock import SetClock
from tests.simulators.permits import played_study
from tests.simulators.power import Moments

DATASET = "cleveland"
DELTA = 1e-5
_STEADY = Moments(None, RuntimeError)


@dataclass(slots=True)
class PlayedLog:
    """What the disk holds; an append is there as a whole or not at all."""

    kept: list[Leaf] = field(default_factory=list)
    moments: Moments = field(default_factory=lambda: _STEADY)

    @property
    def size(self) -> int:
        return len(self.kept)

    def append(self, leaf: Leaf, /) -> int:
        self.moments.pass_one()
        self.kept.append(leaf)
        self.moments.pass_one()
        return len(self.kept) - 1

    def leaves(self, start: int, stop: int, /) -> Iterator[Leaf]:
        return iter(self.kept[start:stop])


@dataclass(slots=True)
class PlayedCounter:
    """What the TPM holds."""

    value: int = 0
    moments: Moments = field(default_factory=lambda: _STEADY)

    def read(self) -> int:
        return self.value

    def increment(self) -> int:
        self.moments.pass_one()
        self.value += 1
        self.moments.pass_one()
        return self.value


@dataclass(slots=True)
class PlayedBox:
    """A box whose disk and TPM outlive its agent."""

    log: PlayedLog = field(default_factory=PlayedLog)
    counter: PlayedCounter | None = field(default_factory=PlayedCounter)
    clock: SetClock = field(default_factory=SetClock)

    def start(self) -> BudgetBook:
        """The agent starts."""
        book = BudgetBook(self.log, self.counter, self.clock)
        book.check()
        return book

    def power(self, moments: Moments) -> None:
        """The power goes as `moments` say."""
        self.log.moments = moments
        if self.counter is not None:
            self.counter.moments = moments

    def approved(self, digest: str, sequence: int, *, for_s: int = 3600) -> None:
        """A steward approves a study."""
        now_s = int(self.clock.now().timestamp())
        self.log.append(
            ApprovalGiven(
                at_s=now_s,
                sequence=sequence,
                study="study",
                study_digest=digest,
                dataset=DATASET,
                dataset_digest="0" * 64,
                epsilon=None,
                not_after_s=now_s + for_s,
                steward="steward",
                approval="0" * 64,
            )
        )

    def withdrawn(self, digest: str, sequence: int) -> None:
        """A steward takes an approval back."""
        self.log.append(
            ApprovalWithdrawn(
                at_s=int(self.clock.now().timestamp()),
                sequence=sequence,
                study="study",
                study_digest=digest,
                dataset=DATASET,
                steward="steward",
            )
        )

    def sent(self, digest: str, round_number: int, *, attempt: int = 1, dataset: str = DATASET) -> None:
        """A round's receipt."""
        self.log.append(
            UpdateSent(
                at_s=1,
                study="study",
                study_digest=digest,
                dataset=dataset,
                round=round_number,
                attempt=attempt,
                context="0" * 64,
                cohort=("hospital-a",),
                bytes=1,
                sha256="0" * 64,
                permit=0,
                approval=0,
            )
        )


def digest_of(number: int) -> str:
    """Of a study's file."""
    return f"{number:064x}"


def hospital_study(*, rounds: int = 5, multiplier: float = 8.0, epsilon: float = 10.0) -> Study:
    """A study under noise that protects a whole hospital."""
    privacy = {"epsilon": epsilon, "delta": DELTA, "l2_clip": 0.5, "noise_multiplier": multiplier}
    return played_study(rounds=rounds, privacy=privacy)


def record_study(*, rounds: int = 5, multiplier: float = 2.0, epsilon: float = 10.0, rows: int = 1000) -> Study:
    """A study under noise that protects a record."""
    study = played_study(rounds=rounds)
    private = {"epsilon": epsilon, "delta": DELTA, "noise_multiplier": multiplier, "max_gradient_norm": 1.0}
    plan = study.plan.model_dump() | {"record_privacy": private, "batch_size": 10, "steps": 20, "epochs": None}
    data = study.data.model_dump() | {"standardise": "none", "minimum_rows": rows}
    return Study.model_validate(study.model_dump() | {"plan": plan, "data": data})


def unbounded_study(*, rounds: int = 5) -> Study:
    """A study without differential privacy."""
    return played_study(rounds=rounds)


def allowing(
    *, hospital: float | None = None, record: float | None = None, unbounded: int = 0, delta: float = DELTA
) -> Policy:
    """A policy with such budgets for two data sets."""
    budgets = Budgets(
        hospital=None if hospital is None else BudgetLimit(epsilon=hospital, delta=delta),
        record=None if record is None else BudgetLimit(epsilon=record, delta=delta),
    )
    rules = DatasetPolicy(budget=budgets, unbounded_releases=unbounded)
    return Policy(datasets={DATASET: rules, "zurich": rules})
