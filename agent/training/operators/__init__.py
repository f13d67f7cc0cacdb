"""ONNX operators as torch functions: one table, with exactly the names that `agent.trust.model_checks` allows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent.training.operators.call import Call, Operator, Tensor
from agent.training.operators.layers import LAYERS
from agent.training.operators.linear_models import LINEAR_MODELS
from agent.training.operators.pointwise import POINTWISE
from agent.training.operators.recurrent import RECURRENT
from agent.training.operators.shapes import SHAPES

OPERATORS: Mapping[str, Operator] = MappingProxyType({**POINTWISE, **SHAPES, **LAYERS, **RECURRENT, **LINEAR_MODELS})

__all__ = ["OPERATORS", "Call", "Operator", "Tensor"]
