"""Studies on this box: looked up in the configured directory, checked at every message, kept open between rounds."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.core.clock import Clock
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError, SoftwareError
from agent.core.ids import IDENTIFIER_PATTERN, check_identifier
from agent.core.wire import Refusal
from agent.data.catalog import Dataset, load_catalog
from agent.data.quality import DeclinedError
from agent.federation.faults import RefusedError, StoppedError
from agent.governance.admission import Candidate, Gate, Permit, is_on_data, rule_of
from agent.trust.metrics import Moments
from agent.trust.study import MAX_STUDY_BYTES, Study, parse_study, study_digest

MAX_OPEN_STUDIES = 4
"""Each open study keeps a training worker warm; beyond this the one used longest ago is closed."""

Vector = npt.NDArray[np.float32]


class RoundResult(Protocol):
    """What a training worker gives back.

    `update` has shape (m,) after training, else (0,); `weight` counts local training rows.
    """

    @property
    def update(self) -> Vector:
        """Parameters after local training minus parameters received."""
        ...

    @property
    def weight(self) -> int:
        """Local training rows."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Values by the names of the study's metric layout."""
        ...


class Worker(Protocol):
    """A training worker that stands ready for one study on one data set.

    `close` may come from another thread, and ends a call under way.
    """

    @property
    def initial_parameters(self) -> Vector:
        """The study's own initial model, shape (m,)."""
        ...

    def moments(self) -> RoundResult:
        """Count rows and sum the number fields."""
        ...

    def train(
        self, parameters: Vector, *, round_number: int, moments: Mapping[str, Moments] | None = None
    ) -> RoundResult:
        """Train from `parameters`, shape (m,)."""
        ...

    def evaluate(self, parameters: Vector, *, moments: Mapping[str, Moments] | None = None) -> RoundResult:
        """Score `parameters`, shape (m,), on the held-out rows."""
        ...

    def close(self) -> None:
        """End it."""
        ...


OpenWorker = Callable[[Study, Path, Dataset, str], Worker]
"""Study, model file, data set, and the digest that the data set must have when it is opened; empty: any."""


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """A study as it lies on this box.

    Args:
        study: What `study.json` says.
        digest: SHA-256 of `study.json`, hex.
        model: The model file, not yet looked at.
    """

    study: Study
    digest: str
    model: Path


@dataclass(slots=True, eq=False)
class StudyRun:
    """A study that is open: its data set fits, and its worker stands ready.

    Args:
        folder: The study.
        dataset: What it runs on.
        worker: Trains.
        permit: What it may run by; None where this box governs no studies (`agent.core.config.GovernanceSection`).
    """

    folder: StudyFolder
    dataset: Dataset
    worker: Worker
    permit: Permit | None = None
    initial_digest: str = field(init=False)
    used_s: float = 0.0

    def __post_init__(self) -> None:
        self.initial_digest = vector_digest(self.worker.initial_parameters)

    @property
    def study(self) -> Study:
        """What `study.json` says."""
        return self.folder.study


