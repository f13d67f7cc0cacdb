"""What a box shows of itself: the answers of the agent's control socket, as console and terminal read them.

Numbers and short words, so that each of them can speak its own language. Lists are cut to what one answer can hold.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

PIECE_BYTES: Final = 40_000
"""Of an exported log in one answer: JSON may double it, and a line of the control socket holds 64 KiB."""
MAX_LISTED: Final = 40
"""Studies, stewards, ledger rows or running rounds in one answer."""
MAX_LEAVES: Final = 50
MAX_NAMES: Final = 200
"""Field names, sites or rules of one study in one answer."""

StudyState = Literal["waiting", "approved", "refused", "withdrawn", "not-permitted", "absent"]
"""`waiting` for stewards; `not-permitted` by a rule of the permit; `absent`: its files are no longer here."""
Unit = Literal["record", "hospital"]
Hex = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2})*$")]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FindingView(_View):
    """One rule of a permit, and how the study stands to it.

    Args:
        rule: Its stable name.
        passed: Whether it lets the study pass.
        sentence: Why, in plain words.
    """

    rule: str
    passed: bool
    sentence: str


class ApprovalView(_View):
    """One steward's approval.

    Args:
        sequence: Its number in this box's log.
        steward: Who gave it.
        dataset: Of which data set.
        epsilon: The privacy loss that was approved; None where the study's results are not bounded.
        given_s: When, in seconds since 1970.
        not_after_s: Until when it counts.
        standing: Whether it can count: neither expired nor withdrawn, by a key on record.
        trouble: Why it does not count now, in plain words; empty where it does. One that stands may be of other data.
    """

    sequence: int
    steward: str
    dataset: str
    epsilon: float | None
    given_s: int
    not_after_s: int
    standing: bool
    trouble: str = ""


class StudyLine(_View):
    """A study in a list.

    Args:
        study: Its id.
        study_digest: SHA-256 of study.json, hex.
        title: As its requester calls it.
        requester: Who asks.
        state: How it stands on this box.
        rule: The first rule that keeps it from running; empty where none does.
        dataset: The local data set that it is about; empty where none fits.
        expires_s: When the study ends, in seconds since 1970.
        running: Whether a round of it is under way.
    """

    study: str
    study_digest: str
    title: str
    requester: str
    state: StudyState
    rule: str = ""
    dataset: str = ""
    expires_s: int = 0
    running: bool = False


class StudyView(_View):
    """All that a steward must know before deciding.

    Args:
        line: As in the list.
        purpose: In plain words, its requester's.
        duo: Data Use Ontology codes.
        legal_basis: Legal basis, or the data permit's id.
        sites: The hospitals that it names.
        site_count: How many; `sites` may be cut.
        minimum_sites: Fewest hospitals in a sum.
        rounds: Rounds of training.
        fields: Fields of the records that are read.
        field_count: How many; `fields` may be cut.
        label: The field whose value is learnt.
        minimum_rows: Fewest rows that it needs here.
        dropout: `wait` for all, or `continue` without the missing.
        accept_differencing: Whether an approval also accepts what `continue` without noise can reveal.
        unit: Whom the privacy budget protects; None where results are not bounded.
        epsilon: The whole study's; None where results are not bounded.
        delta: Likewise; 0 where not bounded.
        dataset_digest: Digest of the data set as it is now, hex; empty where none fits.
        findings: The permit, rule by rule.
        approvals: Those given, the newest first.
        approvals_needed: How many different stewards must approve.
    """

    line: StudyLine
    purpose: str
    duo: tuple[str, ...] = ()
    legal_basis: str = ""
    sites: tuple[str, ...] = ()
    site_count: int = 0
    minimum_sites: int = 0
    rounds: int = 0
    fields: tuple[str, ...] = ()
    field_count: int = 0
    label: str = ""
    minimum_rows: int = 0
    dropout: str = "wait"
    accept_differencing: bool = False
    unit: Unit | None = None
    epsilon: float | None = None
    delta: float = 0.0
    dataset_digest: str = ""
    findings: tuple[FindingView, ...] = ()
    approvals: tuple[ApprovalView, ...] = ()
    approvals_needed: int = 1


class StewardView(_View):
    """A steward's key.

    Args:
        steward: Short name.
        kind: `webauthn` or `piv`.
        key_id: SHA-256 of the public key, hex.
        rp_id: Relying party of a WebAuthn credential; empty for a card.
        origins: Where a WebAuthn assertion may come from.
        credential_id: Of a WebAuthn credential, hex; empty for a card.
        public_key: PEM, to tell a steward by at the console's door; empty where it is not shown.
        endorsed: Whether the hospital's role has signed it; before that it counts for nothing.
    """

    steward: str
    kind: Literal["webauthn", "piv"]
    key_id: str
    rp_id: str = ""
    origins: tuple[str, ...] = ()
    credential_id: Hex = ""
    public_key: str = ""
    endorsed: bool = True


class ChallengeView(_View):
    """What a steward's key shall sign.

    Args:
        challenge: SHA-256 of `payload`, hex: WebAuthn's challenge, or what a card signs.
        payload: The challenge's fields, canonical JSON; the approval record repeats them.
        steward: Whose key is asked.
        origin: Where a WebAuthn assertion must come from.
    """

    challenge: Hex
    payload: str
    steward: StewardView
    origin: str = ""


class BudgetView(_View):
    """One row of the privacy ledger: one data set, one unit.

    Args:
        dataset: The data set.
        unit: Whom it protects; the two are never added.
        epsilon: Allowed in all, at `delta`.
        delta: Allowed in all.
        spent: Epsilon of what has been released, composed.
        reserved: Epsilon of what is promised and not yet settled, on top.
        left: What a new study may still ask.
        releases: How many sums have left without a bound.
        releases_allowed: How many may.
    """

    dataset: str
    unit: Unit
    epsilon: float
    delta: float
    spent: float
    reserved: float
    left: float
    releases: int = 0
    releases_allowed: int = 0


class LeafView(_View):
    """One leaf of the audit log.

    Args:
        index: Its place.
        kind: Its kind.
        at_s: When, in seconds since 1970.
        content: All its fields.
    """

    index: int
    kind: str
    at_s: int
    content: dict[str, Any]


class AuditView(_View):
    """A part of the audit log.

    Args:
        size: Leaves in all.
        leaves: Those found, the newest first.
        following: Where a search for older ones goes on; None where there are none.
        cosigned_size: How many leaves the witness has cosigned.
        cosigned_s: When it did so last, in seconds since 1970; None where it never did.
        witness: Its name; empty where the consortium has none.
        blocked: Why nothing is uploaded; empty where uploads are free.
    """

    size: int
    leaves: tuple[LeafView, ...] = ()
    following: int | None = None
    cosigned_size: int = 0
    cosigned_s: int | None = None
    witness: str = ""
    blocked: str = ""


class ExportPiece(_View):
    """A piece of the exported log.

    Args:
        size: The tree that is exported; ask for the next piece of the same one.
        offset: Where this piece starts, in bytes of UTF-8.
        text: At most `PIECE_BYTES` of it.
        total: Bytes of the whole export.
    """

    size: int
    offset: int
    text: str
    total: int


class RoundView(_View):
    """A round under way, or the last one of a study.

    Args:
        study: The study.
        title: Its title.
        dataset: The data set.
        round: Its number; 0 counts rows, `rounds` + 1 evaluates.
        rounds: Rounds of training in the study.
        attempt: Which attempt at it.
        stage: The last leg that was answered.
        cohort: The hospitals in it.
        bytes: Of the masked update that left; 0 before it left.
        started_s: When its first leg came, in seconds since 1970.
        seconds: How long it took until its last leg, or so far.
        under_way: Whether its last leg is still to come.
    """

    study: str
    title: str
    dataset: str
    round: int
    rounds: int
    attempt: int
    stage: str
    cohort: tuple[str, ...] = ()
    bytes: int = 0
    started_s: int = 0
    seconds: float = 0.0
    under_way: bool = False


class CheckView(_View):
    """One check of `seh-agent doctor`.

    Args:
        name: What was looked at.
        outcome: `ok`, `warn`, `fail` or `not applicable`.
        sentence: What was found.
        next_step: What to do about it; empty where nothing.
        code: Stable; empty where nothing is wrong.
    """

    name: str
    outcome: Literal["ok", "warn", "fail", "not applicable"]
    sentence: str
    next_step: str = ""
    code: str = ""


class HealthView(_View):
    """The last examination.

    Args:
        examined_s: When it ended, in seconds since 1970; None before the first one.
        checks: What it found.
        under_way: Whether another is being made: ask again.
    """

    examined_s: int | None = None
    checks: tuple[CheckView, ...] = ()
    under_way: bool = False


class StateView(_View):
    """How the agent does, as `seh-agent status` shows it; empty text where there is nothing to say."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    link: str
    site: str = ""
    box: str = ""
    version: str = ""
    answering: str = ""
    trouble: str = ""
    sentence: str = ""
    next_step: str = ""
    session: str = ""
    session_expires_s: int | None = None
    session_sentence: str = ""
    session_next_step: str = ""
    notice: str = ""
    heard_s: int | None = None


