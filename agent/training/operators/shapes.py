"""Operators that make, cut, join and reshape tensors, and that reduce them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from agent.training.operators.call import Call, Operator, Tensor, check_elements, integers_of, together


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """A constant, copied: what lies in a model file is read-only."""
    return torch.from_numpy(np.array(array))


def _constant(call: Call) -> Tensor:
    for name, kind in (("value_float", torch.float32), ("value_floats", torch.float32)):
        if name in call.attributes:
            return torch.tensor(call.attributes[name], dtype=kind)
    for name in ("value_int", "value_ints"):
        if name in call.attributes:
            return torch.tensor(call.attributes[name], dtype=torch.int64)
    value = call.attributes.get("value")
    if not isinstance(value, np.ndarray):
        raise call.unsupported("a value that is not a number")
    return tensor_of(value)


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    sizes = integers_of(shape) or []
    check_elements(call, sizes)
    value = call.attributes.get("value")
    filling = tensor_of(value).reshape(-1)[0] if isinstance(value, np.ndarray) else torch.tensor(0.0)
    return filling.expand(sizes).clone()


def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = start.item(), limit.item(), delta.item()
    check_elements(call, [int(abs(last - first) / abs(step)) + 1] if step else [0])
    return torch.arange(first, last, step, dtype=start.dtype)


def _shape(call: Call, x: Tensor) -> Tensor:
    end = call.attributes.get("end")
    sizes = list(x.shape)[call.integer("start") : None if end is None else call.integer("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers_of(shape) or []
    if not call.integer("allowzero"):
        sizes = [x.shape[position] if size == 0 else size for position, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


def _axes(call: Call, tensor: Tensor | None) -> list[int] | None:
    """Axes from the input (newer versions) or from the attribute (older ones)."""
    return integers_of(tensor) if tensor is not None else call.integers("axes")


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(call, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(call, axes) or []
    rank = x.dim() + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call, x: Tensor) -> Tensor:
    order = call.integers("perm") or list(range(x.dim()))[::-1]
    return x.permute(order)


def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(together(*inputs), dim=call.integer("axis"))


def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.integer("axis")
    parts = integers_of(sizes) or call.integers("split")
    if parts is None:
        count = call.integer("num_outputs", call.outputs)
        return tuple(torch.split(x, -(-x.shape[axis] // count), dim=axis))
    return tuple(torch.split(x, parts, dim=axis))


def _slice(
    call: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = integers_of(starts) or [], integers_of(ends) or []
    chosen = integers_of(axes) or list(range(len(first)))
    strides = integers_of(steps) or [1] * len(first)
    index = [slice(None)] * x.dim()
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        if step < 1:
            raise call.unsupported("a negative step")
        index[axis] = slice(_clamped(start, x.shape[axis]), _clamped(end, x.shape[axis]), step)
    return x[tuple(index)]


def _clamped(position: int, size: int) -> int:
    """A slice's end within 0..size; "to the end" is written as the greatest integer there is."""
    return min(max(position + size if position < 0 else position, 0), size)


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.integer("axis") % max(x.dim(), 1)
    indices = indices.to(device=x.device, dtype=torch.int64)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    chosen = torch.index_select(x, axis, indices.reshape(-1))
    return chosen.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = torch.broadcast_shapes(x.shape, tuple(integers_of(shape) or []))
    check_elements(call, sizes)
    return x.expand(sizes)


def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    times = integers_of(repeats) or []
    check_elements(call, [size * count for size, count in zip(x.shape, times, strict=True)])
    return x.repeat(times)


def _pad(call: Call, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts = integers_of(pads) or []
    chosen = [axis % x.dim() for axis in integers_of(axes) or range(x.dim())]
    before, after = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(chosen):
        before[axis], after[axis] = amounts[position], amounts[position + len(chosen)]
    check_elements(call, [size + sum(both) for size, *both in zip(x.shape, before, after, strict=True)])
    flat = [amount for axis in reversed(range(x.dim())) for amount in (before[axis], after[axis])]
    mode = call.text("mode", "constant")
    if mode == "constant":
        return functional.pad(x, flat, value=0.0 if value is None else value.item())
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]
    modes = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if mode not in modes:
        raise call.unsupported(f"the mode {mode!r}")
    return functional.pad(x, flat, mode=modes[mode])


def _trilu(call: Call, x: Tensor, diagonal: Tensor | None = None) -> Tensor:
    shift = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, shift) if call.integer("upper", 1) else torch.tril(x, shift)


def _reduction(function: Callable[..., Tensor]) -> Operator:
    def reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _axes(call, axes)
        if not chosen:
            if call.integer("noop_with_empty_axes"):
                return x
            chosen = list(range(x.dim()))
        return function(x, dim=tuple(chosen), keepdim=bool(call.integer("keepdims", 1)))

    return reduce


def _arg_max(call: Call, x: Tensor) -> Tensor:
    return torch.argmax(x, dim=call.integer("axis"), keepdim=bool(call.integer("keepdims", 1)))


def _resize(
    call: Call, x: Tensor, _: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    shape = integers_of(sizes)
    if shape is None:
        factors = [] if scales is None else scales.reshape(-1).tolist()
        shape = [int(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    check_elements(call, shape)
    if shape[:2] != list(x.shape[:2]) or call.integer("antialias"):
        raise call.unsupported("other axes than the spatial ones, or with antialiasing")
    return functional.interpolate(x, size=shape[2:], **_resize_mode(call, x.dim() - 2))


def _resize_mode(call: Call, spatial: int) -> dict[str, Any]:
    """Torch's words for ONNX's; only pairs that mean the same."""
    mode = call.text("mode", "nearest")
    coordinates = call.text("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        if coordinates == "asymmetric" and call.text("nearest_mode", "round_prefer_floor") == "floor":
            return {"mode": "nearest"}
        raise call.unsupported(f"the mode 'nearest' in {coordinates!r} coordinates")
    names = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}
    corners = {"align_corners": True, "half_pixel": False, "pytorch_half_pixel": False}
    if (mode, spatial) not in names or coordinates not in corners:
        raise call.unsupported(f"the mode {mode!r} in {coordinates!r} coordinates")
    return {"mode": names[mode, spatial], "align_corners": corners[coordinates]}


SHAPES: Mapping[str, Operator] = MappingProxyType(
    {
        "ArgMax": _arg_max,
        "Concat": _concat,
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Expand": _expand,
        "Flatten": _flatten,
        "Gather": _gather,
        "Pad": _pad,
        "Range": _range,
        "ReduceMax": _reduction(torch.amax),
        "ReduceMean": _reduction(torch.mean),
        "ReduceMin": _reduction(torch.amin),
        "ReduceSum": _reduction(torch.sum),
        "Reshape": _reshape,
        "Resize": _resize,
        "Shape": _shape,
        "Size": lambda _, x: torch.tensor(x.numel(), dtype=torch.int64),
        "Slice": _slice,
        "Split": _split,
        "Squeeze": _squeeze,
        "Tile": _tile,
        "Transpose": _transpose,
        "Trilu": _trilu,
        "Unsqueeze": _unsqueeze,
    }
)
