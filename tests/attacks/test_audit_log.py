"""What is done to an audit log by who has the disk, or an export on its way; each is named by its own code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.bundle import Voucher, encode_bundle, verify_bundle
from agent.audit.leaves import AgentStarted, MessageRefused, encode_leaf
from agent.audit.log import LOG_FILE_NAME, retire
from agent.audit.note import Checkpoint, cosign, parse_checkpoint, sign_checkpoint
from agent.audit.tree import leaf_hash, root_of
from agent.audit.witness import check_witnessed, submit
from agent.core.errors import HardwareError, OperatorError, PeerProtocolError, SecureHealthError
from tests.simulators.audited_box import CLOCK, CONSORTIUM, NOW_S, SITE, AuditedBox
from tests.simulators.beating_box import BeatingBox
from tests.simulators.witness import PlayedWitness

FLIPS = 150


@pytest.fixture
def box(tmp_path: Path) -> AuditedBox:
    return AuditedBox.in_(tmp_path / "audit")


def on_disk(box: AuditedBox) -> str:
    """The code with which the box refuses its own disk."""
    with pytest.raises(HardwareError) as failure:
        box.log()
    return failure.value.code


def exported(data: bytes, **arguments: object) -> str:
    """The code with which an export is refused."""
    with pytest.raises(PeerProtocolError) as failure:
        verify_bundle(data, **arguments)  # type: ignore[arg-type]
    return failure.value.code


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


# The disk.


def test_a_whole_log_opens_and_verifies(box: AuditedBox) -> None:
    with box.log() as log:
        assert log.size == 7
    verified = verify_bundle(box.export())
    assert verified.checkpoint.size == len(verified.leaves) == 7
    assert verified.record.site == SITE
    assert verified.record.root.key_id == box.identity.key_id


def test_leaf_altered_on_the_disk(box: AuditedBox) -> None:
    forged = encode_leaf(MessageRefused(at_s=NOW_S, study="study-b", rule="not_expired")).hex()
    box.database(f"UPDATE leaf SET entry = x'{forged}' WHERE id = 3")
    assert on_disk(box) == "audit.disk_altered"


def test_leaf_altered_on_the_disk_together_with_its_hash(box: AuditedBox) -> None:
    forged = encode_leaf(MessageRefused(at_s=NOW_S, study="study-b", rule="not_expired"))
    box.database(f"UPDATE leaf SET entry = x'{forged.hex()}', hash = x'{leaf_hash(forged).hex()}' WHERE id = 3")
    assert on_disk(box) == "audit.disk_altered"


def test_leaves_swapped_on_the_disk(box: AuditedBox) -> None:
    box.database(
        "UPDATE leaf SET id = 100 WHERE id = 3", "UPDATE leaf SET id = 3 WHERE id = 4",
        "UPDATE leaf SET id = 4 WHERE id = 100",
    )  # fmt: skip
    assert on_disk(box) == "audit.disk_altered"


def test_tail_cut_off_the_disk(box: AuditedBox) -> None:
    box.database("DELETE FROM leaf WHERE id > 5")
    assert on_disk(box) == "audit.disk_cut"


def test_leaf_taken_from_the_middle_of_the_disk(box: AuditedBox) -> None:
    box.database("DELETE FROM leaf WHERE id = 4")
    assert on_disk(box) == "audit.disk_altered"


def test_leaf_added_on_the_disk_without_the_key(box: AuditedBox) -> None:
    forged = encode_leaf(AgentStarted(at_s=NOW_S, version="9"))
    box.database(f"INSERT INTO leaf VALUES (8, x'{forged.hex()}', x'{leaf_hash(forged).hex()}')")
    assert on_disk(box) == "audit.disk_altered"


def test_trigger_that_would_have_the_box_sign_another_leaf(box: AuditedBox) -> None:
    forged = encode_leaf(AgentStarted(at_s=NOW_S, version="9"))
    box.database(
        "CREATE TRIGGER planted AFTER INSERT ON leaf BEGIN UPDATE leaf SET "
        f"entry = x'{forged.hex()}', hash = x'{leaf_hash(forged).hex()}' WHERE id = NEW.id; END"
    )
    assert on_disk(box) == "audit.disk_altered"


def test_table_in_another_form(box: AuditedBox) -> None:
    box.database("ALTER TABLE leaf ADD COLUMN more TEXT")
    assert on_disk(box) == "audit.disk_altered"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE leaf SET entry = CAST('text' AS TEXT) WHERE id = 3", "audit.disk_altered"),
        ("UPDATE leaf SET hash = 17 WHERE id = 3", "audit.disk_altered"),
        ("UPDATE head SET note = x'ff00'", "audit.disk_altered"),
        ("UPDATE head SET note = 'no note'", "audit.disk_foreign"),
        ("PRAGMA user_version = 2", "audit.disk_altered"),
    ],
)
def test_values_of_other_kinds_on_the_disk(box: AuditedBox, change: str, code: str) -> None:
    box.database(change)
    assert on_disk(box) == code


def test_checkpoint_of_a_key_of_the_attackers_on_the_disk(box: AuditedBox) -> None:
    with box.log() as log:
        forged = sign_checkpoint(log.checkpoint().checkpoint, Ed25519PrivateKey.generate())
    box.database(f"UPDATE head SET note = '{forged.note}'")
    assert on_disk(box) == "audit.disk_foreign"


def test_checkpoint_taken_from_the_disk(box: AuditedBox) -> None:
    box.database("DELETE FROM head")
    assert on_disk(box) == "audit.disk_altered"


def test_log_of_another_box_on_the_disk(box: AuditedBox, tmp_path: Path) -> None:
    other = AuditedBox.in_(tmp_path / "other")
    (other.directory / LOG_FILE_NAME).replace(box.directory / LOG_FILE_NAME)
    assert on_disk(box) == "audit.disk_foreign"


@pytest.mark.parametrize("where", [0, 30, 7600])
def test_bytes_of_the_file_overwritten(box: AuditedBox, where: int) -> None:
    path = box.directory / LOG_FILE_NAME
    data = bytearray(path.read_bytes())
    data[where : where + 600] = bytes(600)
    path.write_bytes(data)
    assert on_disk(box).startswith("audit.disk_")


def test_second_process_cannot_open_the_log(box: AuditedBox) -> None:
    with box.log(), pytest.raises(OperatorError, match="Another process") as failure:
        box.log()
    assert failure.value.code == "audit.in_use"


def test_disk_rolled_back_is_seen_by_the_witness(box: AuditedBox, tmp_path: Path) -> None:
    before = (box.directory / LOG_FILE_NAME).read_bytes()
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with box.log() as log:
            witness.know(log)
            log.append(AgentStarted(at_s=NOW_S, version="1"))
            submit(log, witness.post, witness.key)
        (box.directory / LOG_FILE_NAME).write_bytes(before)
        with box.log() as log, pytest.raises(OperatorError) as failure:
            submit(log, witness.post, witness.key)
    assert failure.value.code == "audit.rolled_back"


def test_disk_rolled_back_and_grown_again_is_seen_by_the_witness(box: AuditedBox, tmp_path: Path) -> None:
    before = (box.directory / LOG_FILE_NAME).read_bytes()
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with box.log() as log:
            witness.know(log)
            log.append(AgentStarted(at_s=NOW_S, version="1"))
            submit(log, witness.post, witness.key)
        (box.directory / LOG_FILE_NAME).write_bytes(before)
        with box.log() as log:
            for version in ("2", "3"):
                log.append(AgentStarted(at_s=NOW_S, version=version))
                with pytest.raises(PeerProtocolError) as failure:
                    submit(log, witness.post, witness.key)
                assert failure.value.code == "audit.split_view"
                with pytest.raises(OperatorError) as unwitnessed:
                    check_witnessed(log, witness.key, size=log.size, now_s=NOW_S)
                assert unwitnessed.value.code == "audit.not_witnessed"


def test_old_log_is_put_aside_and_begins_the_new_one(box: AuditedBox) -> None:
    with box.log() as log:
        last = log.checkpoint().note
    assert retire(box.directory) == last
    anew = AuditedBox(box.identity, Ed25519PrivateKey.generate(), box.directory)
    with anew.log() as log:
        log.append(anew.opened(previous=last))
        assert log.leaf(0) == anew.opened(previous=last)
    assert (box.directory / "log.0.sqlite").exists()


# The export.


def test_leaf_altered_in_the_export(box: AuditedBox) -> None:
    parts = lines(box.export())
    parts[3] = parts[3].replace(b"study-a", b"study-b")
    assert exported(b"".join(parts)) == "audit.leaf_altered"


def test_leaf_left_out_of_the_export(box: AuditedBox) -> None:
    parts = lines(box.export())
    del parts[3]
    assert exported(b"".join(parts)) == "audit.leaf_missing"


def test_leaf_put_into_the_export(box: AuditedBox) -> None:
    parts = lines(box.export())
    parts.insert(3, encode_leaf(AgentStarted(at_s=NOW_S, version="9")) + b"\n")
    assert exported(b"".join(parts)) == "audit.leaf_added"


def test_leaves_swapped_in_the_export(box: AuditedBox) -> None:
    parts = lines(box.export())
    parts[3], parts[4] = parts[4], parts[3]
    assert exported(b"".join(parts)) == "audit.leaf_order"


def test_tail_cut_off_the_export(box: AuditedBox) -> None:
    assert exported(b"".join(lines(box.export())[:-2])) == "audit.tail_cut"


def test_leaf_altered_together_with_the_list_of_hashes(box: AuditedBox) -> None:
    parts = lines(box.export())
    parts[3] = parts[3].replace(b"study-a", b"study-b")
    header = json.loads(parts[0]) | {"hashes": ""}
    assert exported(json.dumps(header).encode() + b"\n" + b"".join(parts[1:])) == "audit.other_root"


def test_tail_cut_off_together_with_an_older_checkpoint(box: AuditedBox, tmp_path: Path) -> None:
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with box.log() as log:
            witness.know(log)
            submit(log, witness.post, witness.key)
            cut = encode_bundle(log, box.voucher(), [witness.key], size=5)
            kept = log.checkpoint()
        assert verify_bundle(cut).checkpoint.size == 5  # without a witness nobody can tell
        assert exported(cut, witnesses=[witness.key]) == "audit.not_cosigned"
        assert exported(cut, earlier=kept) == "audit.tail_cut"


def test_checkpoint_of_another_key_in_the_export(box: AuditedBox) -> None:
    parts = lines(box.export())
    header = json.loads(parts[0])
    checkpoint = parse_checkpoint(header["checkpoint"].encode()).checkpoint
    header["checkpoint"] = sign_checkpoint(checkpoint, Ed25519PrivateKey.generate()).note
    assert exported(json.dumps(header).encode() + b"\n" + b"".join(parts[1:])) == "audit.foreign_key"


def test_checkpoint_altered_in_the_export(box: AuditedBox) -> None:
    parts = lines(box.export()[:-1])
    header = json.loads(parts[0])
    header["checkpoint"] = header["checkpoint"].replace("\n7\n", "\n6\n")
    assert exported(json.dumps(header).encode() + b"\n" + b"".join(parts[1:-1])) == "audit.bad_signature"


def forged_voucher(box: AuditedBox) -> list[Voucher]:
    neighbour = BeatingBox(CONSORTIUM, SITE)
    own, other = box.voucher(), AuditedBox(neighbour, box.key, box.directory).voucher()
    return [
        Voucher(own.record, own.certificate, other.statement),
        Voucher(own.record, other.certificate, other.statement),
        box.voucher(site="hospital-b"),
        box.voucher(issued_s=NOW_S + 86_400),
    ]


@pytest.mark.parametrize(
    ("which", "code"),
    [
        (0, "statements.unverified"),
        (1, "statements.not_accepted"),
        (2, "audit.foreign_box"),
        (3, "statements.not_accepted"),
    ],
)
def test_log_key_that_the_box_has_not_vouched_for(box: AuditedBox, which: int, code: str) -> None:
    with box.log() as log:
        data = encode_bundle(log, forged_voucher(box)[which], [], size=log.size)
    assert exported(data) == code


def test_log_without_its_first_leaf_verifies_nowhere(box: AuditedBox, tmp_path: Path) -> None:
    headless = AuditedBox(box.identity, box.key, tmp_path / "headless")
    with headless.log() as log:
        log.append(AgentStarted(at_s=NOW_S, version="1"))
        data = encode_bundle(log, headless.voucher(), [], size=1)
    assert exported(data) == "audit.bad_opening"


def test_split_view_shows_when_a_kept_checkpoint_is_held_against_the_export(box: AuditedBox, tmp_path: Path) -> None:
    other = AuditedBox(box.identity, box.key, tmp_path / "second history")
    with other.log() as log:
        other.fill(log, study="study-b")
        shown = log.checkpoint()
    assert exported(box.export(), earlier=shown) == "audit.split_view"


def test_forged_cosignature_in_the_export(box: AuditedBox, tmp_path: Path) -> None:
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with box.log() as log:
            head = log.checkpoint()
            stranger = cosign(head.checkpoint, witness.key.name, Ed25519PrivateKey.generate(), time_s=NOW_S)
            named = type(stranger)(stranger.name, witness.key.key_id, stranger.signature)
            data = encode_bundle(log, box.voucher(), [], size=log.size)
        header, *rest = lines(data)
        fields = json.loads(header) | {"cosigned": [head.with_signatures(named).note]}
        forged = json.dumps(fields).encode() + b"\n" + b"".join(rest)
        assert exported(forged, witnesses=[witness.key]) == "audit.bad_cosignature"


def test_cosignature_of_a_history_that_was_never_in_the_export(box: AuditedBox, tmp_path: Path) -> None:
    other = AuditedBox(box.identity, box.key, tmp_path / "second history")
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with other.log() as log:
            other.fill(log, study="study-b")
            witness.know(log)
            note = submit(log, witness.post, witness.key).signed.note
        header, *rest = lines(box.export())
        fields = json.loads(header) | {"cosigned": [note]}
        data = json.dumps(fields).encode() + b"\n" + b"".join(rest)
        assert exported(data, witnesses=[witness.key]) == "audit.split_view"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b"secur-e-health/audit-export/1", b"secur-e-health/audit-export/2"),
        lambda data: b"[" * 100_000 + data,
        lambda data: data[: data.index(b"\n") + 1] + b"x" * 70_000 + b"\n",
        lambda data: data.replace(b'"node":{', b'"more":1,"node":{', 1),
    ],
)
def test_garbage_is_no_export(box: AuditedBox, spoil: Callable[[bytes], bytes]) -> None:
    assert exported(spoil(box.export())) == "audit.bad_export"


def test_a_leaf_written_otherwise_is_no_leaf(box: AuditedBox, tmp_path: Path) -> None:
    """The tree alone would take any bytes that its key signs; the reader takes canonical ones."""
    odd = b'{"version": "1", "kind": "agent-started", "at_s": 1}'
    first = encode_leaf(box.opened())
    checkpoint = Checkpoint(box.origin, 2, root_of([leaf_hash(first), leaf_hash(odd)]))
    header = json.loads(lines(box.export())[0]) | {"checkpoint": sign_checkpoint(checkpoint, box.key).note}
    assert exported(json.dumps(header).encode() + b"\n" + first + b"\n" + odd + b"\n") == "audit.bad_leaf"


def test_secrets_and_values_have_no_place_in_a_leaf() -> None:
    with pytest.raises(ValueError, match="extra_forbidden"):
        AgentStarted.model_validate({"at_s": 1, "version": "1", "rows": 17})


def test_every_refusal_says_what_to_do(box: AuditedBox) -> None:
    with pytest.raises(SecureHealthError) as failure:
        verify_bundle(b"".join(lines(box.export())[:-2]))
    assert failure.value.next_step


def test_any_flipped_bit_of_an_export_is_named_or_changes_nothing(box: AuditedBox, tmp_path: Path) -> None:
    dice = random.Random(1)
    with PlayedWitness.beside(tmp_path / "witness", CLOCK) as witness:
        with box.log() as log:
            witness.know(log)
            submit(log, witness.post, witness.key)
        data = box.export(witness)
        whole = verify_bundle(data, [witness.key])
        for place in dice.choices(range(len(data)), k=FLIPS):
            flipped = bytearray(data)
            flipped[place] ^= 1 << dice.randrange(8)
            try:
                found = verify_bundle(bytes(flipped), [witness.key])
            except PeerProtocolError as error:
                assert error.code.startswith(("audit.", "statements."))  # noqa: PT017 - either outcome is right
            else:
                same = (whole.checkpoint, whole.leaves, whole.consortium, whole.record.root.public_key)
                assert (found.checkpoint, found.leaves, found.consortium, found.record.root.public_key) == same
                assert [one.time_s for one in found.cosigned] == [one.time_s for one in whole.cosigned]
