"""The log as console and terminal see it: searched from its end, and exported in pieces that verify together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.bundle import verify_bundle
from agent.audit.leaves import LogOpened, MessageRefused, PermitDecided, RuleFinding
from agent.audit.log import AuditLog, log_origin
from agent.audit.note import CosignedCheckpoint
from agent.core.box_view import MAX_LEAVES, PIECE_BYTES
from agent.core.clock import SystemClock
from agent.core.errors import OperatorError, SecureHealthError
from agent.identity.key import init_key
from agent.identity.session import SessionKeeper, Subject
from agent.service import audit_desk
from agent.service.audit_desk import AuditDesk
from agent.service.control import MAX_LINE_BYTES, ControlDesk, ControlSocket
from agent.service.governing import voucher_of
from agent.service.requests import AuditExportRequest
from agent.service.running_box import RunningBox
from agent.service.state import AgentStatus
from agent.service.witnessing import WitnessDesk
from agent.trust.records import WitnessRecord

SUBJECT = Subject("ab" * 32, "hospital-a", "box-1")
LEAVES = 300


def no_witness(record: WitnessRecord) -> CosignedCheckpoint:
    """There is none to ask."""
    raise AssertionError(record)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[AuditDesk]:
    """Of a log with a long history, whose box can prove who it is."""
    key, clock = init_key(f"software:{tmp_path / 'node.key'}"), SystemClock()
    keeper = SessionKeeper(key, SUBJECT, clock=clock, timestamp_version=lambda: 0)
    keeper.renew()
    log_key = Ed25519PrivateKey.generate()
    origin = log_origin("c", SUBJECT.site, SUBJECT.node, log_key)
    with AuditLog.open(tmp_path / "audit", log_key, origin) as log:
        opened: dict[str, Any] = {"consortium": SUBJECT.consortium, "site": SUBJECT.site, "node": SUBJECT.node}
        log.append(LogOpened(at_s=1, key=log.key.public_key.hex(), **opened))
        rule = RuleFinding(rule="purpose", passed=False, sentence='Quotes "as many" as there can be: ' + '"' * 400)
        for number in range(LEAVES // 2):
            facts: dict[str, Any] = {"study": f"study-{number}", "study_digest": "cd" * 32, "dataset": "local"}
            log.append(PermitDecided(at_s=2, dataset_digest="ef" * 32, permitted=False, rules=(rule,), **facts))
            log.append(MessageRefused(at_s=3, study=f"study-{number}", rule="purpose"))
        witnesses = WitnessDesk(log, tuple, no_witness, now_s=lambda: 0, tell=lambda _: None)
        yield AuditDesk(log, witnesses, voucher_of(log, SUBJECT, keeper, key, clock))


@pytest.fixture
def box(desk: AuditDesk, tmp_path: Path) -> Iterator[RunningBox]:
    """The same, over the control socket."""
    control = ControlDesk(None, lambda: AgentStatus("online"), handlers=desk.handlers())
    with ControlSocket(tmp_path, control.answer, SystemClock()):
        yield RunningBox(tmp_path)


def test_the_newest_leaves_come_first_and_the_search_goes_on_where_it_ended(box: RunningBox) -> None:
    view = box.audit()
    assert (view.size, view.leaves[0].index) == (LEAVES + 1, LEAVES)
    seen, following = [leaf.index for leaf in view.leaves], view.following
    while following is not None:
        part = box.audit(following)
        seen += [leaf.index for leaf in part.leaves]
        following = part.following
    assert seen == list(range(LEAVES, -1, -1))


def test_a_search_finds_every_leaf_that_says_so_without_case(box: RunningBox) -> None:
    found, start = [], None
    while True:
        view = box.audit(start, search="STUDY-14")
        found += [(leaf.kind, leaf.content["study"]) for leaf in view.leaves]
        assert len(view.leaves) <= MAX_LEAVES
        if view.following is None:
            break
        start = view.following
    wanted = {f"study-14{digit}" for digit in range(10)} | {"study-14"}
    assert {study for _, study in found} == wanted
    assert len(found) == 2 * len(wanted)


def test_pieces_of_an_export_fit_a_line_and_verify_together(box: RunningBox) -> None:
    first = box.export(0, 0)
    data = first.text.encode()
    while len(data) < first.total:
        piece = box.export(first.size, len(data))
        assert 0 < len(piece.text.encode()) <= PIECE_BYTES < MAX_LINE_BYTES
        data += piece.text.encode()
    held = verify_bundle(data)
    assert len(held.leaves) == LEAVES + 1
    assert held.record.site == SUBJECT.site


def test_what_is_not_there_is_not_exported(box: RunningBox) -> None:
    with pytest.raises(OperatorError) as refusal:
        box.export(LEAVES + 2, 0)
    assert refusal.value.code == "audit.no_such_piece"
    total = box.export(0, 0).total
    with pytest.raises(SecureHealthError):
        box.export(LEAVES + 1, total + 1)


def test_a_witness_that_keeps_silent_keeps_nobody_waiting(desk: AuditDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control socket answers one after the other: a steward's withdrawal would wait behind the export."""
    asked, release = list[int](), threading.Event()

    def silent(size: int) -> None:
        asked.append(size)
        release.wait(30)

    monkeypatch.setattr(audit_desk, "WITNESS_WAIT_S", 0.01)
    monkeypatch.setattr(WitnessDesk, "bring_up_to", lambda _, size: silent(size))
    for _ in range(3):
        assert desk.export(AuditExportRequest(request="audit-export")).total
    assert asked == [LEAVES + 1]
    release.set()
    assert desk._asking is not None
    desk._asking.join(5)
    assert not desk._asking.is_alive()


def test_an_export_without_the_newest_leaves_is_signed_for_nobody(desk: AuditDesk) -> None:
    """Whoever may ask the agent could hand an auditor a log whose end is missing, under a fresh checkpoint."""
    for offset in (0, 1):
        with pytest.raises(OperatorError) as refusal:
            desk.export(AuditExportRequest(request="audit-export", size=LEAVES // 2, offset=offset))
        assert refusal.value.code == "audit.no_such_piece"
    first = desk.export(AuditExportRequest(request="audit-export"))
    desk.audit.append(MessageRefused(at_s=4, study="study", rule="purpose"))
    assert desk.export(AuditExportRequest(request="audit-export", size=first.size, offset=10)).total == first.total
    assert desk.export(AuditExportRequest(request="audit-export")).size == first.size + 1
