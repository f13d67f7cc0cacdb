"""LSTM, GRU and plain recurrent layers, on torch's own kernels: a loop in Python is five to ten times slower.

ONNX keeps a layer's weights as W (directions, gates x hidden, inputs), R (directions, gates x hidden, hidden) and
B (directions, 2 x gates x hidden), with the gates in another order than torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from agent.training.operators.call import Call, Operator, Tensor

_GATES = MappingProxyType(
    {
        "LSTM": (0, 2, 3, 1),  # i o f c -> i f g o
        "GRU": (1, 0, 2),  # z r h -> r z n
        "RNN": (0,),
    }
)
_ACTIVATIONS = MappingProxyType(
    {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]},
)


def _check_form(call: Call, lengths: Tensor | None, peepholes: Tensor | None) -> int:
    """Return the number of directions, after refusing what torch's kernels cannot do."""
    directions = {"forward": 1, "bidirectional": 2}.get(call.text("direction", "forward"))
    if directions is None:
        raise call.unsupported("the direction 'reverse'")
    chosen = [item.decode() if isinstance(item, bytes) else str(item) for item in _listed(call, "activations")]
    if chosen and chosen != _ACTIVATIONS[call.name] * directions:
        raise call.unsupported("other activations than the usual ones")
    if lengths is not None or peepholes is not None:
        raise call.unsupported("sequence lengths or peepholes")
    if "clip" in call.attributes or call.integer("input_forget") or call.integer("layout"):
        raise call.unsupported("clipping, coupled gates, or rows before time steps")
    if call.name == "GRU" and not call.integer("linear_before_reset"):
        raise call.unsupported("the reset gate before the recurrent product (linear_before_reset = 0)")
    return directions


def _listed(call: Call, name: str) -> list[object]:
    value = call.attributes.get(name, [])
    return list(value) if isinstance(value, (list, tuple)) else []


def _reordered(call: Call, tensor: Tensor, hidden: int) -> Tensor:
    """Put the gates, along the first axis, into torch's order."""
    parts = torch.split(tensor, hidden)
    return torch.cat([parts[gate] for gate in _GATES[call.name]])


def _flat_weights(call: Call, w: Tensor, r: Tensor, b: Tensor | None, hidden: int) -> list[Tensor]:
    weights: list[Tensor] = []
    for direction in range(w.shape[0]):
        weights += [_reordered(call, w[direction], hidden), _reordered(call, r[direction], hidden)]
        if b is not None:
            half = b.shape[1] // 2
            weights += [_reordered(call, b[direction, :half], hidden), _reordered(call, b[direction, half:], hidden)]
    return weights


def _recurrent(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    state: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Shapes: x (time, rows, inputs); y (time, directions, rows, hidden); states (directions, rows, hidden)."""
    directions = _check_form(call, lengths, peepholes)
    hidden = r.shape[2]
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    first = zeros if state is None else state.to(x.device)
    start = (first, zeros if cell is None else cell.to(x.device)) if call.name == "LSTM" else first
    kernel = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[call.name]
    weights = _flat_weights(call, w, r, b, hidden)
    # Arguments: has biases, one layer, no dropout, training, both directions, rows first.
    y, *states = kernel(x, start, weights, b is not None, 1, 0.0, call.training, directions == 2, False)
    y = y.reshape(x.shape[0], x.shape[1], directions, hidden).transpose(1, 2)
    return (y, *states)


RECURRENT: Mapping[str, Operator] = MappingProxyType(dict.fromkeys(_GATES, _recurrent))
