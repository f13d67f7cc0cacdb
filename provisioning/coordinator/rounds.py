"""Drives one study from its first message to its result: gather, moments, rounds, last evaluation, close."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.core.clock import Clock, SystemClock
from agent.core.errors import OperatorError, SecureHealthError
from agent.secagg.accounting import spent_privacy, spent_record_privacy
from agent.trust.metrics import cohort_metrics, moments_from_sums, moments_layout, training_layout
from agent.trust.peers import Peers
from agent.trust.terms import aggregation_terms
from provisioning.coordinator.aggregation import Aggregation, Kind, PlainAggregation, Report, RoundSum, RoundTask
from provisioning.coordinator.checkpoint import Checkpoint, CheckpointStore
from provisioning.coordinator.directory import Assignment, CoordinatorDirectory
from provisioning.coordinator.exchange import Exchange, Line
from provisioning.coordinator.gathering import Gathering
from provisioning.coordinator.peers import Company, SiteNames, opened_company
from provisioning.coordinator.progress import Happening, ProgressLog, RoundRecord
from provisioning.coordinator.secure import SecureAggregation
from provisioning.coordinator.strategy import ServerOptimiser

FloatVector = npt.NDArray[np.float32]
AggregationMaker = Callable[[Assignment, Report], Aggregation]
_NO_PARAMETERS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a coordination needs from outside.

    Args:
        line_to: Gives the line to an assignment's sites, by the names that their nodes have at the SuperLink.
        clock: Time.
        sleep: Waits, in seconds.
    """

    line_to: Callable[[Assignment, SiteNames], Line]
    clock: Clock
    sleep: Callable[[float], None]


def coordinate(path: Path, surroundings: Surroundings) -> None:
    """Run the study in a coordinator directory, from wherever it stands to its end.

    Args:
        path: A directory that `CoordinatorDirectory.prepare` made.
        surroundings: Messages and time.

    Raises:
        SecureHealthError: The study cannot start, or cannot go on now; the progress says so too.
    """
    directory = CoordinatorDirectory(path)
    assignment = directory.load()
    with directory.hold(), opened_company(assignment, SystemClock()) as company:
        progress = ProgressLog(directory.progress, surroundings.clock)
        try:
            Coordination(directory, assignment, surroundings, progress, company).run()
        except SecureHealthError as error:
            # What an operator must correct first ends the run; anything else it can be resumed after.
            progress.note_error(Happening.FAILED if isinstance(error, OperatorError) else Happening.PAUSED, error)
            raise
        finally:
            progress.close()


def make_aggregation(assignment: Assignment, report: Report, peers: Peers | None) -> Aggregation:
    """The aggregation that the coordinator's settings name.

    Raises:
        OperatorError: It is not allowed here, or not there.
    """
    if assignment.settings.aggregation == "plain":
        return PlainAggregation(assignment, report)
    return SecureAggregation(assignment, report, peers)


