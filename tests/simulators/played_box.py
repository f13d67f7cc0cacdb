"""A box as the console sees it: real approvals and a log in memory, played studies and rounds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from agent.audit.leaves import ApprovalRefused, Leaf, LogOpened, PermitDecided, RuleFinding, UpdateSent
from agent.core.box_view import (
    MAX_LEAVES,
    ApprovalView,
    AuditView,
    BudgetView,
    ChallengeView,
    CheckView,
    ExportPiece,
    FindingView,
    HealthView,
    LeafView,
    RoundView,
    StateView,
    StewardView,
    StudyLine,
    StudyState,
    StudyView,
)
from agent.core.errors import OperatorError
from agent.governance.approval import parse_approval, parse_proof
from agent.governance.book import ApprovalBook, Matter
from agent.governance.stewards import steward_named
from agent.trust.records import StewardFile, parse_record
from tests.simulators.steward import BOX, SITE, KeptLog, Records

NOW_S = 1_795_000_000
APPROVAL_S = 90 * 86_400
PIECE_BYTES = 1000
DATASET_DIGEST = "d5" * 32
UPDATE_BYTES = 2_412_544
SITES = ("hospital-a", "hospital-b", "hospital-c", "hospital-d", "hospital-e")
RISK, WOUNDS, TRIAGE = "cardiac-risk", "wound-healing", "triage"


def digest_of(study: str) -> str:
    """What stands for the SHA-256 of a study.json."""
    return hashlib.sha256(study.encode()).hexdigest()


def risk_study(title: str = "Early warning of cardiac events after surgery") -> StudyView:
    """Bounded, all rules passed but the approval."""
    return StudyView(
        line=StudyLine(
            study=RISK,
            study_digest=digest_of(RISK),
            title=title,
            requester="Cardiology group of hospital-b",
            state="waiting",
            rule="approved",
            dataset="cardiology",
            expires_s=NOW_S + 300 * 86_400,
        ),
        purpose="A model that warns nurses earlier of cardiac events in the first three days after surgery, trained on "
        "what several hospitals have recorded, and published with its figures.",
        duo=("DUO:0000037", "DUO:0000006"),
        legal_basis="Data permit 2026-117 of the regional ethics board",
        sites=SITES,
        site_count=len(SITES),
        minimum_sites=4,
        rounds=20,
        fields=("age", "sex", "systolic_pressure", "heart_rate", "creatinine", "event_within_72h"),
        field_count=6,
        label="event_within_72h",
        minimum_rows=500,
        unit="record",
        epsilon=1.5,
        delta=1e-6,
        dataset_digest=DATASET_DIGEST,
        findings=(
            FindingView(rule="site_named", passed=True, sentence="The study names hospital-a."),
            FindingView(rule="not_expired", passed=True, sentence="The study runs until 2027-09-13 10:26 UTC."),
            FindingView(
                rule="purpose", passed=True, sentence="The site's policy refuses none of the study's purposes."
            ),
            FindingView(
                rule="duo_permission",
                passed=True,
                sentence="Biomedical research fits health or medical or biomedical research (DUO:0000006).",
            ),
            FindingView(
                rule="duo_ethics_approval_required",
                passed=True,
                sentence="The study names its ethics approval: 2026-117.",
            ),
            FindingView(
                rule="minimum_cohort", passed=True, sentence="No sum has fewer than 4 hospitals; the site asks 3."
            ),
            FindingView(rule="privacy_bounded", passed=True, sentence="The study bounds what it learns: epsilon 1.5."),
            FindingView(rule="approved", passed=False, sentence="No steward of this hospital has approved it."),
            FindingView(rule="budget", passed=True, sentence="Epsilon 1.5 of the 5.2 that are left."),
        ),
    )


def wound_study() -> StudyView:
    """Not bounded, and rounds go on without a silent hospital."""
    line = StudyLine(
        study=WOUNDS,
        study_digest=digest_of(WOUNDS),
        title="Healing of chronic wounds",
        requester="Wound group of hospital-c",
        state="waiting",
        rule="approved",
        dataset="wounds",
        expires_s=NOW_S + 120 * 86_400,
    )
    findings = (
        FindingView(rule="site_named", passed=True, sentence="The study names hospital-a."),
        FindingView(
            rule="privacy_bounded",
            passed=True,
            sentence="Nothing bounds what is learnt; the site's policy admits one such.",
        ),
        FindingView(rule="approved", passed=False, sentence="No steward of this hospital has approved it."),
    )
    return risk_study().model_copy(
        update={
            "line": line,
            "purpose": "Which treatments close chronic wounds sooner.",
            "epsilon": None,
            "unit": None,
            "delta": 0.0,
            "dropout": "continue",
            "accept_differencing": True,
            "findings": findings,
        }
    )


def triage_study() -> StudyView:
    """Refused by a rule."""
    line = StudyLine(
        study=TRIAGE,
        study_digest=digest_of(TRIAGE),
        title="Insurance triage",
        requester="An insurer",
        state="not-permitted",
        rule="purpose",
        dataset="cardiology",
        expires_s=NOW_S + 40 * 86_400,
    )
    findings = (
        FindingView(rule="site_named", passed=True, sentence="The study names hospital-a."),
        FindingView(rule="purpose", passed=False, sentence="This site serves no study for drug development research."),
        FindingView(rule="duo_not_for_profit", passed=False, sentence="The requester works for profit (DUO:0000018)."),
    )
    return risk_study().model_copy(update={"line": line, "findings": findings})


@dataclass
class PlayedBox:
    """`agent.core.box_view.Box`, played; what is approved, and by whom, is the real book's.

    Args:
        directory: For the book.
        origin: Of the console's pages.
        now_s: Seconds since 1970.
    """

    directory: Path
    origin: str = "http://localhost:8470"
    now_s: int = NOW_S
    audit_log: KeptLog = field(default_factory=KeptLog)
    records: Records = field(default_factory=Records)
    offered: list[StewardFile] = field(default_factory=list)
    known: dict[str, StudyView] = field(default_factory=lambda: {each.line.study: each for each in _all_studies()})
    played: dict[str, RoundView] = field(default_factory=dict)
    state: StateView = field(
        default_factory=lambda: StateView(
            link="online",
            site=SITE,
            box="box-7f3a21c9",
            version="1.4.0",
            session="valid",
            session_expires_s=NOW_S + 36_000,
        )
    )

    def __post_init__(self) -> None:
        self.book = ApprovalBook(
            self.directory,
            self.audit_log,
            BOX,
            self.records,
            origins=frozenset({self.origin}),
            now_s=lambda: self.now_s,
        )
        opened = LogOpened(at_s=self.now_s - 900_000, consortium="c0" * 32, site=SITE, node="box-1", key="ab" * 32)
        self.audit_log.append(opened)
        for view in self.known.values():
            self.audit_log.append(_decided(view, self.now_s - 7200))

    def endorse(self) -> None:
        """The hospital's role signs all that waits."""
        self.records.found += self.offered
        self.offered.clear()

    def turn(self, study: str) -> bool:
        """A message of the study comes: a round is trained and sent where an approval stands; says whether it was."""
        view = self.study(study)
        if view.line.state != "approved":
            return False
        before = self.played.get(study)
        number = 1 if before is None else before.round + 1
        approval = view.approvals[0].sequence
        self.audit_log.append(
            UpdateSent(
                at_s=self.now_s + 3 * number,
                study=study,
                study_digest=view.line.study_digest,
                dataset=view.line.dataset,
                round=number,
                attempt=1,
                context=digest_of(f"{study} {number}"),
                cohort=SITES[:4] if number % 3 == 0 else SITES,
                bytes=UPDATE_BYTES - 1200 * (number % 5) * (number % 3),
                sha256=digest_of(f"update {number}"),
                permit=1,
                approval=approval,
            )
        )
        self.played[study] = RoundView(
            study=study,
            title=view.line.title,
            dataset=view.line.dataset,
            round=number,
            rounds=view.rounds,
            attempt=1,
            stage="masked-input",
            cohort=SITES,
            bytes=UPDATE_BYTES,
            started_s=self.now_s + 3 * number,
            seconds=2.4,
            under_way=True,
        )
        return True

    def status(self) -> StateView:
        return self.state

    def studies(self) -> tuple[StudyLine, ...]:
        return tuple(self.study(name).line for name in self.known)

    def study(self, study: str) -> StudyView:
        view = self.known.get(study)
        if view is None:
            raise OperatorError("study.unknown", f"There is no study {study!r} here.", next_step="Look at the list.")
        digest, dataset = view.line.study_digest, view.line.dataset
        given = [each for each in self.book.given() if each.leaf.study_digest == digest]
        approvals = tuple(
            ApprovalView(
                sequence=each.leaf.sequence,
                steward=each.leaf.steward,
                dataset=dataset,
                epsilon=each.leaf.epsilon,
                given_s=each.leaf.at_s,
                not_after_s=each.leaf.not_after_s,
                standing=each.stands,
            )
            for each in reversed(given)
        )
        stands = any(each.standing for each in approvals)
        findings = tuple(_with_approval(each, stands=stands) for each in view.findings)
        line = view.line.model_copy(
            update={"state": self._state(view, approvals), "running": stands and study in self.played}
        )
        return view.model_copy(update={"line": line, "approvals": approvals, "findings": findings})

    def stewards(self) -> tuple[StewardView, ...]:
        known = [_steward_view(each, endorsed=True) for each in self.records.stewards().values()]
        return (*known, *(_steward_view(each, endorsed=False) for each in self.offered))

    def begin_approval(self, study: str, steward: str) -> ChallengeView:
        if self.study(study).line.state == "not-permitted":
            raise OperatorError("permit.purpose", "This site serves no such study.", next_step="Refuse it.")
        matter = self._matter(study)
        challenge = self.book.request(matter, not_after_s=self.now_s + APPROVAL_S)
        return self._challenge(challenge.digest, challenge.payload(), steward)

    def complete_approval(self, approval: str) -> ApprovalView:
        accepted = self.book.accept(parse_approval(approval.encode()))
        views = self.study(accepted.challenge.study).approvals
        return next(each for each in views if each.sequence == accepted.challenge.sequence)

    def refuse_study(self, study: str, steward: str) -> None:
        self.book.refuse(self._matter(study), steward)

    def begin_withdrawal(self, sequence: int, steward: str) -> ChallengeView:
        act = self.book.begin_withdrawal(sequence)
        return self._challenge(act.digest, act.payload(), steward)

    def complete_withdrawal(self, sequence: int, proof: str) -> None:
        self.book.withdraw(sequence, parse_proof(proof.encode()))

    def offer_steward(self, record: str) -> StewardView:
        steward = parse_record(StewardFile, record.encode())
        self.offered = [*(each for each in self.offered if each.steward != steward.steward), steward]
        return _steward_view(steward, endorsed=False)

    def budget(self) -> tuple[BudgetView, ...]:
        row = BudgetView(
            dataset="cardiology", unit="record", epsilon=8.0, delta=1e-5, spent=1.3, reserved=1.5, left=5.2
        )
        hospital = row.model_copy(update={"unit": "hospital", "spent": 0.0, "reserved": 0.0, "left": 8.0})
        open_row = row.model_copy(
            update={
                "dataset": "wounds",
                "spent": 7.62,
                "reserved": 0.0,
                "left": 0.38,
                "releases": 1,
                "releases_allowed": 2,
            }
        )
        return (row, hospital, open_row)

    def rounds(self) -> tuple[RoundView, ...]:
        views = []
        for study, view in self.played.items():
            running = self.study(study).line.running
            views.append(view if running else view.model_copy(update={"under_way": False}))
        return tuple(views)

    def audit(self, start: int | None = None, search: str = "") -> AuditView:
        found = []
        kept = list(enumerate(self.audit_log.leaves(0, self.audit_log.size)))
        for index, leaf in reversed(kept if start is None else kept[: start + 1]):
            content = leaf.model_dump(mode="json")
            if search.casefold() in json.dumps(content).casefold():
                found.append(LeafView(index=index, kind=leaf.kind, at_s=leaf.at_s, content=content))
        following = found[MAX_LEAVES].index if len(found) > MAX_LEAVES else None
        return AuditView(
            size=self.audit_log.size,
            leaves=tuple(found[:MAX_LEAVES]),
            following=following,
            cosigned_size=self.audit_log.size - 1,
            cosigned_s=self.now_s - 60,
            witness="witness.regional-archive.example",
        )

    def export(self, size: int, offset: int) -> ExportPiece:
        size = size or self.audit_log.size
        leaves = [leaf.model_dump(mode="json") for leaf in self.audit_log.leaves(0, size)]
        data = json.dumps({"size": size, "leaves": leaves}, ensure_ascii=False).encode()
        text = data[offset : offset + PIECE_BYTES].decode()
        return ExportPiece(size=size, offset=offset, text=text, total=len(data))

    def doctor(self) -> HealthView:
        fine = [
            CheckView(name=name, outcome="ok", sentence=sentence)
            for name, sentence in (
                ("TPM", "The TPM answers, and holds this box's key."),
                ("SuperLink", "superlink.consortium.example:9092 is reached, and shows the right certificate."),
                ("repository", "The consortium's repository is current: 14 minutes old."),
                ("data sets", "All 2 data sets can be read."),
                ("memory", "12.4 of 16.0 GB are free."),
            )
        ]
        disk = CheckView(
            name="disk",
            outcome="warn",
            sentence="5.1 GB of 120.0 GB are free.",
            next_step="Free space, before the record has no room left.",
            code="doctor.disk_low",
        )
        gpu = CheckView(
            name="GPU", outcome="not applicable", sentence="This box has none; it trains on its processors."
        )
        return HealthView(examined_s=self.now_s - 40, checks=(*fine, disk, gpu))

    def _state(self, view: StudyView, approvals: tuple[ApprovalView, ...]) -> StudyState:
        if view.line.state == "not-permitted":
            return view.line.state
        if any(each.standing for each in approvals):
            return "approved"
        own = [leaf for leaf in self._leaves() if getattr(leaf, "study", "") == view.line.study]
        last = next((leaf.kind for leaf in reversed(own) if leaf.kind.startswith("approval-")), "")
        return {"approval-withdrawn": "withdrawn", "approval-refused": "refused"}.get(last, "waiting")  # type: ignore[return-value]

    def _leaves(self) -> tuple[Leaf, ...]:
        return tuple(self.audit_log.leaves(0, self.audit_log.size))

    def _matter(self, study: str) -> Matter:
        view = self.study(study)
        return Matter(study, view.line.study_digest, view.line.dataset, view.dataset_digest, view.epsilon)

    def _challenge(self, digest: bytes, payload: bytes, steward: str) -> ChallengeView:
        view = _steward_view(steward_named(self.records, steward), endorsed=True)
        return ChallengeView(challenge=digest.hex(), payload=payload.decode(), steward=view, origin=self.origin)


