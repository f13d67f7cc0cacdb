"""Operators of `ai.onnx.ml`: linear models as skl2onnx writes them, whose weights stand in attributes.

The graph hands these weights over as further inputs, so that they train like any others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch

from agent.training.operators.call import Call, Operator, Tensor


def _linear(x: Tensor, coefficients: Tensor, intercepts: Tensor | None) -> Tensor:
    """Scores, shape (rows, classes)."""
    x = x.to(torch.float32)
    scores = x @ coefficients.reshape(-1, x.shape[1]).t()
    return scores if intercepts is None else scores + intercepts


def _linear_classifier(
    call: Call, x: Tensor, coefficients: Tensor, intercepts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    scores = _linear(x, coefficients, intercepts)
    labels = call.attributes.get("classlabels_ints") or call.attributes.get("classlabels_strings") or ()
    if scores.shape[1] != len(cast("Sequence[object]", labels)):
        raise call.unsupported("one row of weights for two classes")
    transform = call.text("post_transform", "NONE")
    if transform == "LOGISTIC":
        result = torch.sigmoid(scores)
    elif transform == "SOFTMAX":
        result = torch.softmax(scores, dim=1)
    elif transform == "NONE":
        result = scores
    else:
        raise call.unsupported(f"the transform {transform!r}")
    return scores.argmax(dim=1), result


def _linear_regressor(call: Call, x: Tensor, coefficients: Tensor, intercepts: Tensor | None = None) -> Tensor:
    if call.text("post_transform", "NONE") != "NONE":
        raise call.unsupported("a transform")
    return _linear(x, coefficients, intercepts)


def _scaler(call: Call, x: Tensor) -> Tensor:
    offset, scale = (
        torch.tensor(call.attributes.get(name, [default]), dtype=torch.float32, device=x.device)
        for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    return (x.to(torch.float32) - offset) * scale


def _normalizer(call: Call, x: Tensor) -> Tensor:
    order = {"L1": 1.0, "L2": 2.0, "MAX": torch.inf}.get(call.text("norm", "MAX"))
    if order is None:
        raise call.unsupported("an unknown norm")
    size = torch.linalg.vector_norm(x, ord=order, dim=-1, keepdim=True)
    return x / torch.where(size == 0, torch.ones_like(size), size)


def _array_feature_extractor(_: Call, x: Tensor, indices: Tensor) -> Tensor:
    return torch.index_select(x, x.dim() - 1, indices.reshape(-1).to(device=x.device, dtype=torch.int64))


LINEAR_MODELS: Mapping[str, Operator] = MappingProxyType(
    {
        "ArrayFeatureExtractor": _array_feature_extractor,
        "LinearClassifier": _linear_classifier,
        "LinearRegressor": _linear_regressor,
        "Normalizer": _normalizer,
        "Scaler": _scaler,
    }
)
