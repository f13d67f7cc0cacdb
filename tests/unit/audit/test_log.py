"""The box's log: what it keeps, across restarts and threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import AgentStarted, MessageRefused, UpdateSent, encode_leaf, parse_leaf
from agent.audit.log import AuditLog, log_origin, retire
from agent.audit.tree import leaf_hash, verify_consistency, verify_inclusion
from agent.core.errors import OperatorError, PeerProtocolError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = log_origin("consortium-a", "hospital-a", "node-a", KEY)
SENT = UpdateSent(
    at_s=1,
    study="study-a",
    study_digest="ab" * 32,
    dataset="data-a",
    round=1,
    attempt=1,
    context="cd" * 32,
    cohort=("hospital-a", "hospital-b"),
    bytes=2_700_000,
    sha256="ef" * 32,
    permit=3,
    approval=0,
)


def opened(directory: Path) -> AuditLog:
    return AuditLog.open(directory, KEY, ORIGIN)


def refused(number: int) -> MessageRefused:
    return MessageRefused(at_s=number, study="study-a", rule="not_expired")


def test_what_was_added_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path / "audit") as log:
        assert [log.append(refused(number)) for number in range(3)] == [0, 1, 2]
        assert log.append(SENT) == 3
        head = log.checkpoint()
    with opened(tmp_path / "audit") as log:
        assert log.checkpoint() == head
        assert log.leaf(3) == SENT
        assert list(log.leaves(1, 3)) == [refused(1), refused(2)]
        assert list(log.leaves(2, 100)) == [refused(2), SENT]


def test_each_checkpoint_proves_every_one_before(tmp_path: Path) -> None:
    with opened(tmp_path / "audit") as log:
        heads = [log.checkpoint().checkpoint]
        for number in range(20):
            log.append(refused(number))
            heads.append(log.checkpoint().checkpoint)
        last = heads[-1]
        for head in heads:
            assert log.checkpoint(head.size).checkpoint == head
            proof = log.consistency_proof(head.size, last.size)
            verify_consistency(proof, old=head.size, new=last.size, old_root=head.root, new_root=last.root)
        for index in range(last.size):
            digest = leaf_hash(encode_leaf(log.leaf(index)))
            path = log.inclusion_proof(index, last.size)
            verify_inclusion(path, index=index, size=last.size, leaf=digest, root=last.root)


def test_a_leaf_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with opened(tmp_path / "audit") as log:
        for index in (0, -1):
            with pytest.raises(OperatorError) as failure:
                log.leaf(index)
            assert failure.value.code == "audit.no_leaf"


def test_threads_add_without_losing_a_leaf(tmp_path: Path) -> None:
    indices: list[int] = []
    with opened(tmp_path / "audit") as log:

        def work(number: int) -> None:
            for step in range(10):
                indices.append(log.append(refused(number * 100 + step)))
                assert len(list(log.leaves(0, log.size))) >= len(set(indices[:1]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(indices) == list(range(40))
    with opened(tmp_path / "audit") as log:
        assert {leaf.at_s for leaf in log.leaves(0, 40)} == {n * 100 + s for n in range(4) for s in range(10)}


def test_only_the_agents_user_reads_it(tmp_path: Path) -> None:
    with opened(tmp_path / "audit") as log:
        log.append(SENT)
        files = list((tmp_path / "audit").iterdir())
        assert {path.stat().st_mode & 0o077 for path in files} == {0}
        assert (tmp_path / "audit").stat().st_mode & 0o077 == 0


def test_another_key_makes_another_log() -> None:
    other = log_origin("consortium-a", "hospital-a", "node-a", Ed25519PrivateKey.generate())
    assert other != ORIGIN
    assert other.rpartition("/")[0] == ORIGIN.rpartition("/")[0]


def test_nothing_to_put_aside(tmp_path: Path) -> None:
    assert retire(tmp_path) == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 5000,
        b'{"at_s":1,"kind":"nothing-known"}',
        b'{"at_s":"1","kind":"agent-started","version":"1"}',
        b'{"at_s":1,"kind":"agent-started","version":"1","value":17}',
        b'{"kind":"agent-started","at_s":1,"version":"1"}',
        b'{"at_s":1, "kind":"agent-started","version":"1"}',
        encode_leaf(SENT) + b"\n",
        b'"' + b"x" * 70_000 + b'"',
    ],
)
def test_bytes_that_are_no_leaf(data: bytes) -> None:
    with pytest.raises(PeerProtocolError) as failure:
        parse_leaf(data)
    assert failure.value.code == "audit.bad_leaf"


def test_leaves_have_one_form_in_bytes() -> None:
    data = encode_leaf(SENT)
    assert parse_leaf(data) == SENT
    assert data.startswith(b'{"approval":0,"at_s":1,"attempt":1,"bytes":2700000,')
    assert b"\n" not in encode_leaf(AgentStarted(at_s=1, version="1"))
