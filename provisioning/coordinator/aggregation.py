"""What a cohort answers to a round, as one sum: the interface, and the unprotected form for demonstration and bench."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.wire import Frame, Refusal, Stage
from agent.trust.metrics import MetricLayout, Moments, moments_layout, training_layout
from agent.trust.study import Study
from provisioning.coordinator.directory import Assignment
from provisioning.coordinator.exchange import (
    Arrival,
    Exchange,
    Faulty,
    Inquiry,
    Refused,
    Reply,
    missing_sites,
)

FloatVector = npt.NDArray[np.float32]
FAULTS_TOLERATED = 2
"""How often in one round a site may answer wrongly and is asked again, where the round waits for it."""


class Kind(StrEnum):
    """What a round is for."""

    MOMENTS = "moments"
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What one round asks.

    Args:
        kind: What it is for.
        round: 0 for moments, 1..rounds for training, rounds + 1 for the last evaluation.
        sites: The cohort to ask.
        deadline_s: When the round ends at the latest, on the clock's monotonic scale.
        parameters: The model, shape (m,), float32; shape (0,) for moments.
        moments: Federation-wide moments, where the study standardises by them.
    """

    kind: Kind
    round: int
    sites: tuple[str, ...]
    deadline_s: float
    parameters: FloatVector = field(repr=False)
    moments: Mapping[str, Moments] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RoundSum:
    """What a cohort answered, as far as the coordinator may know it.

    Args:
        update_mean: Weighted mean update, shape (m,), float32; shape (0,) unless the round trained.
        weight: Training rows in the sum.
        words: Summed metric words, shape (k,), uint64.
        cohort: Sites in the sum, sorted.
        legs: Exchanges with the nodes.
        attempts: How often the round was begun.
    """

    update_mean: FloatVector = field(repr=False)
    weight: int
    words: npt.NDArray[np.uint64] = field(repr=False)
    cohort: tuple[str, ...]
    legs: int = 1
    attempts: int = 1


class Aggregation(Protocol):
    """How a cohort's sum is obtained."""

    def run(self, task: RoundTask, exchange: Exchange) -> RoundSum:
        """Run one round.

        Raises:
            SecureHealthError: No sum that the study allows came about in time; the round can be run again.
        """
        ...

    def state(self) -> Mapping[str, object]:
        """What to keep between rounds, as plain JSON values."""
        ...

    def restore(self, state: Mapping[str, object]) -> None:
        """Take up what `state` gave, after a restart."""
        ...


Report = Callable[[int, Arrival], None]
"""Told of everything that comes, with the round's number; shows it."""


class PlainAggregation:
    """Unprotected updates, summed in the open: the coordinator sees each. For demonstration and bench only."""

    def __init__(self, assignment: Assignment, report: Report) -> None:
        """Prepare.

        Raises:
            OperatorError: The coordinator's settings do not call this a demonstration or a bench.
        """
        if assignment.settings.environment not in {"demo", "bench"}:
            raise OperatorError(
                "coordinator.plain_refused",
                "Unprotected aggregation would show every hospital's update to the coordinator; it is refused outside "
                "demonstration and bench.",
                next_step="Set aggregation to 'secure' in settings.json.",
            )
        self._study = assignment.study
        self._report = report

    def state(self) -> Mapping[str, object]:
        """Nothing outlives a round."""
        return {}

    def restore(self, state: Mapping[str, object]) -> None:
        """Nothing to take up."""

    def run(self, task: RoundTask, exchange: Exchange) -> RoundSum:
        """Ask the whole cohort, and sum what comes.

        Raises:
            PeerProtocolError: A site that the round needs refuses it, or answers wrongly time and again.
            NetworkError: Too few sites answered in time.
        """
        begin_s = exchange.clock.monotonic_s()
        inquiry = exchange.ask(self._frames(task), deadline_s=task.deadline_s, persist=self._waits)
        gathered = _Gathered(self._layout(task), len(task.parameters) if task.kind is Kind.TRAIN else 0)
        for arrival in inquiry:
            self._take(task, arrival, inquiry, gathered)
        absent = sorted(set(task.sites) - gathered.cohort)
        if absent and (self._waits or len(gathered.cohort) < smallest_cohort(self._study)):
            raise missing_sites(absent, within_s=task.deadline_s - begin_s, round_number=task.round)
        return gathered.sum()

    @property
    def _waits(self) -> bool:
        return self._study.secagg.dropout == "wait"

    def _frames(self, task: RoundTask) -> dict[str, Frame]:
        header: dict[str, object] = {"kind": task.kind.value}
        if task.moments is not None:
            header["moments"] = {name: [moment.mean, moment.deviation] for name, moment in task.moments.items()}
        payload = task.parameters.astype("<f4", copy=False).tobytes()
        frame = Frame(self._study.id, Stage.PLAIN, task.round, header=header, payload=payload)
        return dict.fromkeys(task.sites, frame)

    def _layout(self, task: RoundTask) -> MetricLayout:
        return moments_layout(self._study) if task.kind is Kind.MOMENTS else training_layout(self._study)

    def _take(self, task: RoundTask, arrival: Arrival, inquiry: Inquiry, gathered: _Gathered) -> None:
        """Add an answer, or decide what a missing one means."""
        if isinstance(arrival, Reply):
            try:
                gathered.add(arrival.site, arrival.frame, weight_cap=self._study.secagg.weight_cap)
            except PeerProtocolError as error:
                arrival = Faulty(arrival.site, error)
        self._report(task.round, arrival)
        if not self._waits:
            return
        if isinstance(arrival, Refused):
            raise refused_by(arrival, round_number=task.round)
        if isinstance(arrival, Faulty):
            gathered.faults[arrival.site] += 1
            if gathered.faults[arrival.site] > FAULTS_TOLERATED:
                raise arrival.error
            inquiry.repeat(arrival.site)


