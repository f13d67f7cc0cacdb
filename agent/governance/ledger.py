"""The privacy ledger's arithmetic: what a study costs, and what reservations, settlements and receipts come to.

Costs are added as Renyi curves and turned into epsilon at the site's own delta, which also holds for studies chosen
after seeing what earlier ones released; `agent.governance.budget` keeps the book.

Source: Feldman, Zrnic, "Individual privacy accounting via a Renyi filter", NeurIPS 2021; Lecuyer, "Practical privacy
filters and odometers with Renyi differential privacy and applications to differentially private deep learning", 2021.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal

from agent.audit.leaves import (
    ApprovalGiven,
    ApprovalWithdrawn,
    BudgetReserved,
    BudgetSettled,
    Leaf,
    UpdateSent,
)
from agent.core.errors import HardwareError
from agent.governance.policy import BudgetLimit
from agent.secagg.accounting import ORDERS, ReleaseCost, compute_epsilon, hospital_cost, record_cost
from agent.trust.study import Study
from agent.trust.terms import aggregation_terms, record_terms

Unit = Literal["record", "hospital"]
MAX_DIVERGENCE: Final = 1e9
"""Of one release at any order; a curve beyond it bounds nothing."""
GRACE_S: Final = 3600
"""How long after its last approval's end a study keeps what it set aside: no answer waits so long for its receipt."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a study costs a data set.

    Args:
        unit: Whom its bound protects.
        epsilon: What the whole study promises; None where nothing bounds it.
        delta: Likewise; 0 where nothing bounds it.
        rounds: The rounds that release something, in order.
        release: What each costs; None where nothing bounds it.
    """

    unit: Unit
    epsilon: float | None
    delta: float
    rounds: tuple[int, ...]
    release: ReleaseCost | None = field(repr=False)

    @property
    def releases(self) -> int:
        """How many sums leave at most."""
        return len(self.rounds)


def cost_of(study: Study, digest: str) -> Cost:
    """What a study costs, by its own terms; with noise, rounds without training release nothing.

    Args:
        study: As parsed.
        digest: SHA-256 of its file, hex.

    Raises:
        OperatorError: Its terms contradict each other.
    """
    trained = tuple(range(1, study.rounds + 1))
    if study.privacy is not None:
        release = hospital_cost(aggregation_terms(study, digest))
        return Cost("hospital", study.privacy.epsilon, study.privacy.delta, trained, release)
    record = record_terms(study)
    if record is not None:
        return Cost("record", record.epsilon, record.delta, trained, record_cost(record))
    first = 0 if study.data.standardise == "federated" else 1
    return Cost("hospital", None, 0.0, tuple(range(first, study.rounds + 2)), None)


@dataclass(frozen=True, slots=True)
class Reservation:
    """One reservation and what became of it.

    Args:
        leaf: As it stands in the log.
        index: Where.
        settled: Releases that it came to; None while it is open.
        rounds: Rounds of which something left, first under this reservation.
        late: Those of them that left after it was settled.
    """

    leaf: BudgetReserved
    index: int
    settled: int | None = None
    rounds: frozenset[int] = frozenset()
    late: int = 0

    @property
    def counted(self) -> int:
        """Releases that count against the budget: all of them until it is settled."""
        if self.settled is None:
            return self.leaf.releases
        return min(self.leaf.releases, self.settled + self.late)

    @property
    def spent(self) -> int:
        """Releases that have left."""
        left = len(self.rounds) if self.settled is None else self.counted
        return min(self.leaf.releases, left)


class Ledger:
    """The ledger as far as the log has been replayed; no I/O.

    Attributes:
        counter: The number of the last reservation that a TPM counted.
        seen: Leaves replayed of the present log.
    """

    def __init__(self) -> None:
        self.counter = 0
        self.seen = 0
        self._reservations: list[Reservation] = []
        self._closed = 0
        self._sent: dict[tuple[str, str], set[int]] = {}
        self._approvals: dict[tuple[str, str], dict[int, int]] = {}

    @classmethod
    def replay(cls, leaves: Iterable[Leaf]) -> Ledger:
        """The ledger that a log's leaves tell, from its first.

        Raises:
            HardwareError: They contradict each other (`budget.contradiction`).
        """
        ledger = cls()
        for leaf in leaves:
            ledger.note(leaf)
        return ledger

    @property
    def next_number(self) -> int:
        """Number of the next reservation."""
        return len(self._reservations)

    def note(self, leaf: Leaf) -> None:
        """Take the log's next leaf into account.

        Raises:
            HardwareError: It contradicts those before it (`budget.contradiction`).
        """
        if isinstance(leaf, BudgetReserved):
            self._note_reserved(leaf)
        elif isinstance(leaf, BudgetSettled):
            self._note_settled(leaf)
        elif isinstance(leaf, UpdateSent):
            self._note_sent(leaf)
        elif isinstance(leaf, ApprovalGiven):
            self._approvals.setdefault((leaf.study_digest, leaf.dataset), {})[leaf.sequence] = leaf.not_after_s
        elif isinstance(leaf, ApprovalWithdrawn):
            self._approvals.setdefault((leaf.study_digest, leaf.dataset), {})[leaf.sequence] = leaf.at_s
        self.seen += 1

    def begin_next_log(self) -> None:
        """The box was enrolled anew: what earlier logs reserved counts for good, and no study goes on with it."""
        self.seen, self._closed = 0, self.next_number
        self._sent.clear()
        self._approvals.clear()

    def ended(self, now_s: int) -> list[Reservation]:
        """Open reservations of studies that were approved once and are no more: nothing waits to leave for them."""
        return [
            item
            for item in self._reservations[self._closed :]
            if item.settled is None
            and (approvals := self._approvals.get((item.leaf.study_digest, item.leaf.dataset))) is not None
            and all(end_s + GRACE_S <= now_s for end_s in approvals.values())
        ]

    def as_settled(self, ended: Iterable[Reservation]) -> Ledger:
        """The ledger as it will be once these are settled."""
        other = copy.copy(self)
        settled = {item.leaf.reservation: replace(item, settled=item.spent) for item in ended}
        other._reservations = [settled.get(item.leaf.reservation, item) for item in self._reservations]  # noqa: SLF001
        return other

    def latest(self, study_digest: str, dataset: str) -> Reservation | None:
        """The last reservation of a study on a data set, in this log."""
        for reservation in reversed(self._reservations[self._closed :]):
            if (reservation.leaf.study_digest, reservation.leaf.dataset) == (study_digest, dataset):
                return reservation
        return None

    def rounds_sent(self, study_digest: str, dataset: str) -> frozenset[int]:
        """Rounds of a study of which something left this data set."""
        return frozenset(self._sent.get((study_digest, dataset), ()))

    def unbounded(self, dataset: str) -> int:
        """Releases without a bound that are spent or set aside."""
        return sum(item.counted for item in self._of(dataset) if item.leaf.epsilon is None)

    def unbounded_spent(self, dataset: str) -> int:
        """Releases without a bound that have left."""
        return sum(item.spent for item in self._of(dataset) if item.leaf.epsilon is None)

    def spent(self, dataset: str, unit: Unit, delta: float) -> float:
        """Epsilon, at `delta`, of all that has left under a bound."""
        return self._epsilon(dataset, unit, delta, lambda item: item.spent)

    def committed(
        self, dataset: str, unit: Unit, delta: float, *, more: ReleaseCost | None = None, releases: int = 0
    ) -> float:
        """Epsilon, at `delta`, of all that is spent or set aside, and of so many releases more."""
        return self._epsilon(dataset, unit, delta, lambda item: item.counted, more, releases)

    def left(self, dataset: str, unit: Unit, limit: BudgetLimit) -> float:
        """Epsilon that a new study may cost at `limit.delta`, at least; one may cost more, as costs are not added."""
        return max(0.0, limit.epsilon - self.committed(dataset, unit, limit.delta))

    def _epsilon(
        self,
        dataset: str,
        unit: Unit,
        delta: float,
        count: Callable[[Reservation], int],
        more: ReleaseCost | None = None,
        releases: int = 0,
    ) -> float:
        costs = [
            (count(item), item.leaf.curve, item.leaf.slack)
            for item in self._of(dataset)
            if item.leaf.unit == unit and item.leaf.epsilon is not None
        ]
        if more is not None:
            costs.append((releases, more.curve, more.slack))
        curve = [sum(number * values[place] for number, values, _ in costs) for place in range(len(ORDERS))]
        return compute_epsilon(curve, delta - sum(number * slack for number, _, slack in costs))

    def _of(self, dataset: str) -> Iterator[Reservation]:
        return (item for item in self._reservations if item.leaf.dataset == dataset)

    def _note_reserved(self, leaf: BudgetReserved) -> None:
        if leaf.reservation != self.next_number:
            raise _contradiction(f"reservation {leaf.reservation} follows {self.next_number} others")
        if leaf.counter and leaf.counter <= self.counter:
            raise _contradiction(f"reservation {leaf.reservation} does not raise the counter")
        if leaf.epsilon is not None and not is_curve(leaf.curve):
            raise _contradiction(f"reservation {leaf.reservation} has a bound without its curve")
        self.counter = leaf.counter or self.counter
        self._reservations.append(Reservation(leaf, self.seen))

    def _note_settled(self, leaf: BudgetSettled) -> None:
        if leaf.reservation >= self.next_number:
            raise _contradiction(f"reservation {leaf.reservation} is settled and was never made")
        before = self._reservations[leaf.reservation]
        if before.settled is not None or leaf.releases > before.leaf.releases:
            raise _contradiction(f"reservation {leaf.reservation} is settled twice, or for more than it holds")
        self._reservations[leaf.reservation] = replace(before, settled=leaf.releases)

    def _note_sent(self, leaf: UpdateSent) -> None:
        sent = self._sent.setdefault((leaf.study_digest, leaf.dataset), set())
        if leaf.round in sent:
            return  # the same update under other masks: rule 3 lets only one of them be summed
        sent.add(leaf.round)
        latest = self.latest(leaf.study_digest, leaf.dataset)
        if latest is not None:
            self._reservations[latest.leaf.reservation] = replace(
                latest, rounds=latest.rounds | {leaf.round}, late=latest.late + (latest.settled is not None)
            )


def is_curve(curve: tuple[float, ...]) -> bool:
    """Whether it bounds a release: Renyi divergences, positive, rising with the order, and not absurdly large."""
    rising = all(low <= high for low, high in pairwise(curve))
    return len(curve) == len(ORDERS) and rising and curve[0] > 0 and curve[-1] <= MAX_DIVERGENCE


def _contradiction(what: str) -> HardwareError:
    return HardwareError(
        "budget.contradiction",
        f"The audit log on this box's disk contradicts itself about privacy budgets: {what}.",
        next_step="Somebody or a fault wrote to it; put the log back from the box's own backup.",
    )
