"""A model run by our own code learns exactly as torch's own module would."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from agent.training.graph import TorchGraph
from agent.training.head import find_head
from agent.training.operators.call import Tensor
from agent.training.optimiser import Optimiser
from agent.trust.model import parse_model
from agent.trust.study import TrainingPlan
from tests.unit.training.zoo import ZOO, exported, module_of, rows_of


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ZOO if name != "resnet18"])
def test_gradients_and_running_statistics_are_torchs(name: str) -> None:
    model = parse_model(exported(name, "dynamo"))
    graph = TorchGraph(model)
    graph.set_training(True)
    module = module_of(name).train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.eval()  # an inference-mode export holds no dropout
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    rows = rows_of(name, 6)
    module(rows).square().mean().backward()
    graph.run(rows).square().mean().backward()
    expected = dict(module.named_parameters())
    for slot in model.slots:
        if not slot.statistic:
            want, got = expected[slot.name].grad, graph.gradient[slot.range].view(slot.shape)
            assert torch.allclose(got, want, rtol=1e-3, atol=1e-6), slot.name
    state = module.state_dict()
    for slot in model.slots:
        if slot.statistic:
            assert torch.allclose(graph.parameters[slot.name], state[slot.name], rtol=1e-4, atol=1e-6)


def test_dropout_drops_in_training_only_and_by_the_models_share() -> None:
    graph = TorchGraph(parse_model(exported("mlp-norm-dropout", "torchscript-training")))
    rows = rows_of("mlp-norm-dropout", 64)
    with torch.no_grad():
        assert torch.equal(graph.run(rows), graph.run(rows))
        graph.set_training(True)
        graph.parameters["1.running_mean"].zero_()
        assert not torch.equal(graph.run(rows), graph.run(rows))


def test_batch_statistics_are_used_and_running_ones_move() -> None:
    graph = TorchGraph(parse_model(exported("mlp-norm-dropout", "torchscript-training")))
    rows = rows_of("mlp-norm-dropout", 64)
    mean, variance = graph.parameters["1.running_mean"].clone(), graph.parameters["1.running_var"].clone()
    hidden = functional.linear(rows, graph.parameters["0.weight"], graph.parameters["0.bias"]).detach()
    graph.set_training(True)
    graph.run(rows).sum().backward()
    expected_mean, expected_variance = 0.9 * mean + 0.1 * hidden.mean(0), 0.9 * variance + 0.1 * hidden.var(0)
    assert torch.allclose(graph.parameters["1.running_mean"], expected_mean, atol=1e-6)
    assert torch.allclose(graph.parameters["1.running_var"], expected_variance, atol=1e-6)
    assert graph.trainable is not None
    assert not graph.gradient[graph.trainable == 0].any()


@pytest.mark.parametrize(
    ("plan", "reference"),
    [
        ({"optimiser": "sgd"}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ({"optimiser": "sgd", "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (
            {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        ({"optimiser": "adam"}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ({"optimiser": "adam", "weight_decay": 0.01}, lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01)),
        ({"optimiser": "adamw", "weight_decay": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01)),
    ],
)
def test_optimisers_step_as_torchs_do(plan: dict[str, object], reference: object) -> None:
    ours = torch.linspace(-1, 1, 7)
    theirs = ours.clone().requires_grad_()
    optimiser = Optimiser(_plan(**plan), ours, None)
    other = reference([theirs])  # type: ignore[operator]  # one of the lambdas above
    for step in range(5):
        gradient = torch.sin(torch.arange(7) + step)
        theirs.grad = gradient.clone()
        other.step()
        optimiser.step(gradient.clone())
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_decay_and_the_proximal_pull_leave_running_statistics_alone() -> None:
    for kind in ("sgd", "adam", "adamw"):
        vector = torch.tensor([1.0, 1.0])
        optimiser = Optimiser(
            _plan(optimiser=kind, weight_decay=0.5, proximal=1.0), vector, trainable=torch.tensor([1.0, 0.0])
        )
        for _ in range(3):
            optimiser.step(torch.tensor([0.1, 0.0]))
        assert vector[1] == 1.0
        assert vector[0] < 1.0


def test_the_proximal_term_pulls_towards_the_model_received() -> None:
    def end(proximal: float) -> float:
        vector = torch.zeros(1)
        optimiser = Optimiser(_plan(proximal=proximal), vector, None)
        for _ in range(20):
            optimiser.step(torch.tensor([-1.0]))
        return float(vector)

    assert end(0.0) == pytest.approx(2.0)
    # The pull of mu (w - w0) meets the gradient at w = 1 / mu.
    assert end(5.0) == pytest.approx(0.2, abs=1e-3)


def _plan(**changes: object) -> TrainingPlan:
    values: dict[str, object] = {"learning_rate": 0.1, "batch_size": 4, "steps": 1}
    return TrainingPlan.model_validate(values | changes)


@pytest.mark.parametrize("name", ["mlp", "mlp-norm-dropout", "cnn"])
def test_losses_are_taken_from_logits_whatever_the_graph_ends_in(name: str) -> None:
    model = parse_model(exported(name, "torchscript"))
    head = find_head(model.graph)
    rows = rows_of(name, 8)
    targets = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    with torch.no_grad():
        logs = head.log_chances(TorchGraph(model, bypass=head.bypass).run(rows), 8)
        output = module_of(name)(rows)
    chosen = -logs[torch.arange(8), targets]
    assert torch.allclose(chosen, _expected_loss(name, output, targets), atol=1e-5)


def _expected_loss(name: str, output: Tensor, targets: Tensor) -> Tensor:
    if name == "cnn":
        return functional.cross_entropy(output, targets, reduction="none")
    if name == "mlp":
        return functional.binary_cross_entropy_with_logits(output[:, 0], targets.float(), reduction="none")
    return functional.binary_cross_entropy(output[:, 0], targets.float(), reduction="none")
