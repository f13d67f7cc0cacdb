"""The models that studies bring: small ones of every kind, written in torch, exported in every way that people use."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn import functional

from agent.training.operators.call import Tensor

OPSET = 18


class _Block(nn.Module):  # type: ignore[misc]  # torch has no types here
    """ResNet's basic block (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.first(x)))
        return functional.relu(self.norm2(self.second(y)) + self.shortcut(x))


class _LastStep(nn.Module):  # type: ignore[misc]
    """A recurrent layer whose last step decides."""

    def __init__(self, kind: Callable[..., Any], *, directions: int = 1, layers: int = 1) -> None:
        super().__init__()
        self.layer = kind(6, 8, num_layers=layers, batch_first=True, bidirectional=directions == 2)
        self.head = nn.Linear(8 * directions, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class _Transformer(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(6, 16)
        self.position = nn.Parameter(torch.randn(1, 10, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(x) + self.position).mean(1))


class _UNet(nn.Module):  # type: ignore[misc]
    """Two levels down, two up: one by a transposed convolution, one by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = _stage(1, 8), _stage(8, 16), _stage(16, 32)
        self.up1, self.join1 = nn.ConvTranspose2d(32, 16, 2, 2), _stage(32, 16)
        self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 1))
        self.join2, self.head = _stage(16, 8), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(functional.max_pool2d(a, 2))
        y = self.up1(self.middle(functional.max_pool2d(b, 2)))
        y = self.up2(self.join1(torch.cat([y, b], 1)))
        return self.head(self.join2(torch.cat([y, a], 1)))


def _stage(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 1))


def _mlp_norm_dropout() -> nn.Module:
    layers = [nn.Linear(13, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def _cnn() -> nn.Module:
    body = [*_stage(1, 8), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 2))


def _resnet18() -> nn.Module:
    layers: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for outputs, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
        layers.append(_Block(width, outputs, stride))
        width = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))


def _ecg() -> nn.Module:
    body = [nn.Conv1d(12, 16, 7, padding=3), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)]
    body += [nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.AdaptiveAvgPool1d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32, 1))


@dataclass(frozen=True, slots=True)
class Specimen:
    """A model.

    Args:
        make: Makes the torch module.
        row: Shape of one input row.
        parameters: Elements of its state but for counters: what the flat vector holds if nothing is folded.
    """

    make: Callable[[], nn.Module]
    row: tuple[int, ...]
    parameters: int


ZOO: dict[str, Specimen] = {
    "mlp": Specimen(_mlp, (13,), 241),
    "mlp-norm-dropout": Specimen(_mlp_norm_dropout, (13,), 305),
    "cnn": Specimen(_cnn, (1, 28, 28), 1314),
    "resnet18": Specimen(_resnet18, (3, 64, 64), 11_187_138),
    "ecg": Specimen(_ecg, (12, 100), 4177),
    "lstm": Specimen(lambda: _LastStep(nn.LSTM), (10, 6), 521),
    "lstm-2": Specimen(lambda: _LastStep(nn.LSTM, layers=2), (10, 6), 1097),
    "bilstm": Specimen(lambda: _LastStep(nn.LSTM, directions=2), (10, 6), 1041),
    "gru": Specimen(lambda: _LastStep(nn.GRU), (10, 6), 393),
    "rnn": Specimen(lambda: _LastStep(nn.RNN), (10, 6), 137),
    "transformer": Specimen(_Transformer, (10, 6), 4737),
    "unet": Specimen(_UNet, (1, 32, 32), 14_201),
}
EXPORTERS = ("dynamo", "torchscript", "torchscript-training")


def module_of(name: str) -> nn.Module:
    """The torch module, the same at every call."""
    torch.manual_seed(7)
    return ZOO[name].make().eval()


def rows_of(name: str, count: int = 4, *, seed: int = 1) -> Tensor:
    """Input rows, shape (count, ...)."""
    return torch.randn(count, *ZOO[name].row, generator=torch.Generator().manual_seed(seed))


@cache
def exported(name: str, exporter: str) -> bytes:
    """The ONNX file that an exporter makes of a model."""
    module, rows = module_of(name), rows_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return _dynamo(module, rows) if exporter == "dynamo" else _torchscript(module, rows, exporter)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _dynamo(module: nn.Module, rows: Tensor) -> bytes:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        program = torch.onnx.export(
            module,
            (rows,),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            verbose=False,
        )
    finally:
        logging.disable(level)
    return bytes(program.model_proto.SerializeToString())


def _torchscript(module: nn.Module, rows: Tensor, exporter: str) -> bytes:
    training = exporter == "torchscript-training"
    mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
    stream = io.BytesIO()
    torch.onnx.export(
        module,
        (rows,),
        stream,
        dynamo=False,
        opset_version=OPSET,
        input_names=["x"],
        dynamic_axes={"x": {0: "rows"}},
        training=mode,
        do_constant_folding=not training,
    )
    onnx.load_model_from_string(stream.getvalue())
    return stream.getvalue()
