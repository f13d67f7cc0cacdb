"""DP-SGD in the trainer: as Opacus steps, with noise as accounted, at any model that keeps rows apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from torch import nn

from agent.core.errors import OperatorError
from agent.secagg.accounting import spent_record_privacy
from agent.secagg.terms import RecordTerms
from agent.training.privacy import UNITS, PrivateSteps, RowGradients, SecretDice, whole_units
from agent.training.trainer import Trainer
from agent.trust.model import parse_model
from agent.trust.study import Study
from agent.trust.terms import aggregation_terms, check_privacy, record_terms
from tests.simulators.budgets import digest_of, record_study
from tests.unit.training.graphs import logistic, wide
from tests.unit.training.studies import plan_of
from tests.unit.training.zoo import exported

TERMS = RecordTerms(epsilon=10, delta=1e-5, noise_multiplier=1.0, rate=0.5, steps=40)
PRIVATE = {"epsilon": 10, "delta": 1e-5, "noise_multiplier": 1.0, "max_gradient_norm": 1.0}


def private_trainer(model: bytes, terms: RecordTerms = TERMS, **plan: object) -> Trainer:
    return Trainer(parse_model(model), plan_of(record_privacy=PRIVATE, **plan), record=terms)


def rows_of(count: int, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(3)
    inputs = dice.normal(size=(count, width)).astype(np.float32)
    return inputs, (inputs[:, 0] > 0).astype(np.float32)


def test_a_step_without_noise_is_opacuss_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of SGD over all rows: our graph, bounds and mean against a torch layer under Opacus's optimiser."""
    monkeypatch.setattr(SecretDice, "whole_noise", lambda _, length, deviation: np.zeros(length, np.int64))
    trainer = private_trainer(logistic(5), RecordTerms(10, 1e-5, 1.0, 1.0, 1), learning_rate=1.0)
    inputs, targets = rows_of(64)
    start = np.random.default_rng(1).normal(size=6).astype(np.float32)
    update = trainer.train(start, trainer.batch(inputs, targets), round_number=1)

    layer = nn.Linear(5, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start[:5]).unsqueeze(0))
        layer.bias.copy_(torch.from_numpy(start[5:]))
    per_row = [
        torch.autograd.grad(
            nn.functional.binary_cross_entropy_with_logits(layer(torch.from_numpy(row)), torch.tensor([target])),
            (layer.weight, layer.bias),
        )
        for row, target in zip(inputs, targets, strict=True)
    ]
    optimiser = DPOptimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=64
    )
    layer.weight.grad_sample, layer.bias.grad_sample = (torch.stack(parts) for parts in zip(*per_row, strict=True))
    optimiser.step()
    after = torch.cat((layer.weight.detach().reshape(-1), layer.bias.detach())).numpy()
    np.testing.assert_allclose(update, after - start, rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(update) > 1e-3


def test_the_cost_is_what_opacus_and_dp_accounting_say() -> None:
    study = record_study(rounds=30, multiplier=1.0)
    terms = record_terms(study)
    assert terms is not None
    opacus = RDPAccountant()
    opacus.history = [(1.0, 0.01, 600)]
    ours = spent_record_privacy(terms, rounds=30).epsilon
    assert ours == pytest.approx(opacus.get_epsilon(1e-5), rel=0.01)
    assert ours >= opacus.get_epsilon(1e-5, alphas=[float(order) for order in RdpAccountant().orders]) * 0.999


def test_rate_and_steps_are_the_studys_alone() -> None:
    study = record_study(rows=1000)
    passes = study.plan.model_copy(update={"steps": None, "epochs": 3})
    terms = record_terms(study.model_copy(update={"plan": passes}))
    assert terms is not None
    assert (terms.rate, terms.steps) == (0.01, 300)
    small = record_terms(record_study(rows=5))
    assert small is not None
    assert small.rate == 1.0


def test_a_study_that_costs_more_than_it_promises_is_refused() -> None:
    check_privacy(aggregation_terms(record_study(epsilon=1.0), digest_of(1)))
    with pytest.raises(OperatorError) as refused:
        check_privacy(aggregation_terms(record_study(epsilon=0.1), digest_of(1)))
    assert refused.value.code == "study.privacy_overspent"


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"standardise": "local"}},
        {"data": {"missing": "impute-mean"}},
        {"privacy": {"epsilon": 1.0, "delta": 1e-5, "l2_clip": 1.0, "noise_multiplier": 1.0}},
    ],
)
def test_what_lets_a_row_past_the_noise_cannot_be_asked_with_it(changes: dict[str, dict[str, object]]) -> None:
    content = record_study().model_dump()
    for name, change in changes.items():
        content[name] = (content[name] or {}) | change
    with pytest.raises(ValueError, match=r"record_privacy"):
        Study.model_validate(content)


