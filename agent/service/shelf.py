"""Studies that the repository names for this hospital, brought into the directory that the box runs them from.

A study's files change together: its model is written first, and counts only once `study.json` names it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Protocol

import structlog

from agent.core.errors import HardwareError, NetworkError, SecureHealthError
from agent.core.files import store_atomically
from agent.core.ids import check_identifier
from agent.trust.snapshot import TrustSnapshot
from agent.trust.study import Study, parse_study

log = structlog.get_logger()


class StudyFiles(Protocol):
    """The verified files of the repository."""

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file as listed."""
        ...

    def download(self, path: str) -> bytes:
        """Fetch and verify a file."""
        ...


class StudyLibrary:
    """Keeps one directory as the repository says. One thread at a time.

    Args:
        directory: Holds `<study id>/study.json` and `<study id>/model.onnx`; nobody else writes there.
        site: This hospital.
        files: The repository's.
    """

    def __init__(self, directory: Path, site: str, files: StudyFiles) -> None:
        self._directory = directory
        self._site = site
        self._files = files
        self._elsewhere: dict[str, str] = {}

    def follow(self, snapshot: TrustSnapshot) -> None:
        """Bring new and changed studies here, and take away those that were withdrawn.

        One study that cannot be had keeps no other from coming.

        Raises:
            NetworkError: A study could not be fetched now; the same snapshot may be followed again.
            HardwareError: The disk does not take one now; the same.
        """
        passing: NetworkError | HardwareError | None = None
        for study in snapshot.studies:
            try:
                self._bring(study)
            except SecureHealthError as error:
                log.warning("study_not_fetched", study=study, error=error)
                if isinstance(error, NetworkError | HardwareError):
                    passing = error
        for folder in self._directory.glob("*/"):
            if folder.name not in snapshot.studies or folder.name in self._elsewhere:
                self._withdraw(folder)
        if passing is not None:
            raise passing

    def _bring(self, name: str) -> None:
        study_id = check_identifier(name, kind="study")
        listed = self._files.digest(f"studies/{study_id}/study.json")
        path = self._directory / study_id / "study.json"
        if listed is None or listed in {self._elsewhere.get(study_id), _digest_of(path)}:
            return
        data = self._files.download(f"studies/{study_id}/study.json")
        study = parse_study(data)
        if study.id != study_id or self._site not in study.sites:
            self._elsewhere[study_id] = listed
            return
        self._elsewhere.pop(study_id, None)
        self._store(study, data)
        log.info("study_arrived", study=study_id, digest=listed)

    def _store(self, study: Study, data: bytes) -> None:
        folder = self._directory / study.id
        model = folder / "model.onnx"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if _digest_of(model) != study.model.digest:
                store_atomically(model, self._files.download(f"studies/{study.id}/model.onnx"))
            store_atomically(folder / "study.json", data)
        except OSError as error:
            raise _not_stored(folder, error) from error

    def _withdraw(self, folder: Path) -> None:
        # Without its study.json the folder is none; a message under way finds it gone and is refused.
        (folder / "study.json").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        log.info("study_withdrawn", study=folder.name)


def _digest_of(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _not_stored(path, error) from error


def _not_stored(path: Path, error: OSError) -> HardwareError:
    return HardwareError(
        "service.study_not_stored",
        f"A study cannot be kept in {path}: {error.strerror}.",
        next_step="Check the disk, its free space and the directory's owner; it is fetched again by itself.",
    )
