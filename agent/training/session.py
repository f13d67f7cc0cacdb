"""Inside the worker: one study, one data set, from the first message to the last.

The report on the data and the model's own vector go out before torch is loaded, so that a study opens at once.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from agent.core.errors import OperatorError, SecureHealthError
from agent.data.catalog import MAX_SOURCE_BYTES, Dataset
from agent.data.quality import DeclinedError
from agent.data.tabular import Moment, Table, load_table
from agent.training.channel import Message, receive_message, send_message
from agent.trust.metrics import moments_layout, training_layout
from agent.trust.model import FloatVector, ModelFile, verify_model
from agent.trust.study import Study, parse_study
from agent.trust.terms import record_terms

if TYPE_CHECKING:
    from agent.training.trainer import Batch


def serve(
    channel: socket.socket, start: Message, *, layers: tuple[str, ...], model_fd: int, data_fd: int, vector_fd: int
) -> None:
    """Answer the agent until it closes the channel.

    Args:
        channel: To the agent.
        start: Its first message: `study`, `dataset`, `device`, `threads`.
        layers: How this process is shut in.
        model_fd: The model file; -1 where only the data are to be checked.
        data_fd: The data set's file.
        vector_fd: Shared memory for one vector, 4 m bytes; -1 without a model.

    Raises:
        ChannelClosedError: The agent is done.
    """
    try:
        study = parse_study(str(start["study"]).encode())
        dataset = Dataset.model_validate(start["dataset"])
        table, report = load_table(_read(data_fd, MAX_SOURCE_BYTES), dataset, study.data)
        model = _load_model(study, model_fd) if model_fd >= 0 and table is not None else None
        vector = _map_vector(vector_fd, model) if model is not None else None
    except (SecureHealthError, MemoryError) as error:
        send_message(channel, _describe(error))
        return
    send_message(channel, {"report": report.model_dump(mode="json"), "layers": list(layers)})
    if table is None or model is None or vector is None:
        return
    try:
        session = _Session(study, table, model, vector, device=str(start["device"]), threads=_threads(start))
    except (SecureHealthError, MemoryError, RuntimeError) as error:
        send_message(channel, _describe(error))
        return
    send_message(channel, {"ready": session.device})
    while True:
        send_message(channel, session.answer(receive_message(channel)))


class _Session:
    """A model and a table, with torch loaded."""

    def __init__(
        self, study: Study, table: Table, model: ModelFile, vector: FloatVector, *, device: str, threads: int
    ) -> None:
        # Not earlier: the agent has its report on the data while torch is being loaded.
        import torch  # noqa: PLC0415 (see above)

        from agent.training.trainer import Trainer, choose_device  # noqa: PLC0415 (see above)

        torch.set_num_threads(threads)
        self.device = choose_device(device)
        self._study = study
        self._table = table
        self._vector = vector
        self._private = study.plan.record_privacy is not None
        self._trainer = Trainer(model, study.plan, device=self.device, record=record_terms(study))
        self._trainer.rehearse(study.data.width)
        self._parts: tuple[Batch, Batch] | None = None
        self._moments: object = None

    def answer(self, message: Message) -> Message:
        """Do what the agent asks; every failure becomes a reply, and any of them may depend on the data."""
        try:
            return self._do(message)
        except (SecureHealthError, MemoryError, RuntimeError) as error:
            return _describe(error, on_data=True)

    def _do(self, message: Message) -> Message:
        limit = self._study.secagg.weight_cap
        if message["command"] == "moments":
            return self._reply(self._table.sums(limit), training=False)
        if self._private:
            return self._do_privately(message)
        train, held_out = self._rows(message.get("moments"))
        parameters = self._vector.copy()
        metrics = self._trainer.score(parameters, held_out, limit=limit)
        if message["command"] == "train":
            round_number = cast("int", message["round"])
            self._vector[:] = self._trainer.train(parameters, train, round_number=round_number)
        return self._reply({**metrics, "trained": float(min(len(train), limit))}, training=True)

    def _do_privately(self, message: Message) -> Message:
        """Train on all rows under noise; counts and scores would tell of single rows, so none are made."""
        if message["command"] == "train":
            rows = _together(self._rows(None))
            self._vector[:] = self._trainer.train(self._vector.copy(), rows, round_number=cast("int", message["round"]))
        return self._reply({}, training=True)

    def _rows(self, moments: object) -> tuple[Batch, Batch]:
        """The rows as the model takes them; kept until other moments come."""
        if self._parts is None or moments != self._moments:
            pairs = cast("Mapping[str, list[float]]", moments or {})
            used = {name: Moment(*pair) for name, pair in pairs.items()} if moments is not None else None
            train, held_out = self._table.parts(used)
            self._parts = (
                self._trainer.batch(train.inputs, train.labels),
                self._trainer.batch(held_out.inputs, held_out.labels),
            )
            self._moments = moments
        return self._parts

    def _reply(self, values: Mapping[str, float], *, training: bool) -> Message:
        layout = training_layout(self._study) if training else moments_layout(self._study)
        return {"values": [values.get(word.name, 0.0) for word in layout.words]}


def _together(parts: tuple[Batch, Batch]) -> Batch:
    """All rows: which are held out depends on all labels, and so on every single one."""
    import torch  # noqa: PLC0415 - as above

    train, held_out = parts
    return type(train)(torch.cat((train.inputs, held_out.inputs)), torch.cat((train.targets, held_out.targets)))


def _load_model(study: Study, descriptor: int) -> ModelFile:
    return verify_model(_read(descriptor, study.model.size_bytes), study.model)


def _map_vector(descriptor: int, model: ModelFile) -> FloatVector:
    """The shared memory as a vector, the model's own parameters in it."""
    memory = mmap.mmap(descriptor, 4 * len(model.parameters))
    vector = np.frombuffer(memory, dtype=np.float32)
    vector[:] = model.parameters
    return vector


def _read(descriptor: int, limit: int) -> bytes:
    """Read a file whole, or one byte beyond the limit."""
    with os.fdopen(descriptor, "rb") as file:
        # A read of the limit's size would hold that much memory from the start.
        return file.read(min(os.fstat(descriptor).st_size, limit) + 1)


def _threads(start: Message) -> int:
    return max(1, int(cast("int", start["threads"])))


def _describe(error: SecureHealthError | MemoryError | RuntimeError, *, on_data: bool = False) -> Message:
    """A failure as a message; what torch says itself stays here, it may quote data."""
    if isinstance(error, SecureHealthError):
        known = error
    elif isinstance(error, MemoryError) or "memory" in str(error):
        known = DeclinedError(
            "training.out_of_memory",
            "Training here needs more memory than the worker may use.",
            next_step="Give the worker more memory, or ask for a smaller model or batch.",
        )
    else:
        known = OperatorError(
            "training.torch_failed",
            "The model could not be trained: torch reported a failure.",
            next_step="Try the study's model and plan on any data first; the log has the place.",
        )
    declined = on_data or isinstance(known, DeclinedError)
    return {"error": {"code": known.code, "sentence": known.sentence, "step": known.next_step, "declined": declined}}
