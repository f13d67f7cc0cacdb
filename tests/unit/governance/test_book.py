"""The book of approvals over the real audit log: what a crash leaves, and what a question costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import ApprovalGiven, ApprovalRefused, ApprovalWithdrawn, StewardEnrolled
from agent.audit.log import AuditLog
from agent.core.errors import HardwareError, OperatorError
from agent.governance import book as book_module
from agent.governance.approval import Approval, verify_approval
from agent.governance.book import ApprovalBook, Matter
from agent.trust.records import StewardFile
from tests.simulators.steward import BOX, ORIGIN, CardSteward, Desk, PasskeySteward, approval_by, proof_by

MATTER = Matter("heart-risk", "5d" * 32, "cleveland", "da" * 32, None)
NOW_S = 1_800_000_000


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog.open(tmp_path / "log", Ed25519PrivateKey.generate(), "secur-e-health/test/hospital-a/box-1") as log:
        yield log


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "approvals")


def test_each_decision_is_a_leaf_of_the_real_log(desk: Desk, audit: AuditLog) -> None:
    steward = PasskeySteward("dr-a")
    desk.employ(steward)
    book = ApprovalBook(desk.directory, audit, BOX, desk.records, origins=frozenset({ORIGIN}), now_s=lambda: NOW_S)
    approval = book.accept(approval_by(steward, book.request(MATTER, not_after_s=NOW_S + 60)))
    book.refuse(replace(MATTER, dataset="hungarian"), "dr-a")
    book.withdraw(1, proof_by(steward, book.begin_withdrawal(1)))
    enrolled, given, refused, withdrawn = audit.leaves(0, audit.size)
    assert isinstance(enrolled, StewardEnrolled)
    assert isinstance(given, ApprovalGiven)
    assert (given.approval, given.epsilon, given.steward) == (approval.digest, None, "dr-a")
    assert isinstance(refused, ApprovalRefused)
    assert isinstance(withdrawn, ApprovalWithdrawn)
    assert withdrawn.sequence == given.sequence
    assert {path.name for path in desk.directory.glob("*.json")} == {"1.json", "1.withdrawal.json", "counters.json"}


def test_a_full_disk_decides_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    steward = CardSteward("dr-c")
    desk.employ(steward)
    asked = desk.ask(MATTER)

    def full(path: Path, data: bytes, *, mode: int = 0) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(book_module, "store_atomically", full)
    with pytest.raises(HardwareError, match="No space left"):
        desk.book.accept(approval_by(steward, asked))
    with pytest.raises(HardwareError):
        desk.ask(MATTER)
    assert not desk.audit.size
    monkeypatch.undo()
    assert desk.book.accept(approval_by(steward, asked))


def test_a_crash_between_record_and_leaf_approves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    steward = CardSteward("dr-c")
    desk.employ(steward)

    def cut(leaf: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as power:
        power.setattr(desk.audit, "append", cut)
        with pytest.raises(KeyboardInterrupt):
            desk.approve(steward, MATTER)
    desk.restart()
    assert not desk.book.standing(MATTER.study_digest, MATTER.dataset)
    assert desk.approve(steward, MATTER).challenge.sequence == 2


@pytest.mark.parametrize("name", ["counters.json", "last-sequence"])
def test_what_keeps_clones_and_numbers_apart_is_not_begun_anew_by_itself(desk: Desk, name: str) -> None:
    (desk.directory / name).write_text("damaged")
    with pytest.raises(OperatorError) as caught:
        desk.restart()
    assert caught.value.code == "approval.bad_counters"


def test_a_signature_is_verified_once_and_the_rest_read_at_every_question(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward = PasskeySteward("dr-a")
    desk.employ(steward)
    desk.approve(steward, MATTER)
    verified: list[str] = []

    def verify(approval: Approval, steward: StewardFile, origins: frozenset[str] | None) -> int:
        verified.append(approval.digest)
        return verify_approval(approval, steward, origins)

    monkeypatch.setattr(book_module, "verify_approval", verify)
    for _ in range(10):
        assert desk.book.standing(MATTER.study_digest, MATTER.dataset)
    assert len(verified) == 1
    desk.records.found = [PasskeySteward("dr-a").record]
    assert not desk.book.standing(MATTER.study_digest, MATTER.dataset)
