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
    content = record.model_dump() | {"witnesses": [known.model_dump() for known in (*others, witness)]}
    try:
        data = ConsortiumRecord.model_validate(content).encode()
    except ValidationError as error:
        raise OperatorError(
            "authority.unfit_witness",
            f"{witness.name} cannot witness for this consortium: {explain_invalid(error, whole='it')}.",
            next_step="Have another party run the witness, on a host of its own.",
        ) from error

    def edit(role: Targets) -> None:
        role.targets[CONSORTIUM_TARGET] = TargetFile.from_data(CONSORTIUM_TARGET, data, ["sha256"])

    return ceremony.change(Targets.type, edit, targets={CONSORTIUM_TARGET: data})
