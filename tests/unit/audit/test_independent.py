"""An auditor's own program, which shares no code with ours, says the same of an export as ours does."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.audit.bundle import Voucher, encode_bundle, verify_bundle
from agent.audit.leaves import AgentStarted
from agent.audit.witness import submit
from agent.statements.chain import NodeRecord
from agent.statements.envelope import encode_proof, parse_proof
from agent.statements.roots import NODE_RP_ID, FIDO2Terms, KeyKind, RootKey
from tests.simulators import auditor
from tests.simulators.audited_box import CLOCK, NOW_S, AuditedBox
from tests.simulators.witness import PlayedWitness

PROGRAM = Path(auditor.__file__)


def test_the_auditor_shares_no_code_with_us() -> None:
    tree = ast.parse(PROGRAM.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in names}
    assert roots <= {*sys.stdlib_module_names, "cryptography"}


def test_both_say_the_same_of_every_size(tmp_path: Path) -> None:
    box = AuditedBox.in_(tmp_path / "audit")
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness, box.log() as log:
        witness.know(log)
        for size in range(7, 40):
            cosigned = submit(log, witness.post, witness.key)
            data = encode_bundle(log, box.voucher(), [witness.key], size=log.size)
            ours, theirs = verify_bundle(data, [witness.key]), auditor.verify(data, witness.key.vkey)
            assert theirs["size"] == ours.checkpoint.size == size
            assert theirs["root_key"] == ours.record.root.key_id
            assert (theirs["witnessed"], theirs["witnessed_s"]) == (cosigned.size, cosigned.time_s)
            assert ours.cosigned[0].size == size
            log.append(AgentStarted(at_s=NOW_S, version="1"))


@pytest.mark.parametrize("line", [0, 3, -1])
@pytest.mark.parametrize("how", ["altered", "removed", "moved"])
def test_the_auditor_finds_what_we_find(tmp_path: Path, line: int, how: str) -> None:
    parts = AuditedBox.in_(tmp_path / "audit").export().splitlines(keepends=True)
    taken = parts.pop(line)
    if how == "altered":
        parts.insert(line % 8, taken.replace(b"hospital-a", b"hospital-b").replace(b"study-a", b"study-b"))
    elif how == "moved":
        parts.insert(2 if line else 4, taken)
    data = b"".join(parts)
    with pytest.raises(Exception, match=r".*"):
        auditor.verify(data)
    with pytest.raises(Exception, match=r".*"):
        verify_bundle(data)


def test_it_runs_on_a_machine_that_has_nothing_of_ours(tmp_path: Path) -> None:
    export = tmp_path / "export.jsonl"
    export.write_bytes(AuditedBox.in_(tmp_path / "audit").export())
    command = [sys.executable, "-I", str(PROGRAM), str(export)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "'size': 7" in done.stdout


def test_box_with_a_security_key_is_believed_by_both(tmp_path: Path) -> None:
    box = AuditedBox.in_(tmp_path / "audit")
    made = box.voucher()
    terms = FIDO2Terms(NODE_RP_ID, last_count=9)  # of no matter here: an old export stays true
    root = RootKey(KeyKind.FIDO2, made.record.root.public_key, fido2=terms)
    record = NodeRecord(made.record.site, made.record.node, root)
    proof = parse_proof(made.certificate)
    data = hashlib.sha256(NODE_RP_ID.encode()).digest() + b"\x05" + (7).to_bytes(4, "big")
    message = data + hashlib.sha256(proof.signed_bytes()).digest()
    signature = len(data).to_bytes(2, "big") + data + box.identity.root.sign(message, ec.ECDSA(hashes.SHA256()))
    certificate = encode_proof(replace(proof, signature=signature))
    with box.log() as log:
        export = encode_bundle(log, Voucher(record, certificate, made.statement), [], size=log.size)
        plain = encode_bundle(log, Voucher(record, made.certificate, made.statement), [], size=log.size)
    assert verify_bundle(export).record.root.kind is KeyKind.FIDO2
    assert auditor.verify(export)["size"] == 7
    for check in (verify_bundle, auditor.verify):
        with pytest.raises(Exception, match=r".*"):
            check(plain)