def refusals(box: PlayedBox) -> int:
    """How many refusals the log has."""
    return sum(isinstance(leaf, ApprovalRefused) for leaf in box.audit_log.leaves(0, box.audit_log.size))


def _all_studies() -> tuple[StudyView, ...]:
    return (risk_study(), wound_study(), triage_study())


def _with_approval(finding: FindingView, *, stands: bool) -> FindingView:
    if finding.rule != "approved" or not stands:
        return finding
    return FindingView(rule="approved", passed=True, sentence="A steward of this hospital has approved it.")


def _decided(view: StudyView, at_s: int) -> PermitDecided:
    return PermitDecided(
        at_s=at_s,
        study=view.line.study,
        study_digest=view.line.study_digest,
        dataset=view.line.dataset,
        dataset_digest=DATASET_DIGEST,
        permitted=False,
        rules=tuple(RuleFinding(rule=each.rule, passed=each.passed, sentence=each.sentence) for each in view.findings),
    )


def _steward_view(steward: StewardFile, *, endorsed: bool) -> StewardView:
    return StewardView(
        steward=steward.steward,
        kind=steward.kind,
        key_id=steward.key_id,
        rp_id=steward.rp_id or "",
        credential_id=steward.credential_id or "",
        public_key=steward.public_key,
        endorsed=endorsed,
    )
