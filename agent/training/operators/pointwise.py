"""Operators that work value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from types import MappingProxyType

import torch
from onnx import TensorProto
from torch.nn import functional

from agent.training.operators.call import Call, Operator, Tensor, together

TYPES = MappingProxyType(
    {
        TensorProto.FLOAT: torch.float32,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
        TensorProto.BOOL: torch.bool,
        TensorProto.UINT8: torch.uint8,
        TensorProto.INT8: torch.int8,
    }
)


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, a, b: function(*together(a, b))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda _, *inputs: reduce(function, together(*inputs))


def _divide(_: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    return torch.fmod(a, b) if call.integer("fmod") else torch.remainder(a, b)


def _power(_: Call, base: Tensor, exponent: Tensor) -> Tensor:
    base, exponent = together(base, exponent)
    return torch.pow(base, exponent).to(base.dtype)


def _cast(call: Call, x: Tensor) -> Tensor:
    kind = TYPES.get(call.integer("to"))
    if kind is None:
        raise call.unsupported("an element type other than float32, float64, integer or truth value")
    return x.to(kind)


def _clip(_: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x, low, high = together(x, low, high)
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(*together(condition, a, b))


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.text("approximate", "none"))


def _elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, alpha=call.number("alpha", 1.0))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.number("alpha", 1.67326319217681884765625)
    return call.number("gamma", 1.05070102214813232421875) * functional.elu(x, alpha=alpha)


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.number("alpha", 0.01))


def _prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0, 1)


POINTWISE: Mapping[str, Operator] = MappingProxyType(
    {
        "Abs": _unary(torch.abs),
        "Ceil": _unary(torch.ceil),
        "Cos": _unary(torch.cos),
        "Erf": _unary(torch.erf),
        "Exp": _unary(torch.exp),
        "Floor": _unary(torch.floor),
        "HardSwish": _unary(functional.hardswish),
        "Identity": _unary(lambda x: x),
        "Log": _unary(torch.log),
        "Mish": _unary(functional.mish),
        "Neg": _unary(torch.neg),
        "Not": _unary(torch.logical_not),
        "Reciprocal": _unary(torch.reciprocal),
        "Relu": _unary(torch.relu),
        "Round": _unary(torch.round),
        "Sigmoid": _unary(torch.sigmoid),
        "Sign": _unary(torch.sign),
        "Sin": _unary(torch.sin),
        "Softplus": _unary(functional.softplus),
        "Softsign": _unary(functional.softsign),
        "Sqrt": _unary(torch.sqrt),
        "Tanh": _unary(torch.tanh),
        "Add": _binary(torch.add),
        "And": _binary(torch.logical_and),
        "Equal": _binary(torch.eq),
        "Greater": _binary(torch.gt),
        "GreaterOrEqual": _binary(torch.ge),
        "Less": _binary(torch.lt),
        "LessOrEqual": _binary(torch.le),
        "Mul": _binary(torch.mul),
        "Or": _binary(torch.logical_or),
        "Sub": _binary(torch.sub),
        "CastLike": lambda _, x, like: x.to(like.dtype),
        "Max": _folded(torch.maximum),
        "Min": _folded(torch.minimum),
        "Sum": _folded(torch.add),
        "Cast": _cast,
        "Clip": _clip,
        "Div": _divide,
        "Elu": _elu,
        "Gelu": _gelu,
        "HardSigmoid": _hard_sigmoid,
        "LeakyRelu": _leaky_relu,
        "Mod": _modulo,
        "PRelu": _prelu,
        "Pow": _power,
        "Selu": _selu,
        "Where": _where,
    }
)
