"""Stage PLAIN: unprotected updates, for demonstration and measurements only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import numpy as np

from agent.core.errors import OperatorError
from agent.core.wire import Frame, Refusal
from agent.federation.faults import RefusedError
from agent.federation.studies import RoundResult, StudyRun, Vector, broken_rule, declining, parse_parameters
from agent.trust.metrics import MetricLayout, Moments, moments_layout, training_layout
from agent.trust.study import FieldKind, Study

Kind = Literal["moments", "train", "evaluate"]


class PlainHandler:
    """Answers with this hospital's own update, readable by the coordinator, where the configuration allows that."""

    def __init__(self, *, allowed: bool) -> None:
        """Prepare.

        Args:
            allowed: Whether the configuration says both `environment = "demo"` and `allow_plain = true`.
        """
        self._allowed = allowed
        self._moments: dict[str, Mapping[str, Moments] | None] = {}

    def handle(self, run: StudyRun, frame: Frame) -> Frame:
        """Compute what is asked."""
        if not self._allowed:
            raise RefusedError(Refusal.NOT_PERMITTED, _not_allowed(run.study))
        kind = parse_kind(run.study, frame)
        if kind == "moments":
            with declining(run.study):
                return _reply(frame, run.study, run.worker.moments(), moments_layout(run.study))
        moments = self._pinned_moments(run, frame)
        parameters = parse_parameters(run, frame.payload, round_number=frame.round)
        with declining(run.study):
            result = _compute(run, kind, parameters, frame.round, moments)
            return _reply(frame, run.study, result, training_layout(run.study))

    def forget(self, run: StudyRun) -> None:
        """Let go of the run's moments."""
        self._moments.pop(run.folder.digest, None)

    def _pinned_moments(self, run: StudyRun, frame: Frame) -> Mapping[str, Moments] | None:
        """The same moments serve a whole run: other ones each round would be a way to ask about the data."""
        moments = parse_moments(run.study, frame.header.get("moments"))
        if self._moments.setdefault(run.folder.digest, moments) != moments:
            raise broken_rule("other moments than in an earlier round")
        return moments


def parse_kind(study: Study, frame: Frame) -> Kind:
    """What a frame asks for; it must suit the round.

    Raises:
        PeerProtocolError: It does not.
    """
    kind = frame.header.get("kind")
    rounds = {
        "moments": range(1) if study.data.standardise == "federated" else range(0),
        "train": range(1, study.rounds + 1),
        "evaluate": range(study.rounds + 1, study.rounds + 2),
    }
    if not isinstance(kind, str) or frame.round not in rounds.get(kind, ()):
        raise broken_rule(f"a request that does not belong to round {frame.round} of {study.rounds}")
    return cast("Kind", kind)


def parse_moments(study: Study, value: object) -> Mapping[str, Moments] | None:
    """Mean and deviation of every number field, where the study standardises over the federation; else None.

    Args:
        study: What is standardised.
        value: Field name -> [mean, deviation], as it came.

    Raises:
        PeerProtocolError: Missing, unasked for, or not finite numbers.
    """
    if study.data.standardise != "federated":
        if value is not None:
            raise broken_rule("moments that the study does not use")
        return None
    names = {spec.name for spec in study.data.features if spec.kind is FieldKind.NUMBER}
    if not isinstance(value, dict) or value.keys() != names:
        raise broken_rule("moments that are not exactly those of the study's number fields")
    bounds = {spec.name: (spec.minimum or 0.0, spec.maximum or 0.0) for spec in study.data.features}
    return {name: _parse_pair(pair, *bounds[name]) for name, pair in value.items()}


def _parse_pair(pair: object, minimum: float, maximum: float) -> Moments:
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(item, (int, float)) for item in pair):
        raise broken_rule("moments that are not pairs of numbers")
    try:
        mean, deviation = float(pair[0]), float(pair[1])
    except OverflowError:
        raise broken_rule("moments beyond all numbers") from None
    # What sums of values within the field's bounds can yield; anything else would be a zoom on chosen rows.
    span = maximum - minimum
    slack = 1e-3 * span
    if not (minimum - slack <= mean <= maximum + slack and 0.9e-6 * span <= deviation <= span / 2 + slack):
        raise broken_rule("moments that no rows within the field's bounds have")
    return Moments(mean, deviation)


def _compute(
    run: StudyRun, kind: Kind, parameters: Vector, round_number: int, moments: Mapping[str, Moments] | None
) -> RoundResult:
    if kind == "train":
        return run.worker.train(parameters, round_number=round_number, moments=moments)
    return run.worker.evaluate(parameters, moments=moments)


def _reply(frame: Frame, study: Study, result: RoundResult, layout: MetricLayout) -> Frame:
    header = {
        "weight": min(int(result.weight), study.secagg.weight_cap),
        "words": layout.encode(result.metrics).astype("<u8").tobytes(),
    }
    payload = np.ascontiguousarray(result.update, dtype="<f4").view(np.uint8).data
    return Frame(frame.study, frame.stage, frame.round, frame.attempt, header, payload)


def _not_allowed(study: Study) -> OperatorError:
    return OperatorError(
        "rounds.plain_not_allowed",
        f"The coordinator of {study.id} asked for an unprotected update; this box gives none.",
        next_step="Nothing left this hospital. Unprotected updates exist for demonstrations only.",
    )