class Coordination:
    """One study's coordination."""

    def __init__(
        self,
        directory: CoordinatorDirectory,
        assignment: Assignment,
        surroundings: Surroundings,
        progress: ProgressLog,
        company: Company,
    ) -> None:
        """Prepare, and read where the study stands; nothing is sent yet.

        Args:
            directory: Where progress and results go; held by this process.
            assignment: What is to be done, as loaded from there.
            surroundings: Messages and time.
            progress: Takes the events.
            company: Who takes part.

        Raises:
            OperatorError: The study has ended, its strategy or the kind of aggregation cannot be used, or no checkpoint
                can.
        """
        if directory.result.exists():
            raise _has_ended(directory)
        self._directory = directory
        self._assignment = assignment
        self._study = assignment.study
        self._clock = surroundings.clock
        self._progress = progress
        self._exchange = Exchange(
            surroundings.line_to(assignment, company.names), surroundings.clock, surroundings.sleep
        )
        self._gathering = Gathering(assignment, self._exchange, progress)
        self._optimiser = ServerOptimiser(assignment.study)
        self._aggregation = make_aggregation(assignment, progress.note_arrival, company.peers)
        self._checkpoints = CheckpointStore(directory.checkpoints, assignment.settings.keep_checkpoints)
        self._state = self._load_state()

    def run(self) -> None:
        """Run the study to its end.

        Raises:
            SecureHealthError: It cannot go on now; it can be resumed from where it stands.
        """
        self._note_start()
        begin_s = self._clock.monotonic_s()
        try:
            self._gathering.gather()
            self._run_rounds()
            last = self._evaluate()
        except SecureHealthError:
            self._gathering.dismiss()
            raise
        self._finish(last, seconds=self._clock.monotonic_s() - begin_s)
        self._gathering.dismiss()

    def _load_state(self) -> Checkpoint:
        digest = self._assignment.digest
        found = self._checkpoints.load_newest(
            digest, on_damage=lambda file: self._progress.note(Happening.DAMAGED, file=file.name)
        )
        if found is None:
            return Checkpoint(digest, 0, self._assignment.model.parameters)
        self._optimiser.restore(found.strategy)
        self._aggregation.restore(found.aggregation)
        return found

    def _keep(self, state: Checkpoint) -> None:
        """Make `state` the state, durably."""
        strategy, aggregation = self._optimiser.state(), self._aggregation.state()
        self._state = replace(state, strategy=strategy, aggregation=aggregation)
        self._checkpoints.store(self._state)

    def _run_rounds(self) -> None:
        if self._study.data.standardise == "federated" and self._state.moments is None:
            self._gather_moments()
        for number in range(self._state.round + 1, self._study.rounds + 1):
            self._train(number)

    def _gather_moments(self) -> None:
        begin_s = self._clock.monotonic_s()
        total = self._ask(Kind.MOMENTS, 0, _NO_PARAMETERS)
        moments = moments_from_sums(self._study, moments_layout(self._study).decode(total.words))
        self._keep(replace(self._state, moments=moments))
        self._progress.note(
            Happening.MOMENTS,
            fields=len(moments),
            cohort=total.cohort,
            weight=total.weight,
            seconds=self._clock.monotonic_s() - begin_s,
            bytes_up=self._exchange.traffic.up,
            bytes_down=self._exchange.traffic.down,
        )

    def _train(self, number: int) -> None:
        begin_s = self._clock.monotonic_s()
        parameters, step_scale = self._state.parameters, 1.0
        total = self._ask(Kind.TRAIN, number, parameters)
        if total.weight:
            parameters, step_scale = self._optimiser.step(number, parameters, total.update_mean, total.weight)
        record = self._record(Kind.TRAIN, number, total, begin_s=begin_s, step_scale=step_scale)
        history = (*self._state.history, record.as_json())
        self._keep(replace(self._state, round=number, parameters=parameters, history=history))
        self._progress.note(Happening.ROUND, **record.as_json())

    def _evaluate(self) -> RoundRecord:
        begin_s = self._clock.monotonic_s()
        number = self._study.rounds + 1
        total = self._ask(Kind.EVALUATE, number, self._state.parameters)
        record = self._record(Kind.EVALUATE, number, total, begin_s=begin_s)
        self._progress.note(Happening.ROUND, **record.as_json())
        return record

    def _ask(self, kind: Kind, number: int, parameters: FloatVector) -> RoundSum:
        self._exchange.traffic.reset()
        deadline_s = self._clock.monotonic_s() + self._study.round_deadline_s
        cohort = self._gathering.cohort(number)
        task = RoundTask(kind, number, cohort, deadline_s, parameters, self._state.moments)
        return self._aggregation.run(task, self._exchange)

    def _record(
        self, kind: Kind, number: int, total: RoundSum, *, begin_s: float, step_scale: float = 1.0
    ) -> RoundRecord:
        values = training_layout(self._study).decode(total.words)
        metrics = cohort_metrics(values, bins=self._study.plan.histogram_bins)
        return RoundRecord(
            round=number,
            kind=kind.value,
            model_round=number - 1,
            cohort=total.cohort,
            weight=total.weight if kind is Kind.TRAIN else 0,
            evaluated=metrics.evaluated,
            loss=_finite(metrics.loss),
            accuracy=_finite(metrics.accuracy),
            brier=_finite(metrics.brier),
            auc=_finite(metrics.auc),
            calibration=_finite(metrics.calibration),
            seconds=self._clock.monotonic_s() - begin_s,
            bytes_up=self._exchange.traffic.up,
            bytes_down=self._exchange.traffic.down,
            legs=total.legs,
            attempts=total.attempts,
            step_scale=step_scale,
        )

    def _finish(self, last: RoundRecord, *, seconds: float) -> None:
        model = self._assignment.model.with_parameters(self._state.parameters)
        digest = hashlib.sha256(model).hexdigest()
        result: dict[str, object] = {
            "study": self._study.id,
            "study_digest": self._assignment.digest,
            "model": self._directory.trained_model.name,
            "model_digest": digest,
            "rounds": self._study.rounds,
            "aggregation": self._assignment.settings.aggregation,
            "environment": self._assignment.settings.environment,
            "privacy": self._privacy(),
            # Whoever uses the model must standardise as it was trained.
            "moments": {name: asdict(moments) for name, moments in (self._state.moments or {}).items()},
            "finished": self._clock.now().isoformat(timespec="seconds"),
            "history": [dict(record) for record in self._state.history],
            "final": last.as_json(),
        }
        self._directory.store_result(model, result)
        self._progress.note(Happening.FINISHED, rounds=self._study.rounds, seconds=seconds, model_digest=digest)

    def _privacy(self) -> dict[str, object] | None:
        """The guarantee that the released sums carry, and for what, where the study adds noise."""
        if self._assignment.settings.aggregation != "secure":
            return None
        released = sum(bool(record["cohort"]) for record in self._state.history)
        terms = aggregation_terms(self._study, self._assignment.digest)
        if terms.privacy is not None:
            return {"unit": "hospital"} | asdict(spent_privacy(terms, rounds=released))
        if terms.record is not None:
            return {"unit": "record"} | asdict(spent_record_privacy(terms.record, rounds=released))
        return None

    def _note_start(self) -> None:
        self._progress.note(
            Happening.STARTED,
            study=self._study.id,
            title=self._study.title,
            digest=self._assignment.digest,
            sites=self._study.sites,
            rounds=self._study.rounds,
            round=self._state.round + 1,
            strategy=self._study.strategy.name,
            aggregation=self._assignment.settings.aggregation,
            environment=self._assignment.settings.environment,
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _has_ended(directory: CoordinatorDirectory) -> OperatorError:
    return OperatorError(
        "coordinator.has_ended",
        f"The study in {directory.path} has ended; its result is there.",
        next_step="Read result.json, or prepare another directory to run the study anew.",
    )