class StudiesAnswer(_View):
    """The answer to `studies`; `following` is the start of the next part, None at the end."""

    studies: tuple[StudyLine, ...]
    following: int | None = None


class StewardsAnswer(_View):
    """The answer to `stewards`."""

    stewards: tuple[StewardView, ...]


class BudgetAnswer(_View):
    """The answer to `budget`."""

    budget: tuple[BudgetView, ...]


class RoundsAnswer(_View):
    """The answer to `rounds`, the newest first."""

    rounds: tuple[RoundView, ...]


class Box(Protocol):
    """A running agent, as console and terminal speak with it; every call may raise `SecureHealthError`."""

    def status(self) -> StateView:
        """How it does."""
        ...

    def studies(self) -> tuple[StudyLine, ...]:
        """All studies that this box was given, or has decided about."""
        ...

    def study(self, study: str) -> StudyView:
        """One of them, with its permit."""
        ...

    def stewards(self) -> tuple[StewardView, ...]:
        """The keys that may approve, and those offered."""
        ...

    def begin_approval(self, study: str, steward: str) -> ChallengeView:
        """What the steward's key shall sign to approve."""
        ...

    def complete_approval(self, approval: str) -> ApprovalView:
        """Hand in an approval record (`agent.governance.approval.Approval`, JSON)."""
        ...

    def refuse_study(self, study: str, steward: str) -> None:
        """Note that a steward refuses; an approval given later counts all the same."""
        ...

    def begin_withdrawal(self, sequence: int, steward: str) -> ChallengeView:
        """What the steward's key shall sign to withdraw an approval."""
        ...

    def complete_withdrawal(self, sequence: int, proof: str) -> None:
        """Hand in its proof (as an approval record's, JSON); the next message is refused."""
        ...

    def offer_steward(self, record: str) -> StewardView:
        """Keep a new key's record (`agent.trust.records.StewardFile`, JSON) for the hospital's role to endorse."""
        ...

    def budget(self) -> tuple[BudgetView, ...]:
        """The ledger."""
        ...

    def rounds(self) -> tuple[RoundView, ...]:
        """The newest rounds, those under way first."""
        ...

    def audit(self, start: int | None = None, search: str = "") -> AuditView:
        """Leaves from `start` (None: the newest) back; `search` is looked for in their JSON, without case."""
        ...

    def export(self, size: int, offset: int) -> ExportPiece:
        """A piece of the exported log; size 0 means the log as it is now, offset 0 its beginning."""
        ...

    def doctor(self) -> HealthView:
        """The last examination; one that is older than a minute is made anew meanwhile."""
        ...
