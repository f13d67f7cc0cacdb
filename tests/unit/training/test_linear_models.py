"""Models as skl2onnx writes them: weights in attributes, probabilities at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from agent.core.errors import OperatorError
from agent.training.graph import TorchGraph
from agent.training.trainer import Trainer
from agent.trust.model import parse_model
from tests.unit.training.studies import plan_of
from tests.unit.training.test_round_trip import onnx_outputs

Model = Callable[[], Any]
DICE = np.random.default_rng(5)
ROWS = DICE.normal(size=(120, 4)).astype(np.float32)
TWO = (ROWS[:, 0] + 0.5 * DICE.normal(size=120) > 0).astype(int)
THREE = np.digitize(ROWS[:, 1], [-0.5, 0.5])


def _mlp() -> Any:  # noqa: ANN401 - scikit-learn has no types here
    return MLPClassifier((6,), max_iter=3, tol=10, n_iter_no_change=1, random_state=0)


CASES: dict[str, tuple[Model, np.ndarray[Any, Any], int]] = {
    "logistic": (LogisticRegression, TWO, 10),
    "three classes": (LogisticRegression, THREE, 15),
    "standardised": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), TWO, 10),
    "network": (_mlp, TWO, 37),
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Each model as a file."""
    options = {"zipmap": False}
    made = {name: make().fit(ROWS, labels) for name, (make, labels, _) in CASES.items()}
    return {
        name: to_onnx(model, ROWS[:1], options=options, target_opset=18).SerializeToString()
        for name, model in made.items()
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(CASES))
def test_weights_and_probabilities_survive(name: str, files: dict[str, bytes]) -> None:
    model = parse_model(files[name])
    assert len(model.parameters) == CASES[name][2]
    weights = model.parameters + np.float32(0.125)
    written = model.with_parameters(weights)
    assert parse_model(written).parameters.tobytes() == weights.tobytes()
    graph = TorchGraph(model)
    graph.load(weights)
    with torch.no_grad():
        ours = graph.run(torch.from_numpy(ROWS)).numpy()
    assert ours == pytest.approx(onnx_outputs(written, ROWS)[1], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(CASES))
def test_they_learn(name: str, files: dict[str, bytes]) -> None:
    model = parse_model(files[name])
    trainer = Trainer(model, plan_of(loss="cross-entropy", learning_rate=0.2, steps=60))
    labels = CASES[name][1].astype(np.float32)
    rows = trainer.batch(ROWS, labels)
    start = np.random.default_rng(1).normal(0, 0.3, len(model.parameters)).astype(np.float32)
    before, after = (
        trainer.score(weights, rows, limit=1000)["loss"]
        for weights in (start, start + trainer.train(start, rows, round_number=1))
    )
    assert after < 0.9 * before


@pytest.mark.filterwarnings("ignore")
def test_a_linear_regression_learns() -> None:
    file = to_onnx(LinearRegression().fit(ROWS, TWO), ROWS[:1], target_opset=18).SerializeToString()
    model = parse_model(file)
    trainer = Trainer(model, plan_of(loss="mean-squared-error"))
    rows = trainer.batch(ROWS, TWO.astype(np.float32))
    start = np.zeros_like(model.parameters)
    update = trainer.train(start, rows, round_number=1)
    losses = [trainer.score(weights, rows, limit=1000)["loss"] for weights in (start, update)]
    assert losses[1] < 0.6 * losses[0]
    assert onnx_outputs(model.with_parameters(update), ROWS)[0][:, 0] == pytest.approx(
        ROWS @ update[:4] + update[4], abs=1e-5
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        (lambda: RandomForestClassifier(2).fit(ROWS, TWO), "model.untrainable", "decision trees"),
        (lambda: LogisticRegression().fit(ROWS, TWO), "model.operator", "ZipMap"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(model: Model, code: str, words: str) -> None:
    with pytest.raises(OperatorError, match=words) as caught:
        parse_model(to_onnx(model(), ROWS[:1], target_opset=18).SerializeToString())
    assert caught.value.code == code
