from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from agent.core.errors import OperatorError, SoftwareError
from agent.trust.study import Study, parse_study
from provisioning.coordinator.strategy import ServerOptimiser, limit_step
from tests.simulators.played_study import study_files

PARAMETERS = 2000
ROUNDS = 5
WEIGHTS = (199, 172, 30, 85)
RELATIVE = 2e-7

Vector = npt.NDArray[np.float32]

STRATEGIES: dict[str, tuple[dict[str, Any], FedAvg]] = {
    "fedavg": ({}, FedAvg()),
    "fedavgm": ({"server_learning_rate": 0.8, "momentum": 0.9}, FedAvgM(server_learning_rate=0.8, server_momentum=0.9)),
    "fedadam": ({"server_learning_rate": 0.02, "momentum": 0.9}, FedAdam(eta=0.02, beta_1=0.9)),
    "fedadagrad": ({"server_learning_rate": 0.02}, FedAdagrad(eta=0.02)),
    "fedyogi": ({"server_learning_rate": 0.02, "momentum": 0.9}, FedYogi(eta=0.02, beta_1=0.9)),
    "fedprox": ({}, FedProx(proximal_mu=0.1)),
}


def study(name: str, **changes: float) -> Study:
    plan = {"learning_rate": 0.1, "batch_size": 8, "epochs": 1, "proximal": 0.1 if name == "fedprox" else 0.0}
    return parse_study(study_files(strategy={"name": name} | changes, plan=plan)[0])


def flower_reply(parameters: Vector, weight: int) -> Message:
    arrays = ArrayRecord({"parameters": Array(parameters)})
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})})
    nowhere = {"message_id": "", "reply_to_message_id": "", "group_id": "", "message_type": "train"}
    return make_message(
        metadata=Metadata(run_id=0, src_node_id=0, dst_node_id=0, created_at=0.0, ttl=0.0, **nowhere), content=content
    )


def flower_step(strategy: FedAvg, number: int, parameters: Vector, updates: list[Vector]) -> Vector:
    """What Flower makes of the single replies."""
    current = ArrayRecord({"parameters": Array(parameters)})
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = current
    elif hasattr(strategy, "current_arrays"):
        strategy.current_arrays = {"parameters": parameters}
    replies = [flower_reply(parameters + update, weight) for update, weight in zip(updates, WEIGHTS, strict=True)]
    arrays, _ = strategy.aggregate_train(number, replies)
    result: Vector = arrays["parameters"].numpy()
    return result


def mean_of(updates: list[Vector]) -> Vector:
    total = sum(weight * update.astype(np.float64) for update, weight in zip(updates, WEIGHTS, strict=True))
    return np.asarray(total / sum(WEIGHTS), dtype=np.float32)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_synthetic_reply_gives_what_flower_makes_of_the_single_replies(name: str) -> None:
    changes, flower = STRATEGIES[name]
    optimiser = ServerOptimiser(study(name, **changes))
    dice = np.random.default_rng(7)
    model = dice.normal(size=PARAMETERS).astype(np.float32)
    for number in range(1, ROUNDS + 1):
        updates = [dice.normal(scale=0.05, size=PARAMETERS).astype(np.float32) for _ in WEIGHTS]
        ours, scale = optimiser.step(number, model, mean_of(updates), sum(WEIGHTS))
        theirs = flower_step(flower, number, model, updates)

        assert scale == 1.0
        assert np.linalg.norm(ours - theirs) <= RELATIVE * np.linalg.norm(theirs), number
        # Each keeps its own momenta; from one model they differ by Flower's rounding of its sum alone.
        model = theirs


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restored_strategy_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    changes, _ = STRATEGIES[name]
    dice = np.random.default_rng(8)
    updates = [dice.normal(scale=0.05, size=PARAMETERS).astype(np.float32) for _ in range(4)]
    start = dice.normal(size=PARAMETERS).astype(np.float32)

    def run(*, stop_after: int) -> Vector:
        optimiser, parameters = ServerOptimiser(study(name, **changes)), start
        for number, update in enumerate(updates, start=1):
            parameters, _ = optimiser.step(number, parameters, update, 10)
            if number == stop_after:
                state = optimiser.state()
                optimiser = ServerOptimiser(study(name, **changes))
                optimiser.restore(state)
        return parameters

    assert run(stop_after=2).tobytes() == run(stop_after=0).tobytes()


@pytest.mark.parametrize(("l2", "linf"), [(0.1, 100.0), (100.0, 0.01), (0.1, 0.01)])
def test_a_step_beyond_the_studys_bounds_is_shortened_into_them(l2: float, linf: float) -> None:
    before = np.random.default_rng(1).normal(size=500).astype(np.float32)
    after = before + np.random.default_rng(2).normal(size=500).astype(np.float32)

    limited, scale = limit_step(before, after, l2=l2, linf=linf)

    step = limited.astype(np.float64) - before
    assert 0 < scale < 1
    assert np.linalg.norm(step) <= l2
    assert np.abs(step).max() <= linf
    cosine = step @ (after - before) / np.linalg.norm(step) / np.linalg.norm(after - before)
    assert cosine > 0.999  # the direction stays


def test_a_step_within_the_bounds_is_left_alone_bit_for_bit() -> None:
    before, after = np.zeros(4, dtype=np.float32), np.full(4, 0.5, dtype=np.float32)

    limited, scale = limit_step(before, after, l2=1.0, linf=0.5)

    assert scale == 1.0
    assert limited is after


def test_momentum_is_held_back_by_the_studys_own_bound() -> None:
    bounds = {"max_step_l2": 0.2, "max_step_linf": 10.0}
    terms = parse_study(study_files(strategy={"name": "fedavgm", "momentum": 0.9}, secagg=bounds)[0])
    optimiser, parameters = ServerOptimiser(terms), np.zeros(PARAMETERS, dtype=np.float32)
    for number in range(1, 4):
        update = np.full(PARAMETERS, 0.01, dtype=np.float32)
        moved, scale = optimiser.step(number, parameters, update, 1)
        assert np.linalg.norm(moved - parameters) <= 0.2
        assert scale < 1.0
        parameters = moved


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fedavg", {"momentum": 0.5}),
        ("fedavg", {"server_learning_rate": 0.5}),
        ("fedprox", {"momentum": 0.5}),
        ("fedadagrad", {"momentum": 0.5}),
    ],
)
def test_settings_that_a_strategy_does_not_take_are_refused(name: str, changes: dict[str, float]) -> None:
    with pytest.raises(OperatorError, match="contradicts itself"):
        ServerOptimiser(study(name, **changes))


def test_fedprox_without_a_proximal_term_is_refused() -> None:
    with pytest.raises(OperatorError, match="proximal"):
        ServerOptimiser(parse_study(study_files(strategy={"name": "fedprox"})[0]))


@pytest.mark.parametrize("name", ["fedmedian", "krum", "fedtrimmedavg", "bulyan", "fedxgb_bagging", "qfedavg"])
def test_strategies_that_compare_clients_are_refused_by_name(name: str) -> None:
    with pytest.raises(OperatorError, match=r"strategy\.name: Input should be 'fedavg', 'fedavgm'"):
        parse_study(study_files(strategy={"name": name})[0])


def test_a_diverged_strategy_is_a_failure_not_a_model() -> None:
    optimiser = ServerOptimiser(study("fedavg"))
    huge = np.full(3, 3e38, dtype=np.float32)

    with pytest.raises(SoftwareError, match="no finite model"), np.errstate(over="ignore"):
        optimiser.step(1, huge, huge, 1)
