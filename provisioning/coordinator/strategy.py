"""Flower's own strategies over one synthetic reply: the cohort as if it were a single client.

A strategy that only uses the weighted mean of the clients' models (FedAvg and everything built on it) cannot tell the
cohort's mean from the clients themselves, so it works over sums that no client shows singly. One that compares clients
with each other (medians, Krum, ...) cannot, and is refused by name where the study is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from agent.core.errors import OperatorError, SoftwareError
from agent.trust.study import Study

FloatVector = npt.NDArray[np.float32]

_ARRAY = "parameters"
_WEIGHT = "num-examples"
# The reply never travels: only a message that does needs true metadata.
_NOWHERE = Metadata(
    run_id=0,
    message_id="",
    src_node_id=0,
    dst_node_id=0,
    reply_to_message_id="",
    group_id="",
    created_at=0.0,
    ttl=0.0,
    message_type="train",
)
_STEP_SLACK = 1e-6
"""Relative: a shortened step stays this much inside its bound, so that a node's own rounding finds it inside too."""


class ServerOptimiser:
    """Moves the model by one cohort's mean update; holds the strategy's state."""

    def __init__(self, study: Study) -> None:
        """Prepare the study's strategy.

        Raises:
            OperatorError: The strategy does not take the settings that the study gives it.
        """
        self._terms = study.secagg
        self._strategy = _BUILDERS[study.strategy.name](study)

    def step(
        self, round_number: int, parameters: FloatVector, update_mean: FloatVector, weight: int
    ) -> tuple[FloatVector, float]:
        """Compute the next model.

        Args:
            round_number: 1..rounds.
            parameters: The model that the cohort received, shape (m,).
            update_mean: The cohort's weighted mean update, shape (m,).
            weight: The cohort's rows.

        Returns:
            The next model, shape (m,), float32, within the study's bounds on a step; and by what factor the
            strategy's step was shortened for them (1 where it was not).

        Raises:
            SoftwareError: The strategy gave no finite model.
        """
        self._strategy.current_arrays = self._current(parameters)
        arrays, _ = self._strategy.aggregate_train(round_number, [_synthetic_reply(parameters + update_mean, weight)])
        proposed = _checked_result(arrays, parameters)
        return limit_step(
            parameters, proposed, l2=float(self._terms.max_step_l2), linf=float(self._terms.max_step_linf)
        )

    def state(self) -> dict[str, FloatVector]:
        """The vectors to keep between rounds, by name, each of shape (m,)."""
        held = {name: getattr(self._strategy, name, None) for name in _STATE}
        return {name: _vector_of(value) for name, value in held.items() if value}

    def restore(self, state: Mapping[str, npt.NDArray[np.floating]]) -> None:
        """Take up what `state` gave."""
        for name, vector in state.items():
            value = [vector] if name == "momentum_vector" else {_ARRAY: vector}
            setattr(self._strategy, name, value)

    def _current(self, parameters: FloatVector) -> ArrayRecord | dict[str, FloatVector]:
        # What `configure_train` would set; it also asks the grid for nodes, which the cohort has done already.
        return _record(parameters) if isinstance(self._strategy, FedAvgM) else {_ARRAY: parameters}


def limit_step(before: FloatVector, after: FloatVector, *, l2: float, linf: float) -> tuple[FloatVector, float]:
    """Shorten the step from `before` to `after` until it keeps both bounds; its direction stays.

    A node accepts no model that lies further than this from the last one that it saw.

    Args:
        before: Shape (m,).
        after: Shape (m,).
        l2: Greatest Euclidean length.
        linf: Greatest change of one coordinate.

    Returns:
        The model after the step, shape (m,), and the factor, 1 where nothing was shortened.
    """
    step = after.astype(np.float64) - before
    length, greatest = float(np.linalg.norm(step)), float(np.max(np.abs(step), initial=0.0))
    scale = min(1.0, _ratio(l2, length), _ratio(linf, greatest))
    if scale == 1.0:
        return after, 1.0
    return (before + scale * (1 - _STEP_SLACK) * step).astype(np.float32), scale


def _ratio(bound: float, value: float) -> float:
    return bound / value if value > bound else 1.0


def _fedavg(study: Study) -> FedAvg:
    if study.strategy.server_learning_rate != 1.0 or study.strategy.momentum != 0.0:
        raise _contradiction("fedavg takes neither a server learning rate nor a momentum; fedavgm does")
    return FedAvg()


def _fedprox(study: Study) -> FedAvg:
    if study.plan.proximal <= 0.0:
        raise _contradiction("fedprox needs plan.proximal above 0; without it, it is fedavg")
    if study.strategy.server_learning_rate != 1.0 or study.strategy.momentum != 0.0:
        raise _contradiction("fedprox takes neither a server learning rate nor a momentum")
    return FedProx(proximal_mu=study.plan.proximal)


def _fedavgm(study: Study) -> FedAvg:
    return FedAvgM(server_learning_rate=study.strategy.server_learning_rate, server_momentum=study.strategy.momentum)


def _fedadagrad(study: Study) -> FedAvg:
    if study.strategy.momentum != 0.0:
        raise _contradiction("fedadagrad takes no momentum")
    return FedAdagrad(eta=study.strategy.server_learning_rate)


def _fedadam(study: Study) -> FedAvg:
    return FedAdam(eta=study.strategy.server_learning_rate, beta_1=study.strategy.momentum)


def _fedyogi(study: Study) -> FedAvg:
    return FedYogi(eta=study.strategy.server_learning_rate, beta_1=study.strategy.momentum)


_BUILDERS: Mapping[str, Callable[[Study], FedAvg]] = MappingProxyType(
    {
        "fedavg": _fedavg,
        "fedavgm": _fedavgm,
        "fedprox": _fedprox,
        "fedadagrad": _fedadagrad,
        "fedadam": _fedadam,
        "fedyogi": _fedyogi,
    }
)
_STATE = ("m_t", "v_t", "momentum_vector")


def _contradiction(what: str) -> OperatorError:
    return OperatorError(
        "study.strategy_contradiction",
        f"The study's strategy contradicts itself: {what}.",
        next_step="Correct the strategy in the study file.",
    )


def _record(vector: FloatVector) -> ArrayRecord:
    return ArrayRecord({_ARRAY: Array(vector)})


def _synthetic_reply(parameters: FloatVector, weight: int) -> Message:
    content = RecordDict({"arrays": _record(parameters), "metrics": MetricRecord({_WEIGHT: weight})})
    return make_message(metadata=_NOWHERE, content=content)


def _checked_result(arrays: ArrayRecord | None, like: FloatVector) -> FloatVector:
    result: FloatVector | None = None if arrays is None else arrays[_ARRAY].numpy().astype(np.float32)
    if result is None or result.shape != like.shape or not np.isfinite(result).all():
        raise SoftwareError(
            "coordinator.strategy_diverged",
            "The strategy gave no finite model for the cohort's update.",
            next_step="Lower the server learning rate in the study; the last round's model is kept.",
        )
    return result


def _vector_of(value: dict[str, FloatVector] | list[FloatVector]) -> FloatVector:
    return value[_ARRAY] if isinstance(value, dict) else value[0]