def test_noise_has_the_deviation_that_is_accounted_and_never_comes_twice() -> None:
    dice = SecretDice(bytes(32))
    noise = np.concatenate([dice.whole_noise(50_001, 1.5 * UNITS) for _ in range(4)]) / UNITS
    assert np.std(noise) == pytest.approx(1.5, rel=0.01)
    assert abs(noise.mean()) < 5 * 1.5 / 447
    for level, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert np.mean(np.abs(noise) < 1.5 * level) == pytest.approx(share, abs=0.005)
    assert len(np.unique(noise)) > 199_000


def test_each_row_takes_part_by_its_own_chance() -> None:
    dice = SecretDice(bytes(32))
    counts = np.zeros(1001)
    for _ in range(400):
        counts[dice.choose(1001, 0.1)] += 1
    assert counts.sum() == pytest.approx(0.1 * 400 * 1001, rel=0.02)
    # Binomial: 400 x 0.1 x 0.9.
    assert counts.var() == pytest.approx(36, rel=0.2)
    assert len(dice.choose(7, 1.0)) == 7


def test_a_step_that_no_row_takes_part_in_is_noise_alone() -> None:
    by_row = RowGradients(lambda vector, rows: vector.sum() * rows[:, 0], 3, torch.device("cpu"))
    steps = PrivateSteps(by_row, RecordTerms(1, 1e-5, 2.0, 1e-12, 1), 1.0, SecretDice(bytes(32)))
    gradient = steps.gradient(torch.zeros(3), torch.ones(10, 2))
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_rounds_differ_although_the_plans_seed_is_the_same() -> None:
    trainer = private_trainer(logistic(5))
    rows = trainer.batch(*rows_of(50))
    first, second = (trainer.train(np.zeros(6, np.float32), rows, round_number=1) for _ in range(2))
    assert not np.array_equal(first, second)


def test_it_learns_under_noise() -> None:
    trainer = private_trainer(logistic(5), learning_rate=1.0)
    inputs, targets = rows_of(2000)
    rows = trainer.batch(inputs, targets)
    update = trainer.train(np.zeros(6, np.float32), rows, round_number=1)
    words = trainer.score(update, rows, limit=1 << 20)
    assert words["correct"] / words["evaluated"] > 0.9


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "cnn",
        pytest.param("lstm", marks=pytest.mark.slow),
        "gru",
        pytest.param("transformer", marks=pytest.mark.slow),
    ],
)
def test_gradients_by_row_are_each_rows_own(name: str) -> None:
    """Also for layers whose kernels cannot take rows side by side."""
    model = parse_model(exported(name, "torchscript"))
    width = int(np.prod([size or 1 for size in model.row_shape]))
    trainer = private_trainer(exported(name, "torchscript"))
    trainer.rehearse(width)
    dice = np.random.default_rng(5)
    batch = trainer.batch(dice.normal(size=(3, width)).astype(np.float32), np.array([0, 1, 1], np.float32))
    packed = torch.cat((batch.inputs.reshape(3, -1), batch.targets.reshape(-1, 1)), dim=1)
    by_row = trainer._by_row
    assert by_row is not None
    together = by_row.bounded_sum(trainer.graph.vector, packed, 0.5)
    apart = torch.zeros_like(together)
    for number in range(3):
        trainer.graph.gradient.zero_()
        trainer._losses(
            trainer.graph.run(batch.inputs[number : number + 1]), batch.targets[number : number + 1]
        ).sum().backward()
        apart += whole_units(trainer.graph.gradient.unsqueeze(0), 0.5).sum(dim=0)
    scale = float(apart.abs().max())
    np.testing.assert_allclose(together.numpy() / scale, apart.numpy() / scale, atol=1e-3)


def test_a_model_of_many_parameters_is_taken_in_pieces() -> None:
    trainer = private_trainer(wide(100_000, width=5), RecordTerms(10, 1e-5, 1.0, 1.0, 1))
    by_row = trainer._by_row
    assert by_row is not None
    assert by_row._chunk < 50
    rows = trainer.batch(*rows_of(50))
    assert np.isfinite(trainer.train(parse_model(wide(100_000, width=5)).parameters, rows, round_number=1)).all()
