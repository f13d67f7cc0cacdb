"""Operators that are layers: products, convolutions, pooling, normalisation, dropout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch.nn import functional

from agent.training.operators.call import Call, Operator, Tensor, together


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    a = a.t() if call.integer("transA") else a
    b = b.t() if call.integer("transB") else b
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def _matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(*together(a, b))


def _spatial_pads(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, also where the model says SAME or VALID."""
    dimensions = len(kernel)
    pads = call.integers("pads", [0] * (2 * dimensions)) or []
    mode = call.text("auto_pad", "NOTSET")
    if mode in {"NOTSET", ""}:
        return pads[:dimensions], pads[dimensions:]
    if mode == "VALID":
        return [0] * dimensions, [0] * dimensions
    strides = call.integers("strides", [1] * dimensions) or []
    dilations = call.integers("dilations", [1] * dimensions) or []
    before, after = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


def _symmetric(x: Tensor, before: list[int], after: list[int], *, filling: float) -> tuple[Tensor, list[int]]:
    """Leave symmetric padding to the layer; do the rest by hand."""
    if before == after:
        return x, before
    flat = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
    return functional.pad(x, flat, value=filling), [0] * len(before)


_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX_POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
_AVERAGE_POOLS: Mapping[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


def _of_rank(call: Call, table: Mapping[int, Callable[..., Tensor]], dimensions: int) -> Callable[..., Tensor]:
    if dimensions not in table:
        raise call.unsupported(f"{dimensions} spatial axes")
    return table[dimensions]


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    x, padding = _symmetric(x, *_spatial_pads(call, x, kernel), filling=0.0)
    return _of_rank(call, _CONVOLUTIONS, len(kernel))(
        x,
        weight,
        bias,
        stride=call.integers("strides", [1] * len(kernel)),
        padding=padding,
        dilation=call.integers("dilations", [1] * len(kernel)),
        groups=call.integer("group", 1),
    )


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = list(weight.shape[2:])
    pads = call.integers("pads", [0] * (2 * len(kernel))) or []
    before, after = pads[: len(kernel)], pads[len(kernel) :]
    if before != after or "output_shape" in call.attributes or call.text("auto_pad", "NOTSET") != "NOTSET":
        raise call.unsupported("padding that differs between the two sides")
    return _of_rank(call, _TRANSPOSED, len(kernel))(
        x,
        weight,
        bias,
        stride=call.integers("strides", [1] * len(kernel)),
        padding=before,
        output_padding=call.integers("output_padding", [0] * len(kernel)),
        groups=call.integer("group", 1),
        dilation=call.integers("dilations", [1] * len(kernel)),
    )


def _max_pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.integers("kernel_shape") or []
    before, after = _spatial_pads(call, x, kernel)
    if any(2 * amount > width for amount, width in zip(before, kernel, strict=True)):
        raise call.unsupported("padding wider than half of the window")
    x, padding = _symmetric(x, before, after, filling=-torch.inf)
    return _of_rank(call, _MAX_POOLS, len(kernel))(
        x,
        kernel,
        stride=call.integers("strides", [1] * len(kernel)),
        padding=padding,
        dilation=call.integers("dilations", [1] * len(kernel)),
        ceil_mode=bool(call.integer("ceil_mode")),
    )


def _average_pool(call: Call, x: Tensor) -> Tensor:
    kernel = call.integers("kernel_shape") or []
    before, after = _spatial_pads(call, x, kernel)
    if before != after or any(item != 1 for item in call.integers("dilations", [1]) or []):
        raise call.unsupported("padding that differs between the two sides, or dilation")
    return _of_rank(call, _AVERAGE_POOLS, len(kernel))(
        x,
        kernel,
        stride=call.integers("strides", [1] * len(kernel)),
        padding=before,
        ceil_mode=bool(call.integer("ceil_mode")),
        count_include_pad=bool(call.integer("count_include_pad")),
    )


def _global_average_pool(_: Call, x: Tensor) -> Tensor:
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def _global_max_pool(_: Call, x: Tensor) -> Tensor:
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


def _batch_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """In training: batch statistics, and the running ones (parts of the flat vector) move in place."""
    return functional.batch_norm(
        x,
        mean,
        variance,
        scale,
        bias,
        training=call.training,
        # ONNX weighs the old value, torch the new one.
        momentum=1.0 - call.number("momentum", 0.9),
        eps=call.number("epsilon", 1e-5),
    )


def _layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = call.integer("axis", -1) % x.dim()
    return functional.layer_norm(x, tuple(x.shape[axis:]), scale, bias, call.number("epsilon", 1e-5))


def _instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.number("epsilon", 1e-5))


def _dropout(call: Call, x: Tensor, ratio: Tensor | None = None, _: Tensor | None = None) -> Tensor:
    share = 0.5 if ratio is None else float(ratio.item())
    return functional.dropout(x, share, training=call.training)


def _softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, dim=call.integer("axis", -1))


def _log_softmax(call: Call, x: Tensor) -> Tensor:
    return torch.log_softmax(x, dim=call.integer("axis", -1))


LAYERS: Mapping[str, Operator] = MappingProxyType(
    {
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_normalization,
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Dropout": _dropout,
        "Gemm": _gemm,
        "GlobalAveragePool": _global_average_pool,
        "GlobalMaxPool": _global_max_pool,
        "InstanceNormalization": _instance_normalization,
        "LayerNormalization": _layer_normalization,
        "LogSoftmax": _log_softmax,
        "MatMul": _matmul,
        "MaxPool": _max_pool,
        "Softmax": _softmax,
    }
)
