"""A gate that lets everything pass, and remembers what it was told; tests change what it says."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.core.errors import SecureHealthError
from agent.governance.admission import Candidate, Permit, Receipt
from agent.trust.study import Study


@dataclass(slots=True)
class PermittingGate:
    """A `Gate` under which every study may run."""

    dataset_digest: str = "d5" * 32
    refusal: SecureHealthError | None = None
    blocked: SecureHealthError | None = None
    sent: list[Receipt] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def admit(self, candidate: Candidate) -> Permit:
        if self.refusal is not None:
            raise self.refusal
        study = candidate.study
        return Permit(study.id, candidate.digest, candidate.dataset.id, self.dataset_digest, 0, (1,), 3)

    def note_opened(self, permit: Permit) -> None:
        """Nothing is kept."""

    def reserve(self, permit: Permit, study: Study) -> None:
        self.check_uploads()

    def check_uploads(self) -> None:
        if self.blocked is not None:
            raise self.blocked

    def note_sent(self, permit: Permit, receipt: Receipt, study: Study) -> None:
        self.sent.append(receipt)

    def note_refused(self, study: str, rule: str) -> None:
        self.refused.append((study, rule))
