"""Governance on a running box: log, witness, approvals, budget and gate, opened together and closed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.bundle import Voucher
from agent.audit.leaves import AgentStarted, Leaf, LogOpened, ReleaseInstalled, StewardEnrolled
from agent.audit.log import AuditLog, log_origin, recorded_origin, retire
from agent.audit.retired import last_checkpoint, retired_leaves
from agent.core.box_view import MAX_LISTED, BudgetAnswer
from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.errors import HardwareError
from agent.core.files import store_atomically
from agent.core.ids import SiteID
from agent.core.version import software_version
from agent.data.fingerprint import FileDigests
from agent.federation.board import RoundBoard
from agent.governance.book import ApprovalBook, BoxIdentity
from agent.governance.budget import BudgetBook
from agent.governance.gate import StudyGate
from agent.identity.key import HardwareKey
from agent.identity.session import SessionKeeper, Subject
from agent.identity.vault import Vault
from agent.service.affiliation import Affiliation, Company
from agent.service.audit_desk import AuditDesk
from agent.service.requests import Handlers
from agent.service.safekeeping import open_reservations
from agent.service.study_desk import StudyDesk, StudyShelves
from agent.service.witnessing import WitnessDesk, witness_line
from agent.statements.chain import NodeRecord
from agent.statements.envelope import encode_proof
from agent.statements.kinds import AuditLogKey
from agent.trust.records import WitnessRecord

LOG_PURPOSE: Final = "audit log signing v1"
ORIGIN_FILE_NAME: Final = "origin"
"""Beside the log: its name, once it has begun."""
UNGOVERNED: Final = (
    "Demonstration: studies run here without permit, approval or audit log, as the configuration has no [governance]."
)

UNSEALED: Final = (
    "This box uses no TPM: an older disk put back, which forgets what studies spent, is seen by the witness alone."
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Governance:
    """All of it, open.

    Args:
        gate: What the federation asks.
        board: The newest rounds.
        audit: The log.
        witnesses: What they say of it.
        handlers: Answer the control socket.
    """

    gate: StudyGate
    board: RoundBoard
    audit: AuditLog
    witnesses: WitnessDesk
    handlers: Handlers


@dataclass(frozen=True, slots=True)
class SteadyClock:
    """The service's clock, never before the latest signed time: set back, it would revive what has expired (rule 13).

    Args:
        clock: The service's.
        now_s: Seconds since 1970, not before the latest signed time.
    """

    clock: Clock
    now_s: Callable[[], int]

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC."""
        return max(self.clock.now(), datetime.fromtimestamp(self.now_s(), UTC))

    def monotonic_s(self) -> float:
        """Seconds that never run backwards."""
        return self.clock.monotonic_s()


@contextmanager
def open_governance(
    config: AgentConfig,
    affiliation: Affiliation,
    keeper: SessionKeeper | None,
    key: HardwareKey,
    vault: Vault,
    clock: Clock,
    tell: Callable[[str, str], None],
) -> Iterator[Governance | None]:
    """Open it for as long as the `with` block lasts; None in demonstrations without it.

    Args:
        config: The box's.
        affiliation: Where it belongs.
        keeper: Of its session.
        key: The box's.
        vault: Its secrets at rest; the log's key is derived from it.
        clock: The service's.
        tell: Told, by topic, what a person should know.

    Raises:
        SecureHealthError: The log or the approvals on the disk cannot be used.
    """
    section, company = config.governed_by, affiliation.company
    if section is None or company is None or keeper is None:
        tell("governance", UNGOVERNED)
        yield None
        return
    state, clock = config.node.state_directory, SteadyClock(clock, company.now_s)
    subject = Subject(company.digest, affiliation.site, company.node)
    with _open_log(state / "audit", subject, vault, company.now_s) as audit:
        _note_start(audit, company)
        vouch = voucher_of(audit, subject, keeper, key, clock)
        line = witness_line(audit, vouch, clock, proxy=config.network.proxy)
        told = partial(tell, "witness")
        witnesses = WitnessDesk(audit, lambda: _witnesses(company), line, now_s=company.now_s, tell=told)
        origins = (config.console.origin, *section.origins)
        box = BoxIdentity(company.digest, SiteID(affiliation.site), company.node)
        book = ApprovalBook(
            state / "approvals", audit, box, company.stewards, origins=frozenset(origins), now_s=company.now_s
        )
        budget = _checked_budget(config, audit, clock, tell)
        gate = StudyGate(
            audit,
            book,
            budget,
            witnesses,
            policy=section.policy,
            site=affiliation.site,
            digests=FileDigests(),
            clock=clock,
        )
        board = RoundBoard(clock)
        shelves = StudyShelves(affiliation.studies, config.data.catalog, state / "stewards")
        desk = StudyDesk(shelves, gate, book, company.stewards, audit, board, affiliation.site, origins, clock)
        handlers = {**desk.handlers(), **AuditDesk(audit, witnesses, vouch).handlers(), **_budget_handler(budget, gate)}
        with witnesses.watching():
            yield Governance(gate, board, audit, witnesses, handlers)


