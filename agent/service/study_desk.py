"""Answers console and terminal about studies: what they want, how they stand here, who approved them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from agent.audit.leaves import ApprovalGiven, ApprovalRefused, ApprovalWithdrawn, Leaf
from agent.core.box_view import (
    MAX_LISTED,
    MAX_NAMES,
    ApprovalView,
    ChallengeView,
    FindingView,
    RoundsAnswer,
    RoundView,
    StewardsAnswer,
    StewardView,
    StudiesAnswer,
    StudyLine,
    StudyState,
    StudyView,
)
from agent.core.clock import Clock
from agent.core.errors import OperatorError, SecureHealthError
from agent.core.files import store_atomically
from agent.core.ids import check_identifier
from agent.federation.board import RoundBoard
from agent.federation.studies import StudyFolder, choose_dataset, load_study
from agent.governance.admission import Candidate
from agent.governance.approval import TERMINAL_ORIGIN, parse_approval, parse_proof
from agent.governance.book import ApprovalBook, GivenApproval, Matter
from agent.governance.gate import MAX_SENTENCE, StudyGate, approvals_needed
from agent.governance.ledger import cost_of
from agent.governance.permit import Decision, Finding
from agent.governance.stewards import StewardSource, not_stored, steward_named
from agent.service.requests import (
    ApprovalBeginRequest,
    ApprovalCompleteRequest,
    ApprovalRefuseRequest,
    Handlers,
    StewardOfferRequest,
    StudiesRequest,
    StudyRequest,
    WithdrawBeginRequest,
    WithdrawCompleteRequest,
)
from agent.trust.records import StewardFile, parse_record
from agent.trust.terms import aggregation_terms

MAX_OFFERS: Final = 32
MAX_LIST_BYTES: Final = 48_000
_DAY_S: Final = 86_400


class DecisionLog(Protocol):
    """What is read of the audit log."""

    @property
    def size(self) -> int:
        """How many leaves it has."""
        ...

    def leaves(self, start: int, stop: int, /) -> Iterable[Leaf]:
        """Leaves from `start` to before `stop`."""
        ...


@dataclass(frozen=True, slots=True)
class StudyShelves:
    """Where studies and data sets lie.

    Args:
        studies: Directory of studies.
        catalog: File of data sets.
        offers: Directory of stewards' keys that wait for their endorsement.
    """

    studies: Path
    catalog: Path
    offers: Path


@dataclass(slots=True)
class StudyDesk:
    """Answers; one call at a time, from the control socket's thread.

    Args:
        shelves: Where things lie.
        gate: Decides.
        book: Keeps approvals.
        stewards: Who may decide.
        audit: The log.
        board: The newest rounds.
        site: This hospital.
        origins: Where stewards' assertions may come from beside the terminal; the console's own first.
        clock: The service's.
    """

    shelves: StudyShelves
    gate: StudyGate
    book: ApprovalBook
    stewards: StewardSource
    audit: DecisionLog
    board: RoundBoard
    site: str
    origins: tuple[str, ...]
    clock: Clock
    _refused: dict[tuple[str, str], bool] = field(default_factory=dict)
    _read: int = 0
    _lock: Lock = field(default_factory=Lock)

    def handlers(self) -> Handlers:
        """By the request's word."""
        return {
            "studies": self.list_studies,
            "study": self.show_study,
            "stewards": lambda _: self.list_stewards(),
            "approval-begin": self.begin_approval,
            "approval-complete": self.complete_approval,
            "approval-refuse": self.refuse,
            "approval-withdraw-begin": self.begin_withdrawal,
            "approval-withdraw-complete": self.complete_withdrawal,
            "steward-offer": self.offer_steward,
            "rounds": lambda _: self.list_rounds(),
        }

    def list_studies(self, request: StudiesRequest) -> StudiesAnswer:
        """The studies that lie here, and those that were decided about and are gone."""
        given = self.book.given()
        here = sorted(path.parent.name for path in self.shelves.studies.glob("*/study.json"))
        names = [*here, *sorted({entry.leaf.study for entry in given} - set(here))]
        lines, room = list[StudyLine](), MAX_LIST_BYTES
        for name in names[request.start : request.start + MAX_LISTED]:
            line = self._line(name, given)
            room -= len(line.model_dump_json())
            if room < 0 and lines:
                break  # titles that fill an answer must not keep the other studies from being listed
            lines.append(line)
        end = request.start + len(lines)
        return StudiesAnswer(studies=tuple(lines), following=end if end < len(names) else None)

    def show_study(self, request: StudyRequest) -> StudyView:
        """One study, with its permit."""
        folder = load_study(self.shelves.studies, request.study)
        candidate, decision, dataset_digest = self._judge(folder)
        study, dataset = folder.study, "" if candidate is None else candidate.dataset.id
        names = sorted({spec.name for spec in study.data.features} | {study.data.label.field})
        cost = cost_of(study, folder.digest)
        given = [entry for entry in self.book.given() if entry.leaf.study_digest == folder.digest]
        return StudyView(
            line=self._line_of(folder, dataset, decision, given),
            purpose=study.purpose,
            duo=study.duo,
            legal_basis=study.legal_basis,
            sites=study.sites[:MAX_NAMES],
            site_count=len(study.sites),
            minimum_sites=_smallest_cohort(folder),
            rounds=study.rounds,
            fields=tuple(names[:MAX_NAMES]),
            field_count=len(names),
            label=study.data.label.field,
            minimum_rows=study.data.minimum_rows,
            dropout=study.secagg.dropout,
            accept_differencing=study.secagg.accept_differencing,
            unit=cost.unit if cost.epsilon is not None else None,
            epsilon=cost.epsilon,
            delta=cost.delta,
            dataset_digest=dataset_digest,
            findings=tuple(_finding_view(finding) for finding in decision.findings[:MAX_NAMES]),
            approvals=tuple(_approval_view(entry, dataset_digest) for entry in reversed(given[-MAX_LISTED:])),
            approvals_needed=approvals_needed(self.gate.policy()),
        )

    def list_stewards(self) -> StewardsAnswer:
        """Those on record, then those offered."""
        known = self.stewards.stewards()
        views = [self._steward_view(steward, endorsed=True) for _, steward in sorted(known.items())]
        for steward in self._offers():
            if steward.steward not in known or known[steward.steward].key_id != steward.key_id:
                views.append(self._steward_view(steward, endorsed=False))
        return StewardsAnswer(stewards=tuple(views[:MAX_LISTED]))

    def begin_approval(self, request: ApprovalBeginRequest) -> ChallengeView:
        """Ask for an approval; a study that no approval could let run is not asked for.

        Raises:
            OperatorError: The study or the steward is unknown, or another rule of the permit refuses the study.
        """
        folder, steward = self._known(request.study), steward_named(self.stewards, request.steward)
        candidate, matter = self._matter(folder)
        self.gate.check_approvable(candidate)
        now_s = int(self.clock.now().timestamp())
        days = self.gate.policy().rules.approval_days
        not_after_s = min(int(folder.study.expires.timestamp()), now_s + days * _DAY_S)
        challenge = self.book.request(matter, not_after_s=not_after_s)
        return self._challenge_view(challenge.digest, challenge.payload(), steward)

    def complete_approval(self, request: ApprovalCompleteRequest) -> ApprovalView:
        """Take an approval; the study must still lie here as it was asked about.

        Raises:
            SecureHealthError: It does not count.
        """
        approval = parse_approval(request.approval.encode())
        folder = self._known(approval.challenge.study)
        _, matter = self._matter(folder)
        challenge = approval.challenge
        if (challenge.study_digest, challenge.dataset_digest) != (matter.study_digest, matter.dataset_digest):
            raise _changed_meanwhile(challenge.study)
        self.book.accept(approval)
        entry = next(entry for entry in self.book.given() if entry.leaf.sequence == challenge.sequence)
        return _approval_view(entry, challenge.dataset_digest)

    def refuse(self, request: ApprovalRefuseRequest) -> None:
        """Note that a steward refuses."""
        _, matter = self._matter(self._known(request.study))
        self.book.refuse(matter, request.steward)

    def begin_withdrawal(self, request: WithdrawBeginRequest) -> ChallengeView:
        """What a steward's key shall sign to withdraw."""
        steward = steward_named(self.stewards, request.steward)
        challenge = self.book.begin_withdrawal(request.sequence)
        return self._challenge_view(challenge.digest, challenge.payload(), steward)

    def complete_withdrawal(self, request: WithdrawCompleteRequest) -> None:
        """Withdraw: the next message of the study is refused."""
        self.book.withdraw(request.sequence, parse_proof(request.proof.encode()))

    def offer_steward(self, request: StewardOfferRequest) -> StewardView:
        """Keep a new key's record for the hospital's role to endorse.

        Raises:
            SecureHealthError: It is no such record, of another hospital, or too many wait.
        """
        steward = parse_record(StewardFile, request.record.encode())
        waiting = {offer.steward for offer in self._offers()}
        if steward.site != self.site or len(waiting | {steward.steward}) > MAX_OFFERS:
            raise _not_offered(steward.site)
        path = self.shelves.offers / f"{steward.steward}.json"
        try:
            self.shelves.offers.mkdir(mode=0o700, parents=True, exist_ok=True)
            store_atomically(path, steward.encode())
        except OSError as error:
            raise not_stored(path, error) from error
        return self._steward_view(steward, endorsed=False)

    def list_rounds(self) -> RoundsAnswer:
        """The newest round of each study, those under way first."""
        now_s = self.clock.monotonic_s()
        views = []
        for progress, under_way in self.board.newest()[:MAX_LISTED]:
            views.append(
                RoundView(
                    study=progress.study,
                    title=progress.title,
                    dataset=progress.dataset,
                    round=progress.round_number,
                    rounds=progress.rounds,
                    attempt=progress.attempt,
                    stage=progress.stage,
                    cohort=progress.cohort,
                    bytes=progress.size,
                    started_s=progress.started,
                    seconds=round((now_s if under_way else progress.heard_s) - progress.started_s, 3),
                    under_way=under_way,
                )
            )
        return RoundsAnswer(rounds=tuple(sorted(views, key=lambda view: not view.under_way)))

    def _known(self, study: str) -> StudyFolder:
        return load_study(self.shelves.studies, check_identifier(study, kind="study"))

    def _candidate(self, folder: StudyFolder) -> Candidate:
        dataset = choose_dataset(self.shelves.catalog, folder.study)
        return Candidate(folder.study, folder.digest, folder.model, dataset)

    def _matter(self, folder: StudyFolder) -> tuple[Candidate, Matter]:
        candidate = self._candidate(folder)
        return candidate, self.gate.matter_of(candidate)

    def _judge(self, folder: StudyFolder) -> tuple[Candidate | None, Decision, str]:
        """How a study stands; where its data cannot be used, that is the decision."""
        candidate = None
        try:
            candidate = self._candidate(folder)
            return candidate, self.gate.judge(candidate), self.gate.matter_of(candidate).dataset_digest
        except SecureHealthError as error:
            return candidate, Decision((Finding("schema", passed=False, sentence=error.sentence),)), ""

    def _line(self, name: str, given: Iterable[GivenApproval]) -> StudyLine:
        try:
            folder = self._known(name)
        except OperatorError as error:
            known = next((entry.leaf for entry in given if entry.leaf.study == name), None)
            digest, dataset = ("", "") if known is None else (known.study_digest, known.dataset)
            return StudyLine(
                study=name,
                study_digest=digest,
                title=error.sentence[:MAX_SENTENCE] if known is None else "",
                requester="",
                state="absent",
                dataset=dataset,
            )
        candidate, decision, _ = self._judge(folder)
        entries = [entry for entry in given if entry.leaf.study_digest == folder.digest]
        return self._line_of(folder, "" if candidate is None else candidate.dataset.id, decision, entries)

    def _line_of(
        self, folder: StudyFolder, dataset: str, decision: Decision, given: Iterable[GivenApproval]
    ) -> StudyLine:
        study = folder.study
        running = {progress.study for progress, under_way in self.board.newest() if under_way}
        return StudyLine(
            study=study.id,
            study_digest=folder.digest,
            title=study.title,
            requester=study.requester,
            state=self._state(folder.digest, dataset, decision, given),
            rule=decision.refusals[0].rule if decision.refusals else "",
            dataset=dataset,
            expires_s=int(study.expires.timestamp()),
            running=study.id in running,
        )

    def _state(self, digest: str, dataset: str, decision: Decision, given: Iterable[GivenApproval]) -> StudyState:
        if decision.permitted:
            return "approved"
        if not decision.awaits_steward:
            return "not-permitted"
        if self._was_refused(digest, dataset):
            return "refused"
        return "withdrawn" if any(entry.withdrawn_by for entry in given) else "waiting"

    def _was_refused(self, digest: str, dataset: str) -> bool:
        """Whether the last decision about a study on a data set was a refusal."""
        with self._lock:
            size = self.audit.size
            for leaf in self.audit.leaves(self._read, size):
                if isinstance(leaf, ApprovalGiven | ApprovalWithdrawn | ApprovalRefused):
                    self._refused[leaf.study_digest, leaf.dataset] = isinstance(leaf, ApprovalRefused)
            self._read = size
            return self._refused.get((digest, dataset), False)

    def _offers(self) -> list[StewardFile]:
        found = []
        for path in sorted(self.shelves.offers.glob("*.json"))[:MAX_OFFERS]:
            try:
                found.append(parse_record(StewardFile, path.read_bytes()))
            except (OSError, SecureHealthError):
                continue  # it counts for nothing anyway
        return found

    def _challenge_view(self, digest: bytes, payload: bytes, steward: StewardFile) -> ChallengeView:
        view = self._steward_view(steward, endorsed=True)
        return ChallengeView(
            challenge=digest.hex(), payload=payload.decode(), steward=view, origin=next(iter(self.origins), "")
        )

    def _steward_view(self, steward: StewardFile, *, endorsed: bool) -> StewardView:
        card = steward.kind == "piv"
        return StewardView(
            steward=steward.steward,
            kind=steward.kind,
            key_id=steward.key_id,
            rp_id=steward.rp_id or "",
            origins=() if card else (*self.origins, TERMINAL_ORIGIN),
            credential_id=steward.credential_id or "",
            public_key=steward.public_key,
            endorsed=endorsed,
        )


