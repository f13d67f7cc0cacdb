"""The approvals of this box: asked for, given, refused and withdrawn. What counts is read at every question.

The log says which approvals were given and withdrawn; the records, with what stewards' keys signed, lie beside it:

    approvals/<sequence>.json              the record whose digest the leaf names
    approvals/<sequence>.withdrawal.json   who withdrew it, and what the key signed
    approvals/last-sequence                the last number that was given out, signed for or not
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

import structlog

from agent.audit.leaves import ApprovalGiven, ApprovalRefused, ApprovalWithdrawn, Leaf, StewardEnrolled
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.files import store_atomically
from agent.core.ids import SiteID
from agent.governance.approval import (
    MAX_RECORD_BYTES,
    TERMINAL_ORIGIN,
    Approval,
    StewardProof,
    check_certificate,
    parse_approval,
    verify_act,
    verify_approval,
)
from agent.governance.challenge import Challenge, WithdrawalChallenge
from agent.governance.stewards import (
    StewardCounters,
    StewardSource,
    bad_counters,
    not_stored,
    people,
    steward_named,
)
from agent.trust.records import StewardFile

COUNTERS_FILE_NAME: Final = "counters.json"
SEQUENCE_FILE_NAME: Final = "last-sequence"
REQUEST_LIFE_S: Final = 900
"""How long, in seconds, a steward may take to read what is asked and to sign it."""
MAX_REQUESTS: Final = 64
MAX_VERIFIED: Final = 256

log = structlog.get_logger()


class ApprovalLog(Protocol):
    """What is needed of the audit log."""

    @property
    def size(self) -> int:
        """How many leaves it has."""
        ...

    def append(self, leaf: Leaf, /) -> int:
        """Add a leaf; it is on the disk when this returns."""
        ...

    def leaves(self, start: int, stop: int, /) -> Iterable[Leaf]:
        """Leaves from `start` to before `stop`."""
        ...


@dataclass(frozen=True, slots=True)
class BoxIdentity:
    """Where approvals count.

    Args:
        root_digest: The consortium's pinned root, hex.
        site: The hospital.
        node: The box.
    """

    root_digest: str
    site: SiteID
    node: str


@dataclass(frozen=True, slots=True)
class Matter:
    """What is to be approved.

    Args:
        study: The study's id.
        study_digest: SHA-256 of study.json, hex.
        dataset: The data set's name.
        dataset_digest: What it is now (`agent.data.fingerprint`).
        epsilon: The whole study's privacy loss; None where its results are not bounded.
    """

    study: str
    study_digest: str
    dataset: str
    dataset_digest: str
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class GivenApproval:
    """An approval as the log has it.

    Args:
        leaf: As it was given.
        withdrawn_by: The steward who withdrew it; empty where nobody did.
        trouble: Why it does not count, in plain words; empty where it does.
    """

    leaf: ApprovalGiven
    withdrawn_by: str = ""
    trouble: str = ""

    @property
    def stands(self) -> bool:
        """Whether it counts now."""
        return not self.trouble


@dataclass(frozen=True, slots=True)
class _Request:
    challenge: Challenge
    until_s: int


class ApprovalBook:
    """Asks for approvals, takes them, and says which ones count. Thread-safe.

    Args:
        directory: For the records; only this box's agent writes there.
        audit: The log.
        box: Where approvals count.
        stewards: Who may decide.
        origins: Where a WebAuthn assertion may come from, beside this box's terminal.
        now_s: Seconds since 1970, not before the latest signed time where there is one.

    Raises:
        OperatorError: The counters of stewards' keys, or the last number, cannot be read (`approval.bad_counters`).
        HardwareError: The disk does not take the directory.
    """

    def __init__(
        self,
        directory: Path,
        audit: ApprovalLog,
        box: BoxIdentity,
        stewards: StewardSource,
        *,
        origins: frozenset[str],
        now_s: Callable[[], int],
    ) -> None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise not_stored(directory, error) from error
        self._directory = directory
        self._audit = audit
        self._box = box
        self._stewards = stewards
        self._origins = origins | {TERMINAL_ORIGIN}
        self._now_s = now_s
        self._counters = StewardCounters(directory / COUNTERS_FILE_NAME)
        self._read = 0
        self._given: dict[int, GivenApproval] = {}
        self._refused: dict[tuple[str, str], set[str]] = {}
        self._keys: dict[str, str] = {}
        self._requests: dict[int, _Request] = {}
        self._last = _load_last(directory / SEQUENCE_FILE_NAME)
        self._verified: set[tuple[str, StewardFile]] = set()
        self._lock = Lock()

    def request(self, matter: Matter, *, not_after_s: int) -> Challenge:
        """Ask for an approval.

        Args:
            matter: What is to be approved.
            not_after_s: Until when it shall count, exclusive, in seconds since 1970.

        Returns:
            What a steward's key shall sign, under a number that was never given out before.

        Raises:
            HardwareError: The disk does not take the number.
        """
        with self._lock:
            self._look()
            challenge = Challenge(
                root_digest=self._box.root_digest,
                site=self._box.site,
                node=self._box.node,
                study=matter.study,
                study_digest=matter.study_digest,
                dataset=matter.dataset,
                dataset_digest=matter.dataset_digest,
                epsilon=matter.epsilon,
                sequence=self._next(),
                not_after_s=not_after_s,
            )
            while len(self._requests) >= MAX_REQUESTS:
                del self._requests[next(iter(self._requests))]
            self._requests[challenge.sequence] = _Request(challenge, self._now_s() + REQUEST_LIFE_S)
            return challenge

    def accept(self, approval: Approval) -> Approval:
        """Take an approval that was asked for; it counts when this returns.

        Raises:
            OperatorError: It was not asked for, or too long ago (`approval.not_asked`), or nobody on record gave it.
            PeerProtocolError: The steward's key did not sign it, or may have been copied.
            HardwareError: The disk does not take it.
        """
        with self._lock:
            self._look()
            now_s, challenge = self._now_s(), approval.challenge
            request = self._requests.get(challenge.sequence)
            if request is None or request.challenge != challenge or request.until_s <= now_s:
                raise _not_asked()
            steward = steward_named(self._stewards, approval.steward)
            count = verify_approval(approval, steward, self._origins)
            check_certificate(steward, now_s=now_s)
            self._counters.check(steward.key_id, count)
            self._store(f"{challenge.sequence}.json", approval.encode())
            self._note_key(steward)
            self._audit.append(_given_leaf(approval, now_s))
            del self._requests[challenge.sequence]
        log.info("study_approved", study=challenge.study, steward=steward.steward, sequence=challenge.sequence)
        return approval

    def refuse(self, matter: Matter, steward: str) -> None:
        """Note that a steward refuses: what was asked for and is not signed yet is not asked for any more.

        Raises:
            OperatorError: Nobody of that name is on record.
        """
        named = steward_named(self._stewards, steward)
        with self._lock:
            kept = {
                number: request
                for number, request in self._requests.items()
                if (request.challenge.study_digest, request.challenge.dataset) != (matter.study_digest, matter.dataset)
            }
            self._requests = kept
            self._look()
            if named.steward in self._refused.get((matter.study_digest, matter.dataset), ()):
                return  # it takes no key to refuse: nobody fills the log by saying it again
            leaf = ApprovalRefused(
                at_s=self._now_s(),
                study=matter.study,
                study_digest=matter.study_digest,
                dataset=matter.dataset,
                steward=named.steward,
            )
            self._audit.append(leaf)
        log.info("study_refused", study=matter.study, steward=named.steward)

    def begin_withdrawal(self, sequence: int) -> WithdrawalChallenge:
        """What a steward's key shall sign to withdraw an approval.

        Raises:
            OperatorError: There is no such approval, or it is withdrawn already (`approval.nothing_to_withdraw`).
        """
        with self._lock:
            return self._withdrawal(sequence)

    def withdraw(self, sequence: int, proof: StewardProof) -> None:
        """Withdraw an approval, for good; any steward of the hospital may. It counts no more when this returns.

        Raises:
            OperatorError: There is nothing to withdraw, or the steward is not on record.
            PeerProtocolError: The steward's key did not sign it, or may have been copied.
            HardwareError: The disk does not take it.
        """
        with self._lock:
            act = self._withdrawal(sequence)
            steward = steward_named(self._stewards, proof.steward)
            count = verify_act(act, proof, steward, self._origins)
            self._counters.check(steward.key_id, count)
            self._store(f"{sequence}.withdrawal.json", proof.encode())
            self._note_key(steward)
            leaf = ApprovalWithdrawn(
                at_s=self._now_s(),
                sequence=sequence,
                study=act.study,
                study_digest=act.study_digest,
                dataset=act.dataset,
                steward=steward.steward,
            )
            self._audit.append(leaf)
        log.info("approval_withdrawn", study=act.study, steward=steward.steward, sequence=sequence)

    def standing(self, study_digest: str, dataset: str) -> tuple[Approval, ...]:
        """The approvals of a study on a data set that count now, oldest first.

        Neither withdrawn nor run out, of this very box, by keys that the hospital has on record now. That the data
        set's digest and epsilon are still those approved is compared by `fitting`.
        """
        with self._lock:
            self._look()
            asked = [entry for entry in self._given.values() if _about(entry, study_digest, dataset)]
            return tuple(found for entry in asked if isinstance(found := self._examine(entry), Approval))

    def given(self) -> tuple[GivenApproval, ...]:
        """Every approval ever given here, oldest first, and why it does not count where it does not."""
        with self._lock:
            self._look()
            return tuple(self._judged(entry) for entry in self._given.values())

    def people(self, approvals: Iterable[Approval]) -> int:
        """How many different people gave these approvals."""
        stewards = self._stewards.stewards()
        return people(stewards[approval.steward] for approval in approvals if approval.steward in stewards)

    def _look(self) -> None:
        """Read what was added to the log."""
        size = self._audit.size
        for leaf in self._audit.leaves(self._read, size):
            if isinstance(leaf, ApprovalGiven):
                self._given.setdefault(leaf.sequence, GivenApproval(leaf))  # a number that comes twice counts once
                self._refused.pop((leaf.study_digest, leaf.dataset), None)
            elif isinstance(leaf, StewardEnrolled):
                self._keys[leaf.steward] = leaf.key_id
            elif isinstance(leaf, ApprovalRefused):
                self._refused.setdefault((leaf.study_digest, leaf.dataset), set()).add(leaf.steward)
            elif isinstance(leaf, ApprovalWithdrawn) and leaf.sequence in self._given:
                self._given[leaf.sequence] = replace(self._given[leaf.sequence], withdrawn_by=leaf.steward)
        self._read = size

    def _note_key(self, steward: StewardFile) -> None:
        """The log must say which key a name stood for, also where its record came after the agent began."""
        if self._keys.get(steward.steward) != steward.key_id:
            self._audit.append(StewardEnrolled(at_s=self._now_s(), steward=steward.steward, key_id=steward.key_id))

    def _next(self) -> int:
        following = max(self._last, *self._given, 0) + 1
        self._store(SEQUENCE_FILE_NAME, str(following).encode())
        self._last = following
        return following

    def _withdrawal(self, sequence: int) -> WithdrawalChallenge:
        self._look()
        entry = self._given.get(sequence)
        if entry is None or entry.withdrawn_by:
            raise _nothing_to_withdraw(sequence, entry)
        return WithdrawalChallenge(
            root_digest=self._box.root_digest,
            site=self._box.site,
            node=self._box.node,
            study=entry.leaf.study,
            study_digest=entry.leaf.study_digest,
            dataset=entry.leaf.dataset,
            sequence=sequence,
        )

    def _judged(self, entry: GivenApproval) -> GivenApproval:
        found = self._examine(entry)
        return entry if isinstance(found, Approval) else replace(entry, trouble=found)

    def _examine(self, entry: GivenApproval) -> Approval | str:
        """The approval, or why it does not count."""
        leaf = entry.leaf
        if entry.withdrawn_by:
            return f"{entry.withdrawn_by} withdrew it"
        if leaf.not_after_s <= self._now_s():
            return "its time has run out"
        try:
            return self._verify(leaf)
        except SecureHealthError as error:
            log.warning("approval_set_aside", sequence=leaf.sequence, error=error)
            return error.sentence

    def _verify(self, leaf: ApprovalGiven) -> Approval:
        steward = steward_named(self._stewards, leaf.steward)
        data = self._load(leaf.sequence)
        approval = parse_approval(data)
        if approval.digest != leaf.approval or _given_leaf(approval, leaf.at_s) != leaf:
            raise _altered(leaf.sequence)
        challenge = approval.challenge
        if (challenge.root_digest, challenge.site, challenge.node) != (
            self._box.root_digest,
            self._box.site,
            self._box.node,
        ):
            raise _another_box(leaf.sequence)
        seen = (approval.digest, steward)
        if seen not in self._verified:
            verify_approval(approval, steward, None)
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified.add(seen)
        return approval

    def _load(self, sequence: int) -> bytes:
        try:
            with (self._directory / f"{sequence}.json").open("rb") as stream:
                return stream.read(MAX_RECORD_BYTES + 1)
        except OSError as error:
            raise _altered(sequence) from error

    def _store(self, name: str, data: bytes) -> None:
        path = self._directory / name
        try:
            store_atomically(path, data, mode=0o600)
        except OSError as error:
            raise not_stored(path, error) from error


def fitting(approvals: Iterable[Approval], *, dataset_digest: str, epsilon: float | None) -> tuple[Approval, ...]:
    """Those that approve the data set as it is now, at this privacy loss."""
    return tuple(
        approval
        for approval in approvals
        if approval.challenge.dataset_digest == dataset_digest and approval.challenge.epsilon == epsilon
    )


def _load_last(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii")[:20])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise bad_counters(path) from error


def _about(entry: GivenApproval, study_digest: str, dataset: str) -> bool:
    return (entry.leaf.study_digest, entry.leaf.dataset) == (study_digest, dataset)


def _given_leaf(approval: Approval, at_s: int) -> ApprovalGiven:
    challenge = approval.challenge
    return ApprovalGiven(
        at_s=at_s,
        sequence=challenge.sequence,
        study=challenge.study,
        study_digest=challenge.study_digest,
        dataset=challenge.dataset,
        dataset_digest=challenge.dataset_digest,
        epsilon=challenge.epsilon,
        not_after_s=challenge.not_after_s,
        steward=approval.steward,
        approval=approval.digest,
    )


def _not_asked() -> OperatorError:
    return OperatorError(
        "approval.not_asked",
        "This approval was not asked for, was given already, or took too long.",
        next_step="Begin anew: read what the study asks, and sign within a quarter of an hour.",
    )


def _nothing_to_withdraw(sequence: int, entry: GivenApproval | None) -> OperatorError:
    what = "was never given here" if entry is None else f"was withdrawn by {entry.withdrawn_by} already"
    return OperatorError(
        "approval.nothing_to_withdraw",
        f"Approval {sequence} {what}.",
        next_step="`seh-agent study show <study>` lists the approvals that count.",
    )


def _altered(sequence: int) -> PeerProtocolError:
    return PeerProtocolError(
        "approval.altered",
        f"The record of approval {sequence} is missing, or is not the one that the log names.",
        next_step="It counts for nothing. Find out who changed the box's files, and approve again.",
    )


def _another_box(sequence: int) -> PeerProtocolError:
    return PeerProtocolError(
        "approval.another_box",
        f"Approval {sequence} was given for another box, hospital or consortium.",
        next_step="It counts for nothing here. Approve again, on this box.",
    )
