"""The running agent on this box, as console and terminal speak with it: `agent.core.box_view.Box`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent.core.box_view import (
    ApprovalView,
    AuditView,
    BudgetAnswer,
    BudgetView,
    ChallengeView,
    ExportPiece,
    HealthView,
    RoundsAnswer,
    RoundView,
    StateView,
    StewardsAnswer,
    StewardView,
    StudiesAnswer,
    StudyLine,
    StudyView,
)
from agent.service.control import ask_agent, no_answer

ViewT = TypeVar("ViewT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class RunningBox:
    """Asks the agent that runs on a state directory; every call may raise `SecureHealthError`.

    Args:
        directory: Its state directory.
    """

    directory: Path

    def status(self) -> StateView:
        """How it does."""
        return self._ask(StateView, "status")

    def studies(self) -> tuple[StudyLine, ...]:
        """All studies that this box was given, or has decided about."""
        found: list[StudyLine] = []
        following: int | None = 0
        while following is not None:
            answer = self._ask(StudiesAnswer, "studies", start=following)
            found += answer.studies
            following = answer.following if answer.studies else None
        return tuple(found)

    def study(self, study: str) -> StudyView:
        """One of them, with its permit."""
        return self._ask(StudyView, "study", study=study)

    def stewards(self) -> tuple[StewardView, ...]:
        """The keys that may approve, and those offered."""
        return self._ask(StewardsAnswer, "stewards").stewards

    def begin_approval(self, study: str, steward: str) -> ChallengeView:
        """What the steward's key shall sign to approve."""
        return self._ask(ChallengeView, "approval-begin", study=study, steward=steward)

    def complete_approval(self, approval: str) -> ApprovalView:
        """Hand in an approval record, JSON."""
        return self._ask(ApprovalView, "approval-complete", approval=approval)

    def refuse_study(self, study: str, steward: str) -> None:
        """Note that a steward refuses."""
        ask_agent(self.directory, "approval-refuse", study=study, steward=steward)

    def begin_withdrawal(self, sequence: int, steward: str) -> ChallengeView:
        """What the steward's key shall sign to withdraw an approval."""
        return self._ask(ChallengeView, "approval-withdraw-begin", sequence=sequence, steward=steward)

    def complete_withdrawal(self, sequence: int, proof: str) -> None:
        """Hand in its proof; the next message is refused."""
        ask_agent(self.directory, "approval-withdraw-complete", sequence=sequence, proof=proof)

    def offer_steward(self, record: str) -> StewardView:
        """Keep a new key's record for the hospital's role to endorse."""
        return self._ask(StewardView, "steward-offer", record=record)

    def budget(self) -> tuple[BudgetView, ...]:
        """The ledger."""
        return self._ask(BudgetAnswer, "budget").budget

    def rounds(self) -> tuple[RoundView, ...]:
        """The newest rounds, those under way first."""
        return self._ask(RoundsAnswer, "rounds").rounds

    def audit(self, start: int | None = None, search: str = "") -> AuditView:
        """Leaves from `start` back."""
        return self._ask(AuditView, "audit", start=start, search=search)

    def export(self, size: int, offset: int) -> ExportPiece:
        """A piece of the exported log."""
        return self._ask(ExportPiece, "audit-export", size=size, offset=offset)

    def doctor(self) -> HealthView:
        """The last examination."""
        return self._ask(HealthView, "doctor")

    def _ask(self, view: type[ViewT], request: str, **fields: str | int | None) -> ViewT:
        answer = ask_agent(self.directory, request, **fields)
        try:
            return view.model_validate(answer)
        except ValidationError as error:
            raise no_answer() from error
