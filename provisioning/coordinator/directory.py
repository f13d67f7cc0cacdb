"""A coordinator's directory: what it is to do, how far it has come, and what came out.

study.json  model.onnx  settings.json  coordinator.key  roster.json or trust/     when the directory is prepared
progress.jsonl  checkpoints/  attempt.json  counters.json                   written round by round
result.json  trained.onnx                 written at the end
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.config import Address
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.trust.counters import COUNTERS_FILE_NAME
from agent.trust.model import ModelFile, verify_model
from agent.trust.repository import bootstrap
from agent.trust.roster import Roster, parse_roster
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
        registrar: `host:port` that serves the consortium's repository, where that says who speaks for whom.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Literal["production", "demo", "bench"] = "production"
    aggregation: Literal["plain", "secure"] = "secure"
    open_deadline_s: float = Field(default=3600.0, gt=0)
    open_retry_s: float = Field(default=5.0, gt=0)
    gather_s: float = Field(default=10.0, ge=0)
    keep_checkpoints: int = Field(default=3, ge=1, le=1000)
    nodes: dict[str, int] = {}
    registrar: Address | None = None


@dataclass(frozen=True, slots=True)
class TrustPlace:
    """The consortium's repository, as this coordinator keeps it.

    Args:
        directory: As `agent.trust.repository.bootstrap` made it.
        url: Where it is fetched from.
    """

    directory: Path
    url: str


@dataclass(frozen=True, slots=True)
class Protection:
    """What the coordinator of a protected study holds.

    Args:
        trust: Who speaks for which hospital, to name culprits; nodes rely on their own.
        key: Signs each round; its public half stands in the hospitals' rosters.
        open_attempt: File that names the attempt under way, for a coordinator that is started again.
        counters: File of what was seen of FIDO2 keys.
    """

    trust: Roster | TrustPlace
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    open_attempt: Path
    counters: Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the coordinator is to do.

    Args:
        study: The study.
        digest: SHA-256 of its file, hex.
        model: The study's model, verified against it.
        settings: The operator's part.
        protection: What secure aggregation needs beside the study; None for an unprotected demonstration.
    """

    study: Study
    digest: str
    model: ModelFile
    settings: CoordinatorSettings
    protection: Protection | None = None


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

    def prepare(
        self,
        study: bytes,
        model: bytes,
        settings: CoordinatorSettings,
        *,
        roster: bytes | None = None,
        root: bytes | None = None,
        key: bytes | None = None,
    ) -> Assignment:
        """Write what the coordinator is to do into a fresh directory.

        Args:
            study: The study file, as signed.
            model: The model file that it names.
            settings: The operator's part.
            roster: The consortium's roster; secure aggregation needs it, or `root`.
            root: The consortium's first root metadata; its repository then comes from `settings.registrar`.
            key: The coordinator's private key (PEM, PKCS #8); secure aggregation needs it.

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
        self.path.mkdir(parents=True, exist_ok=True)
        if root is not None:
            bootstrap(self.path / "trust", root, hashlib.sha256(root).hexdigest())
        protection = self._protection(settings, roster, key)
        assignment = Assignment(parsed, study_digest(study), verify_model(model, parsed.model), settings, protection)
        if roster is not None:
            store_atomically(self.path / "roster.json", roster)
        if key is not None:
            store_atomically(self.path / "coordinator.key", key, mode=0o600)
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
        model = verify_model(model_bytes, study.model)
        roster = key = None
        if settings.aggregation == "secure":
            key = self._read("coordinator.key")
            roster = None if settings.registrar else self._read("roster.json")
        return Assignment(study, study_digest(study_bytes), model, settings, self._protection(settings, roster, key))

    def _protection(self, settings: CoordinatorSettings, roster: bytes | None, key: bytes | None) -> Protection | None:
        if settings.aggregation != "secure":
            return None
        trust = self._trust(settings, roster)
        if trust is None or key is None:
            raise bad_setting("aggregation", "secure aggregation needs a roster or a root, and the coordinator's key")
        return Protection(trust, _parse_key(key), self.path / "attempt.json", self.path / COUNTERS_FILE_NAME)

    def _trust(self, settings: CoordinatorSettings, roster: bytes | None) -> Roster | TrustPlace | None:
        if settings.registrar is None:
            return None if roster is None else parse_roster(roster)
        place = self.path / "trust"
        return TrustPlace(place, f"https://{settings.registrar}/repository/") if place.is_dir() else None

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


def _parse_settings(data: bytes) -> CoordinatorSettings:
    try:
        return CoordinatorSettings.model_validate_json(data)
    except ValidationError as error:
        raise bad_setting("settings.json", explain_invalid(error, whole="settings")) from error


def _parse_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise bad_setting("coordinator.key", "it holds no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise bad_setting("coordinator.key", "its key is not on the curve P-256")
    return key


def bad_setting(name: str, why: str) -> SecureHealthError:
    """A setting that cannot be used."""
    return OperatorError(
        "coordinator.bad_settings",
        f"The coordinator's settings cannot be used: {name}: {why}.",
        next_step="Correct settings.json in the coordinator's directory and start again.",
    )
