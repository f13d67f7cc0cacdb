"""The agent's side of training: start a worker, ask it, distrust what it says, end it. No torch here.

One worker serves one study on one data set, and stays warm between rounds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
from pydantic import ValidationError

from agent.core.errors import OperatorError, SecureHealthError
from agent.data.catalog import Dataset, open_source
from agent.data.fingerprint import FileDigests
from agent.data.quality import DataReport, DeclinedError
from agent.training.channel import Message
from agent.training.process import Vector, WorkerProcess, WorkerSettings, start_process
from agent.trust.metrics import MetricLayout, Moments, moments_layout, training_layout
from agent.trust.study import FieldKind, Study

_DEFAULTS = WorkerSettings()


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a worker gives back, checked.

    Args:
        update: Parameters after local training minus those received, shape (m,), finite; shape (0,) without training.
        weight: Local training rows, capped as the study says; the cap itself where the study protects each row.
        metrics: Values by the names of the study's metric layout (`clipped` is the masking's to count).
    """

    update: Vector
    weight: int
    metrics: Mapping[str, float]


@dataclass(slots=True, eq=False)
class TrainingWorker:
    """A worker that stands ready; made by `start`.

    Args:
        study: What it trains.
        report: How the data set meets the study.
        layers: How its process is shut in.
        initial_parameters: The study's own model, shape (m,).
    """

    study: Study
    report: DataReport
    layers: tuple[str, ...]
    initial_parameters: Vector = field(repr=False)
    _process: WorkerProcess = field(repr=False)
    _settings: WorkerSettings = field(repr=False)
    _device: str = ""

    @classmethod
    def start(
        cls,
        study: Study,
        model: Path,
        dataset: Dataset,
        approved: str = "",
        *,
        device: str = "auto",
        threads: int = _DEFAULTS.threads,
        memory_bytes: int = _DEFAULTS.memory_bytes,
        start_timeout_s: float = _DEFAULTS.start_timeout_s,
        call_timeout_s: float = _DEFAULTS.call_timeout_s,
        address: Path | None = None,
    ) -> TrainingWorker:
        """Start a worker, and wait for its report on the data; torch is still being loaded when this returns.

        Args:
            study: What to train.
            model: The study's model file.
            dataset: The local data set.
            approved: Digest of the data set that may be read, hex; empty where any may.
            device: `auto`, `cpu` or `cuda`.
            threads: Processor threads to compute with.
            memory_bytes: Most memory that it may hold.
            start_timeout_s: How long reading data and model, and then loading torch, may take.
            call_timeout_s: How long one call may take.
            address: Where the service manager starts it; None makes it a child of this process.

        Raises:
            DeclinedError: The data set does not fit, is not the approved one, or the worker failed.
            OperatorError: The model file is not the study's, or refused.
            SoftwareError: There is no worker to be had, or it could not be shut in; nothing was read.
        """
        settings = WorkerSettings(device, threads, memory_bytes, start_timeout_s, call_timeout_s, address)
        digests = FileDigests()
        with _opened(dataset) as data:
            _check_approved(digests, dataset, data, approved)
            process = start_process(study, model, dataset, data, settings)
            try:
                message = process.receive(start_timeout_s)
                report = _parse_report(process, message)
                # What was read is what was approved only if nobody wrote into the file meanwhile.
                _check_approved(digests, dataset, data, approved)
                report.require_fit()
                initial = process.copy_vector()
            except SecureHealthError:
                process.close()
                raise
        return cls(study, report, _layers(message), initial, process, settings)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.alive

    def wait_ready(self) -> str:
        """Wait until torch is loaded and the model was tried; every call does so by itself.

        Returns:
            The device, `cpu` or `cuda`.

        Raises:
            OperatorError: The model does not suit the study.
            DeclinedError: The worker failed.
        """
        with self._process.lock:
            if not self._device:
                device = self._process.receive(self._settings.start_timeout_s).get("ready")
                if device not in {"cpu", "cuda"}:
                    raise self._process.nonsense("an unknown device")
                self._device = str(device)
            return self._device

    def moments(self) -> RoundResult:
        """Sums over the local training rows for federation-wide moments (round 0).

        Raises:
            DeclinedError: The worker failed.
            OperatorError: The model does not suit the study.
        """
        return self._call({"command": "moments"}, None, moments_layout(self.study))

    def train(
        self, parameters: Vector, *, round_number: int, moments: Mapping[str, Moments] | None = None
    ) -> RoundResult:
        """Score `parameters`, shape (m,), on the held-out rows, then train from them on the others.

        Args:
            parameters: The model received.
            round_number: 1..rounds.
            moments: The federation's, where the study standardises with them.

        Raises:
            DeclinedError: The worker failed, or the local data led training astray.
            OperatorError: The model (tried on zeros), the parameters or the moments do not suit the study.
        """
        request: Message = {"command": "train", "round": round_number, "moments": self._plain(moments)}
        return self._call(request, parameters, training_layout(self.study))

    def evaluate(self, parameters: Vector, *, moments: Mapping[str, Moments] | None = None) -> RoundResult:
        """Score `parameters`, shape (m,), on the held-out rows.

        Raises:
            DeclinedError: The worker failed.
            OperatorError: The model (tried on zeros), the parameters or the moments do not suit the study.
        """
        request: Message = {"command": "evaluate", "moments": self._plain(moments)}
        return self._call(request, parameters, training_layout(self.study))

    def close(self) -> None:
        """End the worker; from another thread, this ends a call under way. It holds nothing worth saving."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def _call(self, request: Message, parameters: Vector | None, layout: MetricLayout) -> RoundResult:
        if parameters is not None and parameters.shape != self._process.vector.shape:
            raise _wrong_length(parameters, self.study.model.parameters)
        with self._process.lock:
            self.wait_ready()
            if parameters is not None:
                self._process.vector[:] = parameters
            reply = self._process.exchange(request, timeout_s=self._settings.call_timeout_s)
            metrics = self._parse_values(reply, layout)
            training = request["command"] == "train"
            update = self._process.copy_vector() if training else np.zeros(0, dtype=np.float32)
        weight = self.study.secagg.weight_cap
        if self.study.plan.record_privacy is None:
            weight = min(self.report.train_rows, weight)
        return RoundResult(update, weight, MappingProxyType(metrics))

    def _plain(self, moments: Mapping[str, Moments] | None) -> dict[str, list[float]] | None:
        """The moments as a message holds them, where the study uses any."""
        if self.study.data.standardise != "federated":
            return None
        names = [spec.name for spec in self.study.data.features if spec.kind is FieldKind.NUMBER]
        if moments is None or not moments.keys() >= set(names):
            raise OperatorError(
                "training.no_moments",
                "The study standardises with the federation's moments, and they were not given for every number field.",
                next_step="Run round 0 first.",
            )
        return {name: [moments[name].mean, moments[name].deviation] for name in names}

    def _parse_values(self, reply: Message, layout: MetricLayout) -> dict[str, float]:
        values = reply.get("values")
        if not isinstance(values, list) or len(values) != len(layout.words):
            raise self._process.nonsense("another number of metric words")
        if not all(type(value) in {int, float} and 0 <= value < 1e18 for value in values):
            raise self._process.nonsense("metric words that are no counts or sums")
        return {word.name: float(value) for word, value in zip(layout.words, values, strict=True)}


def check_dataset(
    study: Study,
    dataset: Dataset,
    *,
    timeout_s: float = _DEFAULTS.start_timeout_s,
    address: Path | None = None,
) -> DataReport:
    """Let a worker of its own read a data set for a study, and return its report; no model is needed.

    Args:
        study: What the data set is wanted for.
        dataset: Its catalog entry.
        timeout_s: How long reading may take.
        address: Where the service manager starts the worker; None makes it a child of this process.

    Raises:
        DeclinedError: The file as a whole cannot be read, or the worker failed.
        SoftwareError: There is no worker to be had, or it could not be shut in; nothing was read.
    """
    with _opened(dataset) as data:
        process = start_process(study, None, dataset, data, WorkerSettings(address=address))
        try:
            return _parse_report(process, process.receive(timeout_s))
        finally:
            process.close()


@contextmanager
def _opened(dataset: Dataset) -> Iterator[int]:
    descriptor = open_source(dataset)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_approved(digests: FileDigests, dataset: Dataset, data: int, approved: str) -> None:
    if approved and digests.opened_digest(dataset, data) != approved:
        raise DeclinedError(
            "data.not_approved",
            f"The file of data set {dataset.id} was exchanged for another one than was approved, a moment ago.",
            next_step="Nothing was trained on it. If somebody put a new file there, approve the study again.",
        )


def _parse_report(process: WorkerProcess, message: Message) -> DataReport:
    try:
        return DataReport.model_validate(message.get("report"))
    except ValidationError as error:
        raise process.nonsense("a report on the data that cannot be read") from error


def _layers(message: Message) -> tuple[str, ...]:
    layers = message.get("layers")
    return tuple(str(item)[:40] for item in layers[:10]) if isinstance(layers, list) else ()


def _wrong_length(parameters: Vector, expected: int) -> OperatorError:
    return OperatorError(
        "training.wrong_vector",
        f"The study's model has {expected} parameters; a vector of shape {parameters.shape} was given.",
        next_step="Use a vector of the study's own model.",
    )
