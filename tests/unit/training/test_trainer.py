from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from unittest.mock import patch

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from agent.core.errors import OperatorError
from agent.data.quality import DeclinedError
from agent.training import trainer as module
from agent.training.trainer import Batch, Trainer, round_seed
from agent.trust.metrics import cohort_metrics
from agent.trust.model import FloatVector, parse_model
from tests.unit.training.graphs import logistic, wide
from tests.unit.training.studies import plan_of
from tests.unit.training.zoo import ZOO, exported

ROWS = 200


def _table(width: int = 5, rows: int = ROWS) -> tuple[FloatVector, FloatVector]:
    """Rows whose outcome follows the first two inputs, with noise."""
    dice = np.random.default_rng(11)
    inputs = dice.normal(size=(rows, width)).astype(np.float32)
    chance = 1 / (1 + np.exp(-(2 * inputs[:, 0] - inputs[:, 1])))
    return inputs, (dice.random(rows) < chance).astype(np.float32)


def _trainer(
    plan: Mapping[str, object] = MappingProxyType({}), *, model: bytes | None = None
) -> tuple[Trainer, Batch, FloatVector]:
    parsed = parse_model(logistic(5) if model is None else model)
    trainer = Trainer(parsed, plan_of(**plan))
    width = int(np.prod([size or 1 for size in parsed.row_shape]))
    return trainer, trainer.batch(*_table(width)), parsed.parameters


def _loss(trainer: Trainer, rows: Batch, parameters: FloatVector) -> float:
    words = trainer.score(parameters, rows, limit=1 << 20)
    return words["loss"] / words["evaluated"]


@pytest.mark.parametrize(
    ("model", "plan"),
    [
        (logistic(5), {}),
        (logistic(5, ending="Identity"), {}),
        (logistic(5, ending="Softmax", columns=2), {"loss": "cross-entropy"}),
        (logistic(5, ending="LogSoftmax", columns=3), {"loss": "cross-entropy"}),
        (logistic(5, ending="Identity", columns=2), {"loss": "binary-cross-entropy"}),
        (logistic(5, ending="Identity"), {"loss": "mean-squared-error"}),
        (logistic(5), {"loss": "mean-squared-error", "optimiser": "adam"}),
        (logistic(5), {"optimiser": "adamw", "weight_decay": 0.01}),
        (logistic(5), {"momentum": 0.9, "proximal": 0.1}),
        (wide(1000, width=5), {"optimiser": "adam", "learning_rate": 0.01}),
    ],
)
def test_training_lowers_the_loss(model: bytes, plan: dict[str, object]) -> None:
    trainer, rows, parameters = _trainer(plan, model=model)
    before = _loss(trainer, rows, parameters)
    update = trainer.train(parameters, rows, round_number=1)
    assert _loss(trainer, rows, parameters + update) < 0.8 * before


@pytest.mark.parametrize("name", ["mlp-norm-dropout", "cnn", "ecg", "lstm", "bilstm", "gru", "rnn", "transformer"])
def test_models_of_every_kind_learn(name: str) -> None:
    kind = "torchscript-training" if name == "mlp-norm-dropout" else "torchscript"
    plan = {"optimiser": "adam", "learning_rate": 0.01, "batch_size": 50, "epochs": 8}
    trainer, _, parameters = _trainer(plan, model=exported(name, kind))
    inputs, labels = _table(int(np.prod(ZOO[name].row)))
    rows = trainer.batch(inputs + labels[:, None] - 0.5, labels)
    before = _loss(trainer, rows, parameters)
    assert _loss(trainer, rows, parameters + trainer.train(parameters, rows, round_number=1)) < 0.95 * before


def test_a_map_of_pixels_learns() -> None:
    trainer, _, parameters = _trainer(
        {"optimiser": "adam", "learning_rate": 0.01, "batch_size": 2, "epochs": 5},
        model=exported("unet", "torchscript"),
    )
    dice = np.random.default_rng(2)
    images = dice.normal(size=(6, 1024)).astype(np.float32)
    rows = trainer.batch(images, (images > 0).astype(np.float32))
    before = _loss(trainer, rows, parameters)
    assert _loss(trainer, rows, parameters + trainer.train(parameters, rows, round_number=1)) < 0.9 * before


def test_the_same_round_gives_the_same_update_bit_for_bit() -> None:
    updates = []
    for round_number in (1, 1, 2):
        trainer, rows, parameters = _trainer(model=exported("mlp-norm-dropout", "torchscript-training"))
        updates.append(trainer.train(parameters, rows, round_number=round_number).tobytes())
    assert updates[0] == updates[1] != updates[2]


def test_an_update_starts_from_the_model_received_not_from_the_last_one() -> None:
    trainer, rows, parameters = _trainer()
    first = trainer.train(parameters, rows, round_number=1)
    trainer.train(parameters + 5, rows, round_number=1)
    assert trainer.train(parameters, rows, round_number=1).tobytes() == first.tobytes()


def test_seeds_differ_by_plan_and_round_only() -> None:
    seeds = [round_seed(plan, number) for plan in (1, 11) for number in (1, 2, 11)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"epochs": 2, "batch_size": 64}, [64, 64, 64, 8] * 2),
        ({"steps": 3, "batch_size": 64}, [64, 64, 64]),
        ({"steps": 6, "batch_size": 64}, [64, 64, 64, 8, 64, 64]),
        ({"steps": 2, "batch_size": 500}, [200, 200]),
    ],
)
def test_epochs_and_steps_are_what_they_say(plan: dict[str, object], expected: list[int]) -> None:
    trainer, rows, parameters = _trainer(plan)
    with patch.object(trainer.graph, "run", wraps=trainer.graph.run) as run:
        trainer.train(parameters, rows, round_number=1)
    assert [len(call.args[0]) for call in run.call_args_list] == expected