class _Gathered:
    """What has come in of one round."""

    def __init__(self, layout: MetricLayout, parameters: int) -> None:
        self._layout = layout
        self._update = np.zeros(parameters, dtype=np.float64)
        self._weight = 0
        self._words = np.zeros(len(layout.words), dtype=np.uint64)
        self.cohort: set[str] = set()
        self.faults: Counter[str] = Counter()

    def add(self, site: str, frame: Frame, *, weight_cap: int) -> None:
        """Add one site's answer.

        Raises:
            PeerProtocolError: It is not what a node of ours answers; nothing was added.
        """
        weight = frame.header.get("weight")
        if type(weight) is not int or not 0 <= weight <= weight_cap:
            raise _bad_answer(site, f"its weight is not a number from 0 to {weight_cap}")
        words = _parse_words(site, frame.header.get("words"), self._layout)
        update = _parse_update(site, frame.payload, len(self._update))
        # float64 holds a weighted float32 exactly, and sums of them to far below one float32 step.
        self._update += np.multiply(update, weight, dtype=np.float64)
        self._weight += weight
        self._words += words
        self.cohort.add(site)

    def sum(self) -> RoundSum:
        """The weighted mean and the sums."""
        mean = (self._update / max(self._weight, 1)).astype(np.float32)
        return RoundSum(mean, self._weight, self._words, tuple(sorted(self.cohort)))


def smallest_cohort(study: Study) -> int:
    """Fewest sites whose sum may be formed: what the study states, or one honest site more than conspirators."""
    sites = len(study.sites)
    colluders = study.secagg.colluders or max(1, (sites - 1) // 3)
    return min(study.secagg.minimum_sites or colluders + 2, sites)


def refused_by(arrival: Refused, *, round_number: int) -> PeerProtocolError:
    """A site that a round needs refuses it."""
    return PeerProtocolError(
        "coordinator.refused",
        f"{arrival.site} refuses round {round_number}: {arrival.refusal.value}.",
        next_step=NEXT_STEPS[arrival.refusal],
        site=arrival.site,
        refusal=arrival.refusal.value,
    )


NEXT_STEPS: Mapping[Refusal, str] = MappingProxyType(
    {
        Refusal.MALFORMED: "Check that the coordinator and that site run the same release.",
        Refusal.UNKNOWN_STUDY: "Check that the study was published and that the site's box has fetched it.",
        Refusal.NOT_PERMITTED: "Ask the site's data steward whether the study is approved there, and for how long.",
        Refusal.PROTOCOL: "Ask the site for its log: it names the rule that the coordinator broke.",
        Refusal.DECLINED: "Ask the site for its log; causes that depend on its data stay there.",
        Refusal.BUSY: "Wait until the site has finished what it is doing, then resume.",
        Refusal.INTERNAL: "Ask the site for its log, and to report the fault.",
    }
)
"""What an operator can do about each refusal."""


def _parse_words(site: str, data: object, layout: MetricLayout) -> npt.NDArray[np.uint64]:
    if not isinstance(data, bytes) or len(data) != 8 * len(layout.words):
        raise _bad_answer(site, f"it does not hold {len(layout.words)} metric words")
    words = np.frombuffer(data, dtype="<u8").astype(np.uint64)
    bounds = np.array([round(word.bound * word.scale) for word in layout.words], dtype=np.uint64)
    if (words > bounds).any():
        raise _bad_answer(site, "a metric word exceeds its bound")
    return words


def _parse_update(site: str, payload: bytes | memoryview, size: int) -> FloatVector:
    if len(payload) != 4 * size:
        raise _bad_answer(site, f"it does not hold {size} float32 values")
    update = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(update).all():
        raise _bad_answer(site, "its update is not finite")
    return update


def _bad_answer(site: str, why: str) -> PeerProtocolError:
    return PeerProtocolError(
        "coordinator.bad_answer",
        f"The answer of {site} cannot be used: {why}.",
        next_step="It was left out. Ask the site for its log and to check its data set.",
        site=site,
    )
