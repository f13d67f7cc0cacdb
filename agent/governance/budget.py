"""The privacy ledger: what studies may still learn from a data set, replayed from the audit log and kept nowhere else.

One account for each data set and unit (one record's privacy, or the hospital's); the two are never added. A study's
cost is set aside whole before anything of it can leave. What it did not release comes back when it is settled: with its
last round, or some time after the last approval of it was withdrawn or ran out. The sums are
`agent.governance.ledger`'s. A study without a bound takes from a number of releases that the site allows, 0 unless it
says more.

An older disk, put back, would forget what was spent. So each reservation's leaf carries the number that a counter in
the TPM then steps to: leaf first, counter after. A log that is ahead by that one step was cut off between the two and
is completed; any other difference is a log that was put back. Receipts within a reservation move no counter: a log
without its last ones is seen by the witness.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final, Protocol

from agent.audit.leaves import BudgetReserved, BudgetSettled, Leaf
from agent.core.box_view import BudgetView
from agent.core.clock import Clock
from agent.core.errors import HardwareError
from agent.governance.ledger import Cost, Ledger, Reservation, Unit, cost_of, is_curve
from agent.governance.permit import Decision, Finding, refusal_of
from agent.governance.policy import DatasetPolicy, Policy
from agent.secagg.accounting import compute_epsilon
from agent.trust.study import Study

UNITS: Final[tuple[Unit, ...]] = ("record", "hospital")


class ReservationLog(Protocol):
    """What is needed of the audit log."""

    @property
    def size(self) -> int:
        """How many leaves it has."""
        ...

    def append(self, leaf: Leaf, /) -> int:
        """Add a leaf; returns its index, once it is on the disk."""
        ...

    def leaves(self, start: int, stop: int, /) -> Iterator[Leaf]:
        """Leaves from `start` to before `stop`."""
        ...


class Counter(Protocol):
    """What no disk can turn back."""

    def read(self) -> int:
        """How many reservations it has counted.

        Raises:
            HardwareError: It does not answer.
        """
        ...

    def increment(self) -> int:
        """Count one more; returns how many that makes.

        Raises:
            HardwareError: It does not answer.
        """
        ...


class BudgetBook:
    """Reserves and settles, through the log; what `agent.governance.gate` calls its budget desk. Thread-safe.

    Args:
        log: The audit log; nobody else appends reservations.
        counter: In the TPM; None on a box without one, where only the witness sees a disk that was put back.
        clock: Of the leaves' times.
        earlier: Leaves of the logs that this box kept before it was enrolled anew.
    """

    def __init__(
        self, log: ReservationLog, counter: Counter | None, clock: Clock, earlier: Iterable[Leaf] = ()
    ) -> None:
        self._log = log
        self._counter = counter
        self._clock = clock
        self._lock = threading.Lock()
        self._ledger = Ledger.replay(earlier)
        self._ledger.begin_next_log()

    @property
    def sealed(self) -> bool:
        """Whether this box itself sees a disk that was put back."""
        return self._counter is not None

    def check(self) -> None:
        """Hold log and counter against each other, and complete what a power cut left undone; at start.

        Raises:
            HardwareError: The log was put back (`budget.rolled_back`), contradicts itself (`budget.contradiction`), or
                the TPM does not answer.
        """
        with self._lock:
            ledger = self._caught_up()
            self._settle_counter(ledger)
            self._settle_ended(ledger)

    def ledger(self) -> Ledger:
        """The ledger as it is now; for reading."""
        with self._lock:
            return self._caught_up()

    def finding(self, study: Study, digest: str, dataset: str, policy: Policy) -> Finding:
        """What the ledger says about a study, under the rule `budget`.

        Raises:
            OperatorError: The study's terms contradict each other.
        """
        with self._lock:
            ledger = self._without_ended()
            latest = ledger.latest(digest, dataset)
            if latest is not None and latest.settled is None:
                return Finding(
                    "budget", passed=True, sentence="The study's cost is set aside from this data set's budget."
                )
            cost = _remaining(cost_of(study, digest), ledger.rounds_sent(digest, dataset))
            if latest is not None and not cost.releases:
                return Finding(
                    "budget", passed=True, sentence="All that the study may release from this data set has left."
                )
            return _judge(ledger, cost, dataset, policy.datasets.get(dataset, DatasetPolicy()))

    def reserve(self, study: Study, digest: str, dataset: str, policy: Policy) -> int:
        """Set a study's cost aside, once a study and data set; on the disk and counted when this returns.

        Args:
            study: As parsed.
            digest: SHA-256 of its file, hex.
            dataset: The data set's name.
            policy: The site's, as it is now.

        Returns:
            Index of the reservation's leaf.

        Raises:
            OperatorError: It does not suffice (`permit.budget`).
            HardwareError: The log was put back, or disk or TPM do not answer; calling again is safe.
        """
        with self._lock:
            ledger = self._caught_up()
            self._settle_counter(ledger)
            self._settle_ended(ledger)
            cost = _remaining(cost_of(study, digest), ledger.rounds_sent(digest, dataset))
            latest = ledger.latest(digest, dataset)
            if latest is not None and (latest.settled is None or not cost.releases):
                return latest.index
            finding = _judge(ledger, cost, dataset, policy.datasets.get(dataset, DatasetPolicy()))
            if not finding.passed:
                raise refusal_of(Decision((finding,)))
            index = self._log.append(self._leaf(study.id, digest, dataset, cost, ledger))
            self._settle_counter(self._caught_up())
            return index

    def settle(self, study: Study, digest: str, dataset: str) -> None:
        """Give back what the study did not release; nothing happens where nothing of it is set aside.

        Raises:
            HardwareError: The disk does not answer.
        """
        with self._lock:
            ledger = self._caught_up()
            open_one = ledger.latest(digest, dataset)
            if open_one is None or open_one.settled is not None:
                return
            self._settle(open_one, used=len(open_one.rounds & set(cost_of(study, digest).rounds)))

    def views(self, policy: Policy) -> tuple[BudgetView, ...]:
        """A row for each data set of the policy and each unit that it has a budget for; one row where it has none."""
        with self._lock:
            ledger = self._without_ended()
            return tuple(
                view for dataset, rules in sorted(policy.datasets.items()) for view in _views(ledger, dataset, rules)
            )

    def _caught_up(self) -> Ledger:
        for leaf in self._log.leaves(self._ledger.seen, self._log.size):
            self._ledger.note(leaf)
        return self._ledger

    def _without_ended(self) -> Ledger:
        ledger = self._caught_up()
        return ledger.as_settled(ledger.ended(self._now_s()))

    def _settle_ended(self, ledger: Ledger) -> None:
        for reservation in ledger.ended(self._now_s()):
            self._settle(reservation, used=reservation.spent)

    def _settle(self, reservation: Reservation, *, used: int) -> None:
        leaf = reservation.leaf
        epsilon = None
        if leaf.epsilon is not None:
            epsilon = compute_epsilon([used * value for value in leaf.curve], leaf.delta - used * leaf.slack)
        self._log.append(
            BudgetSettled(at_s=self._now_s(), reservation=leaf.reservation, epsilon=epsilon, releases=used)
        )
        self._caught_up()

    def _settle_counter(self, ledger: Ledger) -> None:
        if self._counter is None:
            return
        counted = self._counter.read()
        if counted == ledger.counter - 1:
            counted = self._counter.increment()
        if counted != ledger.counter:
            raise HardwareError(
                "budget.rolled_back",
                f"This box's TPM has counted {counted} reservations of privacy budget, and its audit log stands at "
                f"{ledger.counter}: an older disk was put back, so what was spent is not known.",
                next_step="Put the newest disk back. If it is lost, no study may run here before the site has decided "
                "about its budgets; ask the consortium's witness what the log held.",
                counted=counted,
                logged=ledger.counter,
            )

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())

    def _leaf(self, study: str, digest: str, dataset: str, cost: Cost, ledger: Ledger) -> BudgetReserved:
        return BudgetReserved(
            at_s=self._now_s(),
            reservation=ledger.next_number,
            study=study,
            study_digest=digest,
            dataset=dataset,
            unit=cost.unit,
            epsilon=cost.epsilon,
            delta=cost.delta,
            releases=cost.releases,
            counter=0 if self._counter is None else ledger.counter + 1,
            curve=() if cost.release is None else cost.release.curve,
            slack=0.0 if cost.release is None else cost.release.slack,
        )


def _remaining(cost: Cost, sent: frozenset[int]) -> Cost:
    """The cost without what has left already: a round is never released again (rule 3)."""
    return replace(cost, rounds=tuple(number for number in cost.rounds if number not in sent))


def _judge(ledger: Ledger, cost: Cost, dataset: str, rules: DatasetPolicy) -> Finding:
    if cost.release is None:
        taken = ledger.unbounded(dataset)
        passed = taken + cost.releases <= rules.unbounded_releases
        return Finding(
            "budget",
            passed,
            f"The study's {cost.releases} sums have no bound; the site allows {rules.unbounded_releases} such sums of "
            f"this data set, and {taken} are spent or set aside.",
        )
    limit = rules.budget.record if cost.unit == "record" else rules.budget.hospital
    if limit is None:
        return Finding("budget", passed=False, sentence=f"The site has set no {cost.unit} budget for this data set.")
    if not is_curve(cost.release.curve):
        return Finding("budget", passed=False, sentence="The study's noise is so weak that it bounds nothing.")
    before = ledger.committed(dataset, cost.unit, limit.delta)
    after = ledger.committed(dataset, cost.unit, limit.delta, more=cost.release, releases=cost.releases)
    return Finding(
        "budget",
        after <= limit.epsilon,
        f"Of this data set's {cost.unit} budget of epsilon {limit.epsilon:g}, {before:.2f} is spent or set aside; with "
        f"the study it would be {after:.2f}.",
    )


def _views(ledger: Ledger, dataset: str, rules: DatasetPolicy) -> Iterator[BudgetView]:
    limits = {"record": rules.budget.record, "hospital": rules.budget.hospital}
    units = [unit for unit in UNITS if limits[unit] is not None] or ["hospital"]
    for unit in units:
        limit = limits[unit]
        spent = committed = left = 0.0
        if limit is not None:
            spent = ledger.spent(dataset, unit, limit.delta)
            committed = ledger.committed(dataset, unit, limit.delta)
            left = ledger.left(dataset, unit, limit)
        yield BudgetView(
            dataset=dataset,
            unit=unit,
            epsilon=0.0 if limit is None else limit.epsilon,
            delta=0.0 if limit is None else limit.delta,
            spent=spent,
            reserved=max(0.0, committed - spent),
            left=left,
            releases=ledger.unbounded_spent(dataset),
            releases_allowed=rules.unbounded_releases,
        )
