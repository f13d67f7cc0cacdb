"""A coordinator's directory: what it is to do, how far it has come, and what came out.

study.json  model.onnx  settings.json     written once, when the directory is prepared
progress.jsonl  checkpoints/              written round by round
result.json  trained.onnx                 written at the end
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import OperatorError, SecureHealthError
from agent.trust.model import ModelFile, verify_model
from agent.trust.study import Study, parse_study, study_digest


class CoordinatorSettings(BaseModel):
    """`settings.json`: what the operator decides, as opposed to the study.

    Args:
        environment: Where this runs; unprotected updates are accepted in `demo` and `bench` only.
        aggregation: How a cohort's sum is obtained.
        open_deadline_s: How long to wait at the start until the needed hospitals are there and agree.
        open_retry_s: After how long a hospital that refused or was busy is asked again.
        gather_s: How long a study that continues without missing hospitals still waits for them at the start.
        keep_checkpoints: How many to keep.
        nodes: Which node speaks for which site, where the names at the SuperLink do not say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Literal["production", "demo", "bench"] = "production"
    aggregation: Literal["plain", "secure"] = "secure"
    open_deadline_s: float = Field(default=3600.0, gt=0)
    open_retry_s: float = Field(default=5.0, gt=0)
    gather_s: float = Field(default=10.0, ge=0)
    keep_checkpoints: int = Field(default=3, ge=1, le=1000)
    nodes: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the coordinator is to do.

    Args:
        study: The study.
        digest: SHA-256 of its file, hex.
        model: The study's model, verified against it.
        settings: The operator's part.
    """

    study: Study
    digest: str
    model: ModelFile
    settings: CoordinatorSettings


@dataclass(frozen=True, slots=True)
class CoordinatorDirectory:
    """Names and keeps the files of one study's coordination."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def progress(self) -> Path:
        """Events, one JSON object a line."""
        return self.path / "progress.jsonl"

    @property
    def result(self) -> Path:
        """What came out, as JSON; there once the study has ended well."""
        return self.path / "result.json"

    @property
    def trained_model(self) -> Path:
        """The trained model, as ONNX; there once the study has ended well."""
        return self.path / "trained.onnx"

    def prepare(self, study: bytes, model: bytes, settings: CoordinatorSettings) -> Assignment:
        """Write what the coordinator is to do into a fresh directory.

        Args:
            study: The study file, as signed.
            model: The model file that it names.
            settings: The operator's part.

        Raises:
            OperatorError: The study or model cannot be used, or the directory holds another study already.
        """
        if (self.path / "study.json").exists():
            raise OperatorError(
                "coordinator.directory_taken",
                f"{self.path} already holds a study's coordination.",
                next_step="Choose another directory, or resume the study that is there.",
            )
        parsed = parse_study(study)
        assignment = Assignment(parsed, study_digest(study), verify_model(model, parsed.model), settings)
        self.path.mkdir(parents=True, exist_ok=True)
        store_atomically(self.path / "model.onnx", model)
        store_atomically(self.path / "settings.json", settings.model_dump_json(indent=2).encode() + b"\n")
        store_atomically(self.path / "study.json", study)  # last: its presence says that the rest is there
        return assignment

    def load(self) -> Assignment:
        """Read and verify what `prepare` wrote.

        Raises:
            OperatorError: A file is missing, damaged or does not belong to the others.
        """
        study_bytes, model_bytes = self._read("study.json"), self._read("model.onnx")
        study = parse_study(study_bytes)
        settings = _parse_settings(self._read("settings.json"))
        return Assignment(study, study_digest(study_bytes), verify_model(model_bytes, study.model), settings)

    def store_result(self, model: bytes, result: dict[str, object]) -> None:
        """Write the trained model, then the result that names it."""
        store_atomically(self.trained_model, model)
        store_atomically(self.result, json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other coordinators out of the directory; the system lets go when this process ends, however it ends.

        Raises:
            OperatorError: Another process holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OperatorError(
                "coordinator.directory_in_use",
                f"Another coordinator is at work in {self.path}.",
                next_step="Stop that run first, or wait until it has ended.",
            ) from error
        try:
            yield
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise OperatorError(
                "coordinator.file_missing",
                f"The coordinator's {name} cannot be read from {self.path}: {error.strerror or error}.",
                next_step="Prepare the directory with `seh-provision coordinator prepare`.",
            ) from error


def store_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that, whenever the power fails, `path` holds the old content or the new, whole."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parse_settings(data: bytes) -> CoordinatorSettings:
    try:
        return CoordinatorSettings.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise bad_setting(".".join(map(str, first["loc"])) or "settings", first["msg"]) from error


def bad_setting(name: str, why: str) -> SecureHealthError:
    """A setting that cannot be used."""
    return OperatorError(
        "coordinator.bad_settings",
        f"The coordinator's settings cannot be used: {name}: {why}.",
        next_step="Correct settings.json in the coordinator's directory and start again.",
    )
