"""Which witnesses of the boxes' audit logs `consortium.json` names."""

from __future__ import annotations

from pydantic import ValidationError
from tuf.api.metadata import Metadata, TargetFile, Targets

from agent.core.errors import OperatorError
from agent.core.validation import explain_invalid
from agent.trust.records import CONSORTIUM_TARGET, ConsortiumRecord, WitnessRecord, parse_record
from provisioning.authority.ceremony import Ceremony, PendingChange
from provisioning.authority.repository import RepositoryFiles


def consortium_record(files: RepositoryFiles) -> ConsortiumRecord:
    """`consortium.json`, as published."""
    targets = Metadata[Targets].from_bytes(files.load().roles[Targets.type]).signed
    listed = targets.targets[CONSORTIUM_TARGET]
    return parse_record(ConsortiumRecord, files.target(CONSORTIUM_TARGET, listed.hashes["sha256"]))


def name_witness(ceremony: Ceremony, files: RepositoryFiles, witness: WitnessRecord) -> PendingChange:
    """Name a witness, or its new record; the `targets` role signs.

    Args:
        ceremony: Makes the change.
        files: The published repository.
        witness: As `seh-provision witness init` made it.

    Raises:
        OperatorError: It cannot stand beside the consortium's other servers (`authority.unfit_witness`).
        SecureHealthError: As `Ceremony.change` says.
    """
    record = consortium_record(files)
    others = tuple(known for known in record.witnesses if known.name != witness.name)
    try:
        return _change(ceremony, record, (*others, witness))
    except ValidationError as error:
        raise OperatorError(
            "authority.unfit_witness",
            f"{witness.name} cannot witness for this consortium: {explain_invalid(error, whole='it')}.",
            next_step="Have another party run the witness, on a host of its own.",
        ) from error


def dismiss_witness(ceremony: Ceremony, files: RepositoryFiles, name: str) -> PendingChange:
    """Name a witness no more; the `targets` role signs.

    Args:
        ceremony: Makes the change.
        files: The published repository.
        name: The witness's.

    Raises:
        OperatorError: The consortium names no such witness (`authority.unknown_witness`).
        SecureHealthError: As `Ceremony.change` says.
    """
    record = consortium_record(files)
    others = tuple(known for known in record.witnesses if known.name != name)
    if len(others) == len(record.witnesses):
        named = ", ".join(known.name for known in record.witnesses) or "none"
        raise OperatorError(
            "authority.unknown_witness",
            f"The consortium names no witness {name[:80]!r}; it names {named}.",
            next_step="Give the name as `seh-provision consortium status` shows it.",
        )
    return _change(ceremony, record, others)


def _change(ceremony: Ceremony, record: ConsortiumRecord, witnesses: tuple[WitnessRecord, ...]) -> PendingChange:
    content = record.model_dump() | {"witnesses": [known.model_dump() for known in witnesses]}
    data = ConsortiumRecord.model_validate(content).encode()

    def edit(role: Targets) -> None:
        role.targets[CONSORTIUM_TARGET] = TargetFile.from_data(CONSORTIUM_TARGET, data, ["sha256"])

    return ceremony.change(Targets.type, edit, targets={CONSORTIUM_TARGET: data})
