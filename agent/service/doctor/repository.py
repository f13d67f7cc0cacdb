"""The consortium's repository: whether what this box believes is signed, fresh, and still names the box."""

from __future__ import annotations

from agent.core.errors import HardwareError, OperatorError
from agent.identity.session import utc
from agent.service.affiliation import standing
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding


def check(box: Box) -> Finding:
    """Fetch and verify what is new, into a copy.

    Raises:
        SecureHealthError: It cannot be had, does not verify, or has expired.
    """
    if box.record is None:
        return Finding.not_applicable("The box is not enrolled, so no repository speaks to it.")
    if box.repository is None:
        raise HardwareError(
            "doctor.trust_unreadable",
            "What this box keeps of its consortium's repository cannot be read.",
            next_step="Check the disk; if the directory is gone, enrol the box again with a new token.",
        )
    snapshot = box.repository.refresh()
    said = standing(snapshot, box.record)
    if said:
        return Finding.warning(
            OperatorError(
                "doctor.standing",
                f"The consortium's records are not as this box needs them: {said.replace(chr(10), ' ')}",
                next_step="Ask the hospital's operator, where this is not meant to be so.",
            )
        )
    return Finding.ok(f"{box.record.name} names this box; what it signed counts until {utc(snapshot.expires_s)}.")