def _finding_view(finding: Finding) -> FindingView:
    return FindingView(rule=finding.rule, passed=finding.passed, sentence=finding.sentence[:MAX_SENTENCE])


def _approval_view(entry: GivenApproval, dataset_digest: str) -> ApprovalView:
    leaf = entry.leaf
    changed = "" if leaf.dataset_digest == dataset_digest else "the data set is not as it was then"
    return ApprovalView(
        sequence=leaf.sequence,
        steward=leaf.steward,
        dataset=leaf.dataset,
        epsilon=leaf.epsilon,
        given_s=leaf.at_s,
        not_after_s=leaf.not_after_s,
        standing=entry.stands,
        trouble=entry.trouble or changed,
    )


def _smallest_cohort(folder: StudyFolder) -> int:
    try:
        return aggregation_terms(folder.study, folder.digest).minimum_sites
    except OperatorError:
        return 0


def _changed_meanwhile(study: str) -> OperatorError:
    return OperatorError(
        "approval.changed_meanwhile",
        f"The study {study} or its data set changed while the steward was reading.",
        next_step="Nothing was approved. Read the study again, and approve it if it is still right.",
    )


def _not_offered(site: str) -> OperatorError:
    return OperatorError(
        "approval.not_offered",
        f"The key's record is of {site}, which is not this box's hospital, or too many keys wait already.",
        next_step="Offer a key of this hospital; have its operator endorse or remove those that wait "
        "(`seh-provision steward`).",
    )
