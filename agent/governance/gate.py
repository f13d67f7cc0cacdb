"""The gate: permit, approvals, budget, witness and log, joined to one answer for every message.

What the other side learns is the federation's affair; what happened here stands in the audit log, by the rule's name.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from agent.audit.leaves import DataOpened, Leaf, MessageRefused, PermitDecided, RuleFinding, UpdateSent
from agent.core.clock import Clock
from agent.core.errors import OperatorError, SecureHealthError
from agent.data.fingerprint import FileDigests
from agent.governance.admission import Candidate, Permit, Receipt
from agent.governance.approval import Approval
from agent.governance.book import ApprovalBook, Matter, fitting
from agent.governance.ledger import cost_of
from agent.governance.permit import (
    Consent,
    Decision,
    Finding,
    PermitRequest,
    evaluate,
    refusal_of,
    refuse_without_policy,
)
from agent.governance.policy import Policy, load_policy
from agent.trust.study import Study

REPEAT_S: Final = 3600.0
"""A refusal for the same reason is written down once an hour, so that nobody fills the log by asking."""
MAX_REFUSALS: Final = 256
MAX_MODELS: Final = 64
MAX_SENTENCE: Final = 1000
UNSEEN: Final = "0" * 64
"""In the place of a data set's digest where nobody looked at it."""
_WITHOUT_STEWARD: Final = frozenset({"approved", "dataset_unchanged"})
"""What a new approval puts right."""

log = structlog.get_logger()


class DecisionLog(Protocol):
    """What is needed of the audit log."""

    @property
    def size(self) -> int:
        """How many leaves it has."""
        ...

    def leaves(self, start: int, stop: int, /) -> Iterable[Leaf]:
        """Leaves from `start` to before `stop`."""
        ...

    def append(self, leaf: Leaf, /) -> int:
        """Add a leaf; returns its index, once it is on the disk."""
        ...


class Uploads(Protocol):
    """What the witness lets leave."""

    def check(self) -> None:
        """Raise `OperatorError` (`audit.*`) where nothing may leave now."""
        ...

    def cover(self, size: int) -> None:
        """Have the first `size` leaves cosigned, where the consortium has a witness.

        Raises:
            OperatorError: It does not answer, or knows a longer log of this box.
            PeerProtocolError: It saw another history.
        """
        ...


class BudgetDesk(Protocol):
    """The privacy ledger, as the gate asks it."""

    def finding(self, study: Study, digest: str, dataset: str, policy: Policy) -> Finding:
        """What it says about a study, under the rule `budget`."""
        ...

    def reserve(self, study: Study, digest: str, dataset: str, policy: Policy) -> int:
        """Set a study's cost aside, once a study and data set; on the disk when this returns.

        Returns:
            Index of the reservation's leaf.

        Raises:
            OperatorError: It does not suffice (`permit.budget`).
        """
        ...

    def settle(self, study: Study, digest: str, dataset: str) -> None:
        """All that the study releases has left."""
        ...