def test_an_epoch_uses_every_row_once() -> None:
    trainer, _, parameters = _trainer({"epochs": 1, "batch_size": 7})
    inputs = np.arange(ROWS * 5, dtype=np.float32).reshape(ROWS, 5)
    rows = trainer.batch(inputs, _table()[1])
    with patch.object(trainer.graph, "run", wraps=trainer.graph.run) as run:
        trainer.train(parameters * 0, rows, round_number=1)
    seen = [value for call in run.call_args_list for value in call.args[0][:, 0].tolist()]
    assert sorted(seen) == inputs[:, 0].tolist()
    assert seen != inputs[:, 0].tolist()


def test_a_single_last_row_does_not_break_batch_normalisation() -> None:
    trainer, rows, parameters = _trainer(
        {"epochs": 1, "batch_size": ROWS - 1}, model=exported("mlp-norm-dropout", "torchscript-training")
    )
    assert np.isfinite(trainer.train(parameters, rows, round_number=1)).all()


def test_scores_are_those_of_the_textbook() -> None:
    trainer, rows, parameters = _trainer({"histogram_bins": 1000})
    parameters = parameters + trainer.train(parameters, rows, round_number=1)
    inputs, labels = _table()
    chances = 1 / (1 + np.exp(-(inputs @ parameters[:5] + parameters[5])))
    metrics = cohort_metrics(trainer.score(parameters, rows, limit=1000), bins=1000)
    assert metrics.evaluated == ROWS
    assert metrics.accuracy == pytest.approx(((chances > 0.5) == labels).mean())
    assert metrics.brier == pytest.approx(np.square(chances - labels).mean(), abs=1e-6)
    assert metrics.auc == pytest.approx(roc_auc_score(labels, chances), abs=2e-3)
    likelihood = np.where(labels > 0.5, chances, 1 - chances)
    assert metrics.loss == pytest.approx(-np.log(likelihood).mean(), abs=1e-6)


def test_scoring_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, rows, parameters = _trainer()
    whole = trainer.score(parameters + 0.1, rows, limit=1000)
    monkeypatch.setattr(module, "SCORING_ROWS", 7)
    assert trainer.score(parameters + 0.1, rows, limit=1000) == pytest.approx(whole)


def test_counts_beyond_the_cap_keep_their_ratios() -> None:
    trainer, rows, parameters = _trainer()
    whole, capped = (trainer.score(parameters + 0.1, rows, limit=limit) for limit in (1000, 50))
    assert capped["evaluated"] == 50
    assert capped == pytest.approx({name: value / 4 for name, value in whole.items()})


def test_one_row_cannot_move_the_loss_without_bound() -> None:
    trainer, _, parameters = _trainer()
    rows = trainer.batch(np.full((1, 5), 1000, np.float32), np.zeros(1, np.float32))
    assert trainer.score(parameters + 1, rows, limit=1000)["loss"] == 32.0


def test_a_sure_and_wrong_model_still_learns() -> None:
    # sigmoid(60) is 1.0 in float32: a loss computed from the probability has no gradient left.
    trainer, _, parameters = _trainer({"steps": 1})
    rows = trainer.batch(np.ones((8, 5), np.float32), np.zeros(8, np.float32))
    update = trainer.train(np.full_like(parameters, 10), rows, round_number=1)
    assert update == pytest.approx(np.full(6, -0.1), abs=1e-6)


def test_training_that_diverges_is_declined() -> None:
    trainer, _, parameters = _trainer(
        {"loss": "mean-squared-error", "learning_rate": 10}, model=logistic(5, ending="Identity")
    )
    rows = trainer.batch(np.full((20, 5), 1e10, np.float32), np.zeros(20, np.float32))
    with pytest.raises(DeclinedError) as caught:
        trainer.train(parameters + 1, rows, round_number=1)
    assert caught.value.code == "training.diverged"


@pytest.mark.parametrize(
    ("model", "width", "code"),
    [
        (logistic(5), 6, "model.wrong_width"),
        (exported("cnn", "torchscript"), 783, "model.wrong_width"),
        (logistic(5, columns=2, ending="Softmax"), 5, "model.output"),
    ],
)
def test_a_model_that_does_not_suit_the_study_fails_at_the_rehearsal(model: bytes, width: int, code: str) -> None:
    trainer = Trainer(parse_model(model), plan_of(loss="mean-squared-error"))
    with pytest.raises(OperatorError) as caught:
        trainer.rehearse(width)
    assert caught.value.code == code


def test_table_rows_take_the_form_of_the_models_input() -> None:
    trainer = Trainer(parse_model(exported("cnn", "torchscript")), plan_of(loss="cross-entropy"))
    inputs = np.arange(2 * 784, dtype=np.float32).reshape(2, 784)
    batch = trainer.batch(inputs, np.zeros(2, np.float32))
    assert tuple(batch.inputs.shape) == (2, 1, 28, 28)
    assert batch.inputs[1, 0, 1, 2] == 784 + 30
