"""`seh-agent audit`, as a steward and an auditor meet it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.audit.bundle import encode_bundle
from agent.audit.leaves import UpdateSent
from agent.audit.witness import submit
from agent.cli import audit
from agent.cli.main import app
from agent.core.box_view import AuditView, ExportPiece, LeafView
from agent.core.errors import SecureHealthError
from tests.simulators.audited_box import CLOCK, NOW_S, AuditedBox
from tests.simulators.witness import PlayedWitness

SENT = UpdateSent(
    at_s=NOW_S + 60,
    study="study-a",
    study_digest="ab" * 32,
    dataset="data-a",
    round=1,
    attempt=1,
    context="cd" * 32,
    cohort=("hospital-a", "hospital-b"),
    bytes=2_700_000,
    sha256="ef" * 32,
    permit=1,
    approval=0,
)


class PlayedAgent:
    """Answers as the agent does, in pieces of few bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.silent_at = len(data) + 1
        self.view = AuditView(size=8)

    def audit(self, start: int | None = None, search: str = "") -> AuditView:
        last = 7 if start is None else start
        content = {"study": "study-a", "sha256": "ef" * 32, "text": "a\x1bb"}
        leaf = LeafView(index=last, kind="update-sent", at_s=NOW_S, content=content)
        if search not in str(content):
            return self.view
        return self.view.model_copy(update={"leaves": (leaf,), "following": last - 1 if last else None})

    def export(self, size: int, offset: int) -> ExportPiece:
        text = "" if offset >= self.silent_at else self.data[offset : offset + 1000].decode()
        return ExportPiece(size=size or 8, offset=offset, text=text, total=len(self.data))


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[PlayedWitness]:
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        yield witness


@pytest.fixture
def agent(tmp_path: Path, witness: PlayedWitness, monkeypatch: pytest.MonkeyPatch) -> PlayedAgent:
    box = AuditedBox.in_(tmp_path / "audit")
    with box.log() as log:
        witness.know(log)
        log.append(SENT)
        submit(log, witness.post, witness.key)
        (tmp_path / "checkpoint").write_text(log.checkpoint(5).note, encoding="utf-8")
        agent = PlayedAgent(encode_bundle(log, box.voucher(), [witness.key], size=log.size))
    monkeypatch.setattr(audit, "_box", lambda _: agent)
    return agent


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["audit", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def code_of(*arguments: str) -> str:
    with pytest.raises(SecureHealthError) as failure:
        run(*arguments)
    return failure.value.code


def test_what_is_exported_verifies(agent: PlayedAgent, witness: PlayedWitness, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    assert "8 entries" in run("export", str(file))
    assert file.read_bytes() == agent.data
    assert file.stat().st_mode & 0o077 == 0
    assert run("export", "-").encode() == agent.data
    told = run("verify", str(file), "--witness", witness.key.vkey, "--checkpoint", str(tmp_path / "checkpoint"))
    assert "8 entries" in told
    assert "Updates sent: 1, 2700000 bytes" in told
    assert f"Witnessed by {witness.key.name}: the first 8 entries" in told
    assert "No witness was named" in run("verify", str(file))
    assert f"It continues the record in {file}" in run("verify", str(file), "--checkpoint", str(file))
    assert code_of("verify", str(file), "--checkpoint", str(tmp_path / "nowhere")) == "audit.unreadable"


def test_a_file_that_is_there_is_kept(agent: PlayedAgent, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(b"earlier")
    assert code_of("export", str(file)) == "audit.file_exists"
    assert file.read_bytes() == b"earlier"


def test_an_export_that_stops_leaves_no_file(agent: PlayedAgent, tmp_path: Path) -> None:
    agent.silent_at = 1000
    assert code_of("export", str(tmp_path / "export.jsonl")) == "audit.export_stopped"
    assert not (tmp_path / "export.jsonl").exists()


def test_altered_export_and_wrong_witness_are_named(agent: PlayedAgent, witness: PlayedWitness, tmp_path: Path) -> None:
    file = tmp_path / "export.jsonl"
    file.write_bytes(agent.data.replace(b'"bytes":2700000', b'"bytes":1700000'))
    assert code_of("verify", str(file)) == "audit.leaf_altered"
    file.write_bytes(agent.data)
    assert code_of("verify", str(file), "--witness", witness.key.vkey + "A") == "audit.no_witness_key"
    assert code_of("verify", str(tmp_path / "nowhere")) == "audit.unreadable"


def test_the_newest_entries_are_shown(agent: PlayedAgent) -> None:
    assert "No entry has this text." in run("show", "--search", "study-b")
    told = run("show", "--count", "3")
    assert [line.split()[0] for line in told.splitlines()[:4]] == ["ENTRY", "7", "6", "5"]
    assert "\x1b" not in told
    assert "no witness" in told
    agent.view = AuditView(size=8, witness="witness.example/1", cosigned_size=6, cosigned_s=NOW_S, blocked="Old.")
    told = run("show")
    assert "6 of them witnessed by witness.example/1" in told
    assert "Nothing leaves this box: Old." in told
    agent.view = AuditView(size=8, witness="witness.example/1")
    assert "None of them witnessed yet" in run("show")