class StudyGate:
    """Decides, and writes down; see `agent.governance.admission.Gate`. Thread-safe.

    Args:
        audit: The log.
        book: Keeps approvals.
        budget: Keeps the ledger.
        uploads: Whether anything may leave.
        policy: File of the site's policy; read anew at every decision.
        site: This hospital.
        digests: Of data sets.
        clock: The service's.
    """

    def __init__(
        self,
        audit: DecisionLog,
        book: ApprovalBook,
        budget: BudgetDesk,
        uploads: Uploads,
        *,
        policy: Path,
        site: str,
        digests: FileDigests,
        clock: Clock,
    ) -> None:
        self._audit = audit
        self._book = book
        self._budget = budget
        self._uploads = uploads
        self._policy = policy
        self._site = site
        self._digests = digests
        self._clock = clock
        self._models = _ModelDigests()
        self._turns = _Turns(audit)
        self._decided: dict[tuple[str, str], tuple[str, Decision, int]] = {}
        self._refusals: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def policy(self) -> Policy:
        """The site's policy as it is now; one that allows nothing where it cannot be used."""
        try:
            return load_policy(self._policy)
        except OperatorError:
            return Policy()

    def judge(self, candidate: Candidate) -> Decision:
        """Hold a study against every rule; nothing is written down.

        Raises:
            DeclinedError: The data set's file cannot be used.
        """
        return self._judge(candidate)[0]

    def matter_of(self, candidate: Candidate) -> Matter:
        """What a steward would approve.

        Raises:
            DeclinedError: The data set's file cannot be used.
        """
        return self._matter(candidate, self._digests.dataset_digest(candidate.dataset))

    def check_approvable(self, candidate: Candidate) -> None:
        """Check that an approval is all that may be missing.

        Raises:
            OperatorError: Another rule refuses the study (`permit.<rule>`).
        """
        decision = self.judge(candidate)
        others = tuple(finding for finding in decision.refusals if finding.rule not in _WITHOUT_STEWARD)
        if others:
            raise refusal_of(Decision(others))

    def admit(self, candidate: Candidate) -> Permit:
        """Decide whether a study may run on a data set now.

        Raises:
            OperatorError: It may not (`permit.<rule>`).
            DeclinedError: The data set's file cannot be used.
            HardwareError: The disk does not take the decision.
        """
        # What nobody approved touches no data: neither word nor time of its refusal tells of them.
        seen = bool(self._book.standing(candidate.digest, candidate.dataset.id))
        decision, policy, matter, approvals = self._judge(candidate, seen=seen)
        leaf = self._note_decision(matter, decision)
        if not decision.permitted:
            raise refusal_of(decision)
        return Permit(
            study=matter.study,
            study_digest=matter.study_digest,
            dataset=matter.dataset,
            dataset_digest=matter.dataset_digest,
            leaf=leaf,
            approvals=tuple(sorted(approval.challenge.sequence for approval in approvals)),
            minimum_cohort=policy.least_cohort(matter.dataset),
        )

    def note_opened(self, permit: Permit) -> None:
        """The data set is about to be opened."""
        self._audit.append(
            DataOpened(
                at_s=self._now_s(),
                study=permit.study,
                study_digest=permit.study_digest,
                dataset=permit.dataset,
                dataset_digest=permit.dataset_digest,
            )
        )

    def reserve(self, permit: Permit, study: Study) -> None:
        """Set the budget aside, and have the witness see it.

        Raises:
            OperatorError: It does not suffice, or uploads are blocked.
            PeerProtocolError: A witness saw another history of the log.
        """
        self._uploads.check()
        leaf = self._budget.reserve(study, permit.study_digest, permit.dataset, self.policy())
        self._uploads.cover(leaf + 1)

    def check_uploads(self) -> None:
        """Check that anything may leave."""
        self._uploads.check()

    def note_sent(self, permit: Permit, receipt: Receipt, study: Study) -> None:
        """Write the receipt of what is about to leave.

        Raises:
            OperatorError: The log has a receipt of that round already, or of a later one (`rounds.put_back`); or as
                `reserve` says.
        """
        self._turns.check(permit, receipt)
        # A run reserves at its first leg; what became of that since then, its later rounds would not notice.
        self.reserve(permit, study)
        self._audit.append(
            UpdateSent(
                at_s=self._now_s(),
                study=permit.study,
                study_digest=permit.study_digest,
                dataset=permit.dataset,
                round=receipt.round_number,
                attempt=receipt.attempt,
                context=receipt.context.hex(),
                cohort=receipt.cohort,
                bytes=receipt.size,
                sha256=receipt.sha256,
                permit=permit.leaf,
                approval=permit.approvals[-1],
            )
        )
        if receipt.last:
            self._budget.settle(study, permit.study_digest, permit.dataset)

    def note_refused(self, study: str, rule: str) -> None:
        """Write down that a message was refused; what the disk does not take of it is logged, and no more."""
        key, now_s = (study, rule), self._clock.monotonic_s()
        with self._lock:
            if now_s - self._refusals.get(key, -REPEAT_S) < REPEAT_S:
                return
            while len(self._refusals) >= MAX_REFUSALS:
                del self._refusals[next(iter(self._refusals))]
            self._refusals[key] = now_s
        log.warning("study_refused_by_rule", study=study, rule=rule)
        try:
            self._audit.append(MessageRefused(at_s=self._now_s(), study=study, rule=rule))
        except SecureHealthError as error:
            log.warning("refusal_not_kept", error=error)

    def _now_s(self) -> int:
        return int(self._clock.now().timestamp())

    def _matter(self, candidate: Candidate, dataset_digest: str) -> Matter:
        study = candidate.study
        epsilon = cost_of(study, candidate.digest).epsilon
        return Matter(study.id, candidate.digest, candidate.dataset.id, dataset_digest, epsilon)

    def _judge(
        self, candidate: Candidate, *, seen: bool = True
    ) -> tuple[Decision, Policy, Matter, tuple[Approval, ...]]:
        matter = self._matter(candidate, UNSEEN) if not seen else self.matter_of(candidate)
        try:
            policy = load_policy(self._policy)
        except OperatorError as error:
            return refuse_without_policy(error), Policy(), matter, ()
        standing = self._book.standing(matter.study_digest, matter.dataset)
        needed = approvals_needed(policy)
        fit = fitting(standing, dataset_digest=matter.dataset_digest, epsilon=matter.epsilon)
        # An approval of what the data set was before binds nobody once enough approved what it is now.
        approvals = self._by_person(fit)
        shown = approvals if len(approvals) >= needed else self._by_person(standing)
        request = PermitRequest(
            study=candidate.study,
            study_digest=candidate.digest,
            policy=policy,
            site=self._site,
            now=self._clock.now(),
            dataset=matter.dataset,
            schema=candidate.dataset.schema_name,
            dataset_digest=matter.dataset_digest,
            model_digest=self._models.digest(candidate.model),
            epsilon=matter.epsilon,
            consents=tuple(_consent(approval) for approval in shown),
            budget=self._budget.finding(candidate.study, candidate.digest, matter.dataset, policy),
        )
        return evaluate(request), policy, matter, approvals

    def _by_person(self, approvals: Iterable[Approval]) -> tuple[Approval, ...]:
        """One approval a person, whatever keys they have."""
        kept: list[Approval] = []
        for approval in approvals:
            if self._book.people([*kept, approval]) > len(kept):
                kept.append(approval)
        return tuple(kept)

    def _note_decision(self, matter: Matter, decision: Decision) -> int:
        """The decision's leaf: written when it is made, and again when it changes."""
        key = (matter.study_digest, matter.dataset)
        with self._lock:
            known = self._decided.get(key)
            if known is not None and known[:2] == (matter.dataset_digest, decision):
                return known[2]
            rules = tuple(
                RuleFinding(rule=finding.rule, passed=finding.passed, sentence=finding.sentence[:MAX_SENTENCE])
                for finding in decision.findings
            )
            leaf = self._audit.append(
                PermitDecided(
                    at_s=self._now_s(),
                    study=matter.study,
                    study_digest=matter.study_digest,
                    dataset=matter.dataset,
                    dataset_digest=matter.dataset_digest,
                    permitted=decision.permitted,
                    rules=rules,
                )
            )
            self._decided[key] = (matter.dataset_digest, decision, leaf)
        log.info("permit_decided", study=matter.study, dataset=matter.dataset, permitted=decision.permitted)
        return leaf


