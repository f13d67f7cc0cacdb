"""What a box remembers about one study on one data set, so that no restart makes it answer a round twice.

    attempts.jsonl    one line a record, appended; each carries a code over itself and the line before
    model.bin         the model accepted last: code over the rest | u32be round | float32 little-endian
    configuration     what the first round's request added to the study: code over the rest | JSON
    paused.json       why nothing of this study runs here until somebody has looked

Each write is on the disk before the call returns. The codes are HMAC-SHA256 under a key from the box's vault and name
the journal's place: what another box, another study or an editor wrote is no record. A whole older state of the
directory, put back, is not recognised: that takes a counter outside the disk.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.core.errors import HardwareError, OperatorError
from agent.core.files import store_atomically, sync_directory
from agent.federation.studies import broken_rule
from agent.secagg.journal import AcceptedModel, AttemptRecord

JOURNAL_PURPOSE: Final = "journal integrity v1"
"""What the vault is asked for (`agent.identity.vault.Vault.key_for`)."""
_ROUND = struct.Struct(">I")
_CODE_BYTES = 32


class FileJournal:
    """A `agent.secagg.journal.Journal` in a directory of its own; one process and one thread at a time."""

    def __init__(self, directory: Path, key: bytes) -> None:
        """Read what is there; a line that a power cut left half-written counts as never written.

        Args:
            directory: `.../<study>/<data set>`; made where it is missing.
            key: The box's for `JOURNAL_PURPOSE`.

        Raises:
            HardwareError: The files are damaged, or not this box's: the disk cannot be trusted with this study.
        """
        _make_directory(directory)
        self._directory = directory
        self._key = key
        self._attempts: dict[tuple[int, int], AttemptRecord] = {}
        self._cohorts: dict[bytes, tuple[str, ...]] = {}
        self._last_code = self._code(b"attempts.jsonl", b"")
        self._log_size = 0
        for line in self._whole_lines():
            self._take_line(line)
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
        """Write a new attempt, or a new lock on the latest one.

        Raises:
            HardwareError: The disk does not take it (`rounds.journal_not_written`); nothing is promised then.
        """
        fields = _encode_record(record)
        code = self._code(self._last_code, json.dumps(fields).encode())
        line = json.dumps(fields | {"code": code.hex()}).encode() + b"\n"
        with _writing(self._log):
            self._append(line)
        self._remember(record, code, len(line))

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, line)
            os.fsync(descriptor)
            if not self._attempts:
                sync_directory(self._directory)
        except OSError:
            os.ftruncate(descriptor, self._log_size)  # half a line on a full disk would spoil the next one
            raise
        finally:
            os.close(descriptor)

    def accepted_model(self) -> AcceptedModel | None:
        """The model accepted last."""
        return self._model

    def record_model(self, model: AcceptedModel) -> None:
        """Write the model accepted last.

        Raises:
            HardwareError: As `record_attempt` says.
        """
        body = np.ascontiguousarray(model.parameters, dtype="<f4").tobytes()
        self._store_coded("model.bin", _ROUND.pack(model.round_number) + body)
        self._model = AcceptedModel(model.round_number, model.parameters.copy())

    def pin_configuration(self, configuration: bytes) -> None:
        """Check that what requests add to the study is the same in every round: other moments would be new questions.

        Raises:
            PeerProtocolError: It differs from that of the first round.
            HardwareError: What was kept of the first round is damaged, or as `record_attempt` says.
        """
        pinned = self._load_coded("configuration")
        if pinned is None:
            self._store_coded("configuration", configuration)
        elif pinned != configuration:
            raise broken_rule("other moments than in an earlier round")

    def pause(self, code: str) -> None:
        """Let no further run of this study begin here until somebody has looked.

        Raises:
            OSError: The disk does not take it; its caller answers all the same, so that nobody outside sees a failure.
        """
        store_atomically(self._directory / "paused.json", json.dumps({"code": code}).encode(), mode=0o600)

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

    def _take_line(self, line: bytes) -> None:
        """Take a line that follows on the last one.

        Raises:
            HardwareError: It does not, or is no record.
        """
        try:
            fields = json.loads(line)
            code = bytes.fromhex(fields.pop("code"))
            record = _parse_record(fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(self._log) from error
        if not hmac.compare_digest(code, self._code(self._last_code, json.dumps(fields).encode())):
            raise _damaged(self._log)
        self._remember(record, code, len(line) + 1)

    def _remember(self, record: AttemptRecord, code: bytes, size: int) -> None:
        self._last_code = code
        self._log_size += size
        self._attempts[record.round_number, record.attempt] = record
        if record.sites:
            self._cohorts.setdefault(record.model, record.sites)

    def _code(self, before: bytes, content: bytes) -> bytes:
        """HMAC over what comes before (a file's name, or the code of the line before), the place, and the content."""
        place = "/".join(self._directory.parts[-2:]).encode()
        message = b"".join(len(part).to_bytes(8, "big") + part for part in (place, before, content))
        return hmac.digest(self._key, message, "sha256")

    def _whole_lines(self) -> list[bytes]:
        if not self._log.exists():
            return []
        data = self._log.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.truncate(self._log, whole)
        return data[:whole].split(b"\n")[:-1]

    def _load_model(self) -> AcceptedModel | None:
        data = self._load_coded("model.bin")
        if data is None:
            return None
        return AcceptedModel(_ROUND.unpack_from(data)[0], np.frombuffer(data, dtype="<f4", offset=_ROUND.size))

    def _store_coded(self, name: str, content: bytes) -> None:
        data = self._code(name.encode(), content) + content
        with _writing(self._directory / name):
            store_atomically(self._directory / name, data, mode=0o600)

    def _load_coded(self, name: str) -> bytes | None:
        path = self._directory / name
        if not path.exists():
            return None
        data = path.read_bytes()
        if not hmac.compare_digest(data[:_CODE_BYTES], self._code(name.encode(), data[_CODE_BYTES:])):
            raise _damaged(path)
        return data[_CODE_BYTES:]


def lift_pause(directory: Path) -> bool:
    """Lift the pause of the study whose journal lies there; returns whether there was one."""
    path = directory / "paused.json"
    if not path.exists():
        return False
    path.unlink()
    sync_directory(directory)
    return True


def _encode_record(record: AttemptRecord) -> dict[str, object]:
    return {
        "round": record.round_number,
        "attempt": record.attempt,
        "context": record.context.hex(),
        "sites": list(record.sites),
        "model": record.model.hex(),
        "lock": record.lock.hex(),
    }


def _parse_record(fields: Mapping[str, Any]) -> AttemptRecord:
    return AttemptRecord(
        int(fields["round"]),
        int(fields["attempt"]),
        bytes.fromhex(fields["context"]),
        tuple(fields["sites"]),
        bytes.fromhex(fields["model"]),
        bytes.fromhex(fields["lock"]),
    )


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
    sync_directory(directory.parent)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk that does not take a record is a box that cannot promise anything now."""
    try:
        yield
    except OSError as error:
        raise HardwareError(
            "rounds.journal_not_written",
            f"The record of rounds {path} cannot be written: {error.strerror or error}.",
            next_step="Free space on the disk, or have it checked; the box answers again as soon as it can write.",
        ) from error


def _damaged(path: Path) -> HardwareError:
    return HardwareError(
        "rounds.journal_damaged",
        f"The record of rounds in {path} is damaged, or was not written by this box.",
        next_step="Take no part in this study until the disk was checked; a new study begins with a new record.",
    )