@contextmanager
def _open_log(directory: Path, subject: Subject, vault: Vault, now_s: Callable[[], int]) -> Iterator[AuditLog]:
    """Open this box's log; one of an earlier enrolment is put aside, and its end begins the new one."""
    key = Ed25519PrivateKey.from_private_bytes(vault.key_for(LOG_PURPOSE))
    origin = log_origin(subject.consortium[:16], subject.site, subject.node, key)
    begun = _put_aside(directory, origin)
    with AuditLog.open(directory, key, origin) as audit:
        if audit.size == 0:
            if begun:
                raise _log_lost()
            audit.append(
                LogOpened(
                    at_s=now_s(),
                    consortium=subject.consortium,
                    site=subject.site,
                    node=subject.node,
                    key=audit.key.public_key.hex(),
                    # Not what was put aside just now: the power may have gone since then.
                    previous=last_checkpoint(directory),
                )
            )
        if not begun:
            with _disk():
                store_atomically(directory / ORIGIN_FILE_NAME, origin.encode())
        yield audit


def _checked_budget(config: AgentConfig, audit: AuditLog, clock: Clock, tell: Callable[[str, str], None]) -> BudgetBook:
    """What studies spent, logs of earlier enrolments included, held against the TPM's counter where there is one."""
    earlier = retired_leaves(config.node.state_directory / "audit", audit.leaf(0))
    budget = BudgetBook(audit, open_reservations(config), clock, earlier)
    budget.check()
    tell("budget", "" if budget.sealed else UNSEALED)
    return budget


def _budget_handler(budget: BudgetBook, gate: StudyGate) -> Handlers:
    return {"budget": lambda _: BudgetAnswer(budget=budget.views(gate.policy())[:MAX_LISTED])}


def _put_aside(directory: Path, origin: str) -> bool:
    """Retire the log that lies here if it is of another enrolment; returns whether this one's was begun before."""
    path = directory / ORIGIN_FILE_NAME
    with _disk():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = path.read_text(encoding="ascii") if path.exists() else ""
        # The power may have gone when the new log had begun, and its name was not written down yet.
        if known not in {"", origin} and recorded_origin(directory) != origin:
            retire(directory)
    return known == origin


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HardwareError(
            "audit.disk",
            f"The audit log cannot be written: {error.strerror}.",
            next_step="Free space on the box's disk, or replace it; until then nothing leaves this box.",
        ) from error


def _log_lost() -> HardwareError:
    return HardwareError(
        "audit.disk_lost",
        "This box kept an audit log, and it is not on the disk any more: what studies spent is not known.",
        next_step="Put the log back from the box's own backup. If it is lost for good, tell the consortium and its "
        "witness; once the site has decided about its budgets, remove the file audit/origin of the state directory.",
    )


def _note_start(audit: AuditLog, company: Company) -> None:
    """Write down that the agent began, and what is new since it did last."""
    version, now_s = software_version(), company.now_s()
    before, enrolled = "", set[tuple[str, str]]()
    for leaf in audit.leaves(0, audit.size):
        before, enrolled = _seen(leaf, before, enrolled)
    if before and before != version:
        audit.append(ReleaseInstalled(at_s=now_s, version=version))
    audit.append(AgentStarted(at_s=now_s, version=version))
    for name, steward in company.stewards.stewards().items():
        if (name, steward.key_id) not in enrolled:
            audit.append(StewardEnrolled(at_s=now_s, steward=name, key_id=steward.key_id))


def _seen(leaf: Leaf, version: str, enrolled: set[tuple[str, str]]) -> tuple[str, set[tuple[str, str]]]:
    if isinstance(leaf, AgentStarted | ReleaseInstalled):
        return leaf.version, enrolled
    if isinstance(leaf, StewardEnrolled):
        enrolled.add((leaf.steward, leaf.key_id))
    return version, enrolled


def _witnesses(company: Company) -> tuple[WitnessRecord, ...]:
    record = company.consortium()
    return () if record is None else record.witnesses


def voucher_of(
    audit: AuditLog, subject: Subject, keeper: SessionKeeper, key: HardwareKey, clock: Clock
) -> Callable[[], Voucher]:
    """Why a log's key is believed: the box's session says so, and its hospital's record is behind that."""

    def vouch() -> Voucher:
        session = keeper.current()
        statement = AuditLogKey(
            consortium=subject.consortium,
            site=subject.site,
            node=subject.node,
            log_key=audit.key.public_key.hex(),
            origin=audit.origin,
            issued_s=int(clock.now().timestamp()),
        )
        record = NodeRecord(subject.site, subject.node, key.root())
        return Voucher(record, session.certificate, encode_proof(session.prove(statement)))

    return vouch