class _Turns:
    """The last turn (round, attempt) of each study that left each data set, by the log's receipts.

    The record of rounds says that too (`agent.federation.journal`), and an older one can be put back; not an older log.
    """

    def __init__(self, audit: DecisionLog) -> None:
        self._audit = audit
        self._read = 0
        self._last: dict[tuple[str, str], tuple[int, int]] = {}

    def check(self, permit: Permit, receipt: Receipt) -> None:
        size = self._audit.size
        for leaf in self._audit.leaves(self._read, size):
            if isinstance(leaf, UpdateSent):
                self._last[leaf.study_digest, leaf.dataset] = (leaf.round, leaf.attempt)
        self._read = size
        last = self._last.get((permit.study_digest, permit.dataset))
        if last is not None and (receipt.round_number, receipt.attempt) <= last:
            raise OperatorError(
                "rounds.put_back",
                f"Round {receipt.round_number} of the study {permit.study} left this box already, as its audit log "
                "says: the box's record of rounds is an older one, or lost.",
                next_step="Nothing left a second time. Put the newest state back; if it is lost, the study cannot go "
                "on here.",
            )


@dataclass(frozen=True, slots=True)
class _Model:
    identity: tuple[int, int, int, int, int]
    digest: str


class _ModelDigests:
    """SHA-256 of model files, kept for as long as the kernel says that nobody touched them."""

    def __init__(self) -> None:
        self._kept: dict[Path, _Model] = {}

    def digest(self, path: Path) -> str:
        """In hex; empty where there is no such file."""
        try:
            with path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                kept = self._kept.get(path)
                if kept is not None and kept.identity == identity:
                    return kept.digest
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return ""
        while len(self._kept) >= MAX_MODELS:
            del self._kept[next(iter(self._kept))]
        self._kept[path] = _Model(identity, digest)
        return digest


def approvals_needed(policy: Policy) -> int:
    """How many people must approve each study."""
    return 2 if policy.rules.two_people else 1


def _consent(approval: Approval) -> Consent:
    challenge = approval.challenge
    return Consent(approval.steward, challenge.dataset_digest, challenge.epsilon, challenge.not_after_s)