class StudyShelf:
    """All studies that this box was given, and those of them that are open."""

    def __init__(
        self,
        directory: Path,
        catalog: Path,
        *,
        site: str,
        open_worker: OpenWorker,
        clock: Clock,
        gate: Gate | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            directory: Holds `<study id>/study.json` and `<study id>/model.onnx`.
            catalog: The catalog of local data sets; read anew for every study that opens.
            site: This hospital.
            open_worker: Starts a training worker.
            clock: For expiry.
            gate: Decides at every message; None on a box that governs no studies.
        """
        self._directory = directory
        self._catalog = catalog
        self._site = site
        self._open_worker = open_worker
        self._clock = clock
        self._gate = gate
        self._runs: dict[str, StudyRun] = {}
        self._lock = threading.Lock()
        self._closed = False

    def run_of(self, study_id: str, *, on_close: Callable[[StudyRun], None]) -> StudyRun:
        """The open run of a study, opened if need be; the study is read and checked anew every time.

        Args:
            study_id: As the message says.
            on_close: Told about runs that had to be closed on the way.

        Raises:
            RefusedError: The study is unknown, or may not run here now, or no local data set fits it.
        """
        folder = self._load(study_id)
        try:
            dataset, permit = self._admit(folder)
        except RefusedError:
            # A worker is one approval's: it ends with what it was started by.
            self.close_run(study_id, on_close=on_close)
            raise
        run = self._runs.get(study_id)
        if run is not None and (run.folder.digest != folder.digest or not _upheld(run.permit, permit)):
            self.close_run(study_id, on_close=on_close)
            run = None
        if run is None:
            self._make_room(on_close)
            run = self._open(folder, dataset, permit)
        run.used_s = self._clock.monotonic_s()
        return run

    def check_still_permitted(self, run: StudyRun) -> None:
        """Check, before something leaves, that what let the run begin still holds: training takes its time.

        Raises:
            RefusedError: It does not.
        """
        if run.permit is None:
            return
        _, permit = self._admit(self._load(run.study.id))
        if not _upheld(run.permit, permit):
            raise RefusedError(Refusal.NOT_PERMITTED, _another_permit(run.study.id))

    def check_still_open(self, study_id: str) -> None:
        """The same for the open run of a study; on a box that governs no studies, nothing is asked.

        Raises:
            RefusedError: It does not, or no run is open.
        """
        run = self._runs.get(study_id)
        if self._gate is not None and run is None:
            raise RefusedError(Refusal.NOT_PERMITTED, _another_permit(study_id))
        if run is not None:
            self.check_still_permitted(run)

    def note_refused(self, study_id: str, cause: SecureHealthError) -> None:
        """Have the audit log say why a message was refused; only about studies that this box was given."""
        if self._gate is None or not re.fullmatch(IDENTIFIER_PATTERN, study_id):
            return
        if (self._directory / study_id / "study.json").is_file():
            self._gate.note_refused(study_id, rule_of(cause))

    def close_run(self, study_id: str, *, on_close: Callable[[StudyRun], None]) -> None:
        """End a study's run, if it is open."""
        with self._lock:
            run = self._runs.pop(study_id, None)
        if run is not None:
            run.worker.close()
            on_close(run)

    def close(self) -> None:
        """End all workers, also one that another thread waits for; nothing opens afterwards."""
        with self._lock:
            self._closed = True
            runs = list(self._runs.values())
        for run in runs:
            run.worker.close()

    def _make_room(self, on_close: Callable[[StudyRun], None]) -> None:
        if len(self._runs) >= MAX_OPEN_STUDIES:
            oldest = min(self._runs, key=lambda name: self._runs[name].used_s)
            self.close_run(oldest, on_close=on_close)

    def _load(self, study_id: str) -> StudyFolder:
        try:
            return load_study(self._directory, study_id)
        except OperatorError as error:
            raise RefusedError(Refusal.UNKNOWN_STUDY, error) from error

    def _admit(self, folder: StudyFolder) -> tuple[Dataset | None, Permit | None]:
        """Decide whether a study may run here now; on which data set, where this box governs studies."""
        if self._gate is None:
            check_permitted(folder.study, site=self._site, now=self._clock.now())
            return None, None
        try:
            with declining(folder.study):
                dataset = choose_dataset(self._catalog, folder.study)
        except RefusedError as refused:
            run = self._runs.get(folder.study.id)
            if run is not None and run.folder.digest == folder.digest:
                raise
            # The word for all that nobody approved: what this hospital's catalog has is no stranger's to know.
            raise RefusedError(Refusal.NOT_PERMITTED, refused.cause) from refused
        try:
            permit = self._gate.admit(Candidate(folder.study, folder.digest, folder.model, dataset))
        except OperatorError as error:
            of_data = isinstance(error, DeclinedError) or is_on_data(error)
            raise RefusedError(Refusal.DECLINED if of_data else Refusal.NOT_PERMITTED, error) from error
        except HardwareError as error:
            raise RefusedError(Refusal.BUSY, error) from error
        return dataset, permit

    def _open(self, folder: StudyFolder, dataset: Dataset | None, permit: Permit | None) -> StudyRun:
        # From here on every cause may depend on this hospital's data: one word for all of them.
        with declining(folder.study):
            check_model(folder)
            dataset = dataset or choose_dataset(self._catalog, folder.study)
            if self._gate is not None and permit is not None:
                self._gate.note_opened(permit)
            approved = "" if permit is None else permit.dataset_digest
            worker = self._open_worker(folder.study, folder.model, dataset, approved)
            run = StudyRun(folder, dataset, worker, permit)
        with self._lock:
            if not self._closed:
                self._runs[folder.study.id] = run
                return run
        worker.close()
        raise StoppedError


def load_study(directory: Path, study_id: str) -> StudyFolder:
    """Read a study from its folder.

    Raises:
        OperatorError: There is none of that name, it cannot be read, or it is not valid.
    """
    folder = directory / check_identifier(study_id, kind="study")
    try:
        with (folder / "study.json").open("rb") as stream:
            data = stream.read(MAX_STUDY_BYTES + 1)
    except OSError as error:
        raise OperatorError(
            "study.unknown",
            f"This box was not given the study {study_id}.",
            next_step="`seh-agent study list` names those that are here; if one was sent, ask its coordinator why.",
        ) from error
    study = parse_study(data)
    if study.id != study_id:
        raise OperatorError(
            "study.wrong_folder",
            f"The folder {study_id} holds the study {study.id}.",
            next_step="Install the study under its own name.",
        )
    return StudyFolder(study, study_digest(data), folder / "model.onnx")


def check_permitted(study: Study, *, site: str, now: datetime) -> None:
    """Check what does not depend on data: this site is named, and the study has not expired.

    Raises:
        RefusedError: It may not run here now.
    """
    if site not in study.sites:
        cause = OperatorError(
            "study.site_not_named",
            f"The study {study.id} does not name this hospital ({site}).",
            next_step="Ask the study's requester; nothing was done.",
        )
        raise RefusedError(Refusal.NOT_PERMITTED, cause)
    if now >= study.expires:
        cause = OperatorError(
            "study.expired",
            f"The study {study.id} expired on {study.expires:%Y-%m-%d %H:%M %Z}.",
            next_step="Ask the study's requester for an extended study; nothing was done.",
        )
        raise RefusedError(Refusal.NOT_PERMITTED, cause)


def check_model(folder: StudyFolder) -> None:
    """Check that the model file is the one that the study names; its content is the worker's to read.

    Raises:
        OperatorError: It is missing, or another one.
    """
    spec = folder.study.model
    try:
        with folder.model.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            same = size == spec.size_bytes and hashlib.file_digest(stream, "sha256").hexdigest() == spec.digest
    except OSError as error:
        raise _wrong_model(folder, f"cannot be read: {error.strerror}") from error
    if not same:
        raise _wrong_model(folder, "is not the one that the study names")


def choose_dataset(catalog: Path, study: Study) -> Dataset:
    """The local data set that the study is about: the first, by name, of its schema.

    Raises:
        OperatorError: The catalog cannot be used, or has none.
    """
    fitting = load_catalog(catalog).with_schema(study.data.schema_name)
    if not fitting:
        raise OperatorError(
            "study.no_dataset",
            f"The study {study.id} needs a data set of schema {study.data.schema_name}; the catalog has none.",
            next_step="Add the data set to the catalog, or leave the study out.",
        )
    return min(fitting, key=lambda dataset: dataset.id)


@contextmanager
def declining(study: Study) -> Iterator[None]:
    """Turn every failure inside into `declined`: whatever fails on the data must look the same from outside."""
    try:
        yield
    except SecureHealthError as error:
        raise RefusedError(Refusal.DECLINED, error) from error
    # Even a fault of our own may show on one hospital's data only.
    except Exception as error:
        cause = SoftwareError(
            "rounds.training_failed",
            f"Training for the study {study.id} failed unexpectedly ({type(error).__name__}).",
            next_step="Report it with the log; the study goes on without this hospital's answer.",
        )
        raise RefusedError(Refusal.DECLINED, cause) from error


def vector_digest(vector: Vector) -> str:
    """SHA-256 of a model vector's little-endian bytes, in hex."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()


def parse_parameters(run: StudyRun, payload: bytes | memoryview, *, round_number: int) -> Vector:
    """Read a model vector that the coordinator sent.

    Args:
        run: The study.
        payload: Little-endian float32, shape (m,).
        round_number: Round 1 must start from exactly the study's own model.

    Raises:
        PeerProtocolError: It has another length, is not finite, or is not the study's own model in round 1.
    """
    if len(payload) != 4 * run.study.model.parameters:
        raise broken_rule(f"a model of {len(payload)} bytes where {4 * run.study.model.parameters} belong")
    vector = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(vector).all():
        raise broken_rule("a model that is not finite")
    if round_number == 1 and vector_digest(vector) != run.initial_digest:
        raise broken_rule("a first model that is not the study's own")
    return vector


def broken_rule(what: str) -> PeerProtocolError:
    """The coordinator broke a rule; which one stays in the local log."""
    return PeerProtocolError(
        "rounds.broken_rule",
        f"The coordinator sent {what}.",
        next_step="Nothing was computed. If it repeats, ask the coordinator's operator.",
    )


def _upheld(earlier: Permit | None, permit: Permit | None) -> bool:
    return earlier is None if permit is None else permit.upholds(earlier)


def _another_permit(study: str) -> OperatorError:
    return OperatorError(
        "study.permit_changed",
        f"What let the study {study} run here changed while it was computed.",
        next_step="Nothing left this hospital. The study goes on under the new permit, with its next message.",
    )


def _wrong_model(folder: StudyFolder, what: str) -> OperatorError:
    return OperatorError(
        "study.wrong_model",
        f"The model file of the study {folder.study.id} {what}.",
        next_step="Install the study again, with its model.",
    )
