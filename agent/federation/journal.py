"""What a box remembers about one study on one data set, so that no restart makes it answer a round twice.

    attempts.jsonl    one line a record, appended
    model.bin         the model accepted last: u32be round | SHA-256 of the rest | float32 little-endian
    configuration     what the first round's request added to the study
    paused.json       why nothing of this study runs here until somebody has looked

Each write is on the disk before the call returns.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np

from agent.core.errors import HardwareError, OperatorError
from agent.federation.studies import broken_rule
from agent.secagg.journal import AcceptedModel, AttemptRecord

_HEAD = struct.Struct(">I32s")


class FileJournal:
    """A `agent.secagg.journal.Journal` in a directory of its own; one process and one thread at a time."""

    def __init__(self, directory: Path) -> None:
        """Read what is there; a line that a power cut left half-written counts as never written.

        Raises:
            HardwareError: The files are damaged: the disk cannot be trusted with this study.
        """
        _make_directory(directory)
        self._directory = directory
        self._attempts: dict[tuple[int, int], AttemptRecord] = {}
        self._cohorts: dict[bytes, tuple[str, ...]] = {}
        for line in self._whole_lines():
            self._remember(_parse_record(line, self._log))
        self._model = self._load_model()

    @property
    def _log(self) -> Path:
        return self._directory / "attempts.jsonl"

    def latest_attempt(self) -> AttemptRecord | None:
        """The record of the greatest (round, attempt), as last written."""
        return self._attempts[max(self._attempts)] if self._attempts else None

    def cohort_of_model(self, model: bytes) -> tuple[str, ...] | None:
        """The cohort of the first recorded attempt on this model that names one."""
        return self._cohorts.get(model)

    def record_attempt(self, record: AttemptRecord) -> None:
        """Write a new attempt, or a new lock on the latest one."""
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, _encode_record(record))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self._attempts:
            _sync_directory(self._directory)
        self._remember(record)

    def accepted_model(self) -> AcceptedModel | None:
        """The model accepted last."""
        return self._model

    def record_model(self, model: AcceptedModel) -> None:
        """Write the model accepted last."""
        body = np.ascontiguousarray(model.parameters, dtype="<f4").tobytes()
        self._store("model.bin", _HEAD.pack(model.round_number, hashlib.sha256(body).digest()) + body)
        self._model = AcceptedModel(model.round_number, model.parameters.copy())

    def pin_configuration(self, configuration: bytes) -> None:
        """Check that what requests add to the study is the same in every round: other moments would be new questions.

        Raises:
            PeerProtocolError: It differs from that of the first round.
        """
        path = self._directory / "configuration"
        if not path.exists():
            self._store(path.name, configuration)
        elif path.read_bytes() != configuration:
            raise broken_rule("other moments than in an earlier round")

    def pause(self, code: str) -> None:
        """Let no further run of this study begin here until somebody has looked."""
        self._store("paused.json", json.dumps({"code": code}).encode())

    def check_not_paused(self) -> None:
        """Check that no earlier run left the study paused here.

        Raises:
            OperatorError: It did.
        """
        path = self._directory / "paused.json"
        if path.exists():
            raise OperatorError(
                "rounds.study_paused",
                f"This study failed here in an earlier run ({json.loads(path.read_bytes())['code']}) and is paused.",
                next_step="Look at the log of that run, mend the cause, then run `seh-agent study resume STUDY`.",
                directory=self._directory.name,
            )

    def resume(self) -> bool:
        """Lift a pause; returns whether there was one."""
        path = self._directory / "paused.json"
        if not path.exists():
            return False
        path.unlink()
        _sync_directory(self._directory)
        return True

    def _remember(self, record: AttemptRecord) -> None:
        self._attempts[record.round_number, record.attempt] = record
        if record.sites:
            self._cohorts.setdefault(record.model, record.sites)

    def _whole_lines(self) -> list[bytes]:
        if not self._log.exists():
            return []
        data = self._log.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._log, whole)
        return data[:whole].splitlines()

    def _load_model(self) -> AcceptedModel | None:
        path = self._directory / "model.bin"
        if not path.exists():
            return None
        data = path.read_bytes()
        number, digest = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (0, b"")
        if hashlib.sha256(data[_HEAD.size :]).digest() != digest:
            raise _damaged(path)
        return AcceptedModel(number, np.frombuffer(data, dtype="<f4", offset=_HEAD.size))

    def _store(self, name: str, data: bytes) -> None:
        partial = self._directory / f"{name}.partial"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(self._directory / name)
        _sync_directory(self._directory)


def _encode_record(record: AttemptRecord) -> bytes:
    fields = {
        "round": record.round_number,
        "attempt": record.attempt,
        "context": record.context.hex(),
        "sites": list(record.sites),
        "model": record.model.hex(),
        "lock": record.lock.hex(),
    }
    return json.dumps(fields).encode() + b"\n"


def _parse_record(line: bytes, path: Path) -> AttemptRecord:
    try:
        fields = json.loads(line)
        return AttemptRecord(
            int(fields["round"]),
            int(fields["attempt"]),
            bytes.fromhex(fields["context"]),
            tuple(fields["sites"]),
            bytes.fromhex(fields["model"]),
            bytes.fromhex(fields["lock"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_directory(directory: Path) -> None:
    """Make a directory that outlives a power cut, with all that leads to it."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True, mode=0o700)
    _sync_directory(directory.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path) -> HardwareError:
    return HardwareError(
        "rounds.journal_damaged",
        f"The record of rounds in {path} is damaged.",
        next_step="Take no part in this study until the disk was checked; a new study begins with a new record.",
    )
