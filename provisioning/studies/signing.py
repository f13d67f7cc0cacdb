"""A study on its way to the hospitals: proposed with its model, signed by one holder after another, then published."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.core.errors import OperatorError
from agent.trust.delegations import STUDIES
from agent.trust.model import verify_model
from agent.trust.study import Study, parse_study, study_digest
from agent.trust.terms import aggregation_terms, check_privacy
from provisioning.authority.ceremony import Ceremony, PendingChange, list_files

STUDY_FILE: Final = "study.json"
MODEL_FILE: Final = "model.onnx"


@dataclass(frozen=True, slots=True)
class Proposal:
    """A study that waits for signatures.

    Args:
        study: As parsed.
        data: The file.
        others: Ids of the studies that stay listed beside it, sorted.
    """

    study: Study
    data: bytes = field(repr=False)
    others: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return study_digest(self.data)


def propose_study(ceremony: Ceremony, data: bytes, model: bytes, known_sites: Collection[str]) -> PendingChange:
    """Propose a study with its model; nobody has signed it yet.

    Args:
        ceremony: Makes changes of the consortium.
        data: `study.json`.
        model: The model file that it names.
        known_sites: The consortium's hospitals.

    Raises:
        OperatorError: Study or model cannot be used, it names a hospital that is not there, or its id is another's.
        SecureHealthError: As `Ceremony.propose` says.
    """
    study = check_files(data, model)
    if missing := sorted(set(study.sites) - set(known_sites)):
        raise OperatorError(
            "study.unknown_site",
            f"The study names {', '.join(missing)}, which the consortium does not know.",
            next_step="Correct study.json, or have the hospital added first.",
        )
    files = {target_path(study.id, STUDY_FILE): data, target_path(study.id, MODEL_FILE): model}

    def edit(role: Targets) -> None:
        _check_free(role, study, files)
        list_files(files)(role)

    return ceremony.propose(STUDIES, edit, targets=files)


def read_proposal(pending: PendingChange) -> Proposal:
    """What a change that waits puts before the hospitals: what its signers must read.

    Raises:
        OperatorError: It adds no study, or the study in it is not the one that is being signed.
    """
    files = pending.change.targets
    studies = [path for path in files if PurePosixPath(path).name == STUDY_FILE]
    if pending.role != STUDIES or len(studies) != 1:
        raise OperatorError(
            "study.no_proposal",
            "The change adds no study.",
            next_step="Name a file that `seh-provision study sign` wrote; others: `seh-provision consortium sign`.",
        )
    data = files[studies[0]]
    listed = _check_listed(pending, files)
    study = parse_study(data)
    model = files.get(target_path(study.id, MODEL_FILE))
    if model is None or studies[0] != target_path(study.id, STUDY_FILE) or len(files) != 2:
        raise _altered("it does not hold just one study and its model")
    check_files(data, model)
    ids = {PurePosixPath(path).parent.name for path in listed.targets}
    return Proposal(study, data, tuple(sorted(ids - {study.id})))


def check_files(data: bytes, model: bytes) -> Study:
    """Check a study and its model together, before anybody signs.

    Raises:
        OperatorError: One of them cannot be used, or they do not belong together.
    """
    study = parse_study(data)
    check_privacy(aggregation_terms(study, study_digest(data)))
    verify_model(model, study.model)
    return study


def target_path(study: str, name: str) -> str:
    """Where the repository keeps a study's file."""
    return f"{STUDIES}/{study}/{name}"


def _check_free(role: Targets, study: Study, files: Mapping[str, bytes]) -> None:
    path = target_path(study.id, STUDY_FILE)
    if path in role.targets and role.targets[path] != TargetFile.from_data(path, files[path], ["sha256"]):
        raise OperatorError(
            "study.id_taken",
            f"Another study is published under the id {study.id}.",
            next_step="Give this one an id of its own; hospitals approved the other.",
        )


def _check_listed(pending: PendingChange, files: Mapping[str, bytes]) -> Targets:
    listed = Metadata[Targets].from_bytes(pending.data).signed
    for path, data in files.items():
        if path not in listed.targets:
            raise _altered(f"{path} is not part of what is signed")
        try:
            listed.targets[path].verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise _altered(f"{path} is not the file that is signed") from error
    return listed


def _altered(what: str) -> OperatorError:
    return OperatorError(
        "study.altered",
        f"The study was altered after it was prepared: {what}.",
        next_step="Sign nothing. Remove the file, and have the study prepared anew from study.json.",
    )
