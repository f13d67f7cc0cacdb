"""The export of an audit log: one file that verifies offline, on any machine, with nothing else at hand.

    line 1            a JSON object: who vouches for the log's key, the checkpoint, what witnesses cosigned
    lines 2 to n + 1  the n leaves, each the very bytes that the tree hashes

A verifier needs SHA-256, Ed25519 and ECDSA, and no code of ours: docs/auditor.md tells the steps.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.audit.leaves import MAX_LEAF_BYTES, Leaf, LogOpened, parse_leaf
from agent.audit.log import AuditLog
from agent.audit.note import (
    SIGNATURE,
    Checkpoint,
    CosignedCheckpoint,
    NoteKey,
    SignedCheckpoint,
    parse_checkpoint,
    verify_cosignature,
    verify_signature,
)
from agent.audit.tree import leaf_hash, root_of
from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.chain import NodeRecord, TrustView, verify_session, verify_statement
from agent.statements.envelope import MAX_ENVELOPE_BYTES, parse_proof
from agent.statements.kinds import AuditLogKey, HexBytes
from agent.statements.roots import EvidenceClass, FIDO2Terms, KeyKind, RootKey

MAX_BUNDLE_BYTES: Final = 1 << 28
FORMAT: Final = "secur-e-health/audit-export/1"
_NEWEST: Final = 1 << 53

Envelope = Annotated[str, Field(max_length=MAX_ENVELOPE_BYTES)]
Note = Annotated[str, Field(max_length=1 << 16)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _FIDO2(_Part):
    rp_id: str
    user_verified: bool


class _Node(_Part):
    """The box, as its hospital's record has it."""

    site: IdentifierText
    node: IdentifierText
    kind: Literal["tpm", "piv", "fido2", "pkcs11", "software"]
    evidence: Literal["none", "test", "virtual", "hardware"]
    public_key: HexBytes
    fido2: _FIDO2 | None = None

    @property
    def record(self) -> NodeRecord:
        terms = FIDO2Terms(self.fido2.rp_id, self.fido2.user_verified) if self.fido2 else None
        evidence = EvidenceClass[self.evidence.upper()]
        return NodeRecord(
            self.site, self.node, RootKey(KeyKind(self.kind), bytes.fromhex(self.public_key), evidence, terms)
        )


class _Header(_Part):
    format: Literal["secur-e-health/audit-export/1"]
    node: _Node
    certificate: Envelope
    statement: Envelope
    checkpoint: Note
    cosigned: Annotated[tuple[Note, ...], Field(max_length=16)]
    hashes: str
    """The leaves' hashes, (32,) each, in Base64: they say which leaf is at fault, and are no evidence themselves."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """Why a log's key is believed.

    Args:
        record: The box, as its hospital signed it.
        certificate: DSSE envelope of a session certificate.
        statement: DSSE envelope of the `audit-log-key` statement, signed by that session's key while it counted.
    """

    record: NodeRecord
    certificate: bytes
    statement: bytes


@dataclass(frozen=True, slots=True)
class VerifiedLog:
    """An exported log that holds.

    Args:
        record: Whose it is; its key's id is to be compared with the hospital's record in the trust repository.
        consortium: Digest of the pinned trust root, hex.
        checkpoint: What the log signed.
        leaves: All of them.
        cosigned: What each witness that was asked for has cosigned.
    """

    record: NodeRecord
    consortium: str
    checkpoint: Checkpoint
    leaves: tuple[Leaf, ...]
    cosigned: tuple[CosignedCheckpoint, ...]


def encode_bundle(log: AuditLog, voucher: Voucher, witnesses: Iterable[NoteKey], *, size: int) -> bytes:
    """Export a log.

    Args:
        log: The box's.
        voucher: Why its key is believed.
        witnesses: Whose cosignatures go with it.
        size: So many leaves.
    """
    entries = list(log.entries(0, size))
    cosigned = [found for witness in witnesses if (found := log.cosigned(witness)) and found.size <= size]
    root = voucher.record.root
    terms = root.fido2
    header = _Header(
        format=FORMAT,
        node=_Node(
            site=voucher.record.site,
            node=voucher.record.node,
            kind=root.kind.value,
            evidence=root.evidence.name.lower(),  # type: ignore[arg-type]  # its names are those
            public_key=root.public_key.hex(),
            fido2=_FIDO2(rp_id=terms.rp_id, user_verified=terms.user_verified) if terms else None,
        ),
        certificate=voucher.certificate.decode(),
        statement=voucher.statement.decode(),
        checkpoint=log.checkpoint(size).note,
        cosigned=tuple(one.signed.note for one in cosigned),
        hashes=base64.b64encode(b"".join(digest for _, digest in entries)).decode(),
    )
    lines = [header.model_dump_json().encode(), *(entry for entry, _ in entries)]
    return b"\n".join(lines) + b"\n"


def verify_bundle(
    data: bytes, witnesses: Sequence[NoteKey] = (), earlier: SignedCheckpoint | None = None
) -> VerifiedLog:
    """Verify an exported log, from its file alone.

    Args:
        data: The file.
        witnesses: Each of these must have cosigned a checkpoint of it.
        earlier: A checkpoint that somebody kept, or that a witness has; the log must continue it.

    Raises:
        PeerProtocolError: It does not hold; the code names what was done to it: `audit.leaf_altered`,
            `audit.leaf_missing`, `audit.leaf_order`, `audit.leaf_added`, `audit.tail_cut`, `audit.other_root`,
            `audit.split_view`, `audit.foreign_key`, `audit.bad_signature`, `audit.bad_cosignature`,
            `audit.not_cosigned`, `audit.bad_opening`, `audit.bad_export`, or a code of the statements.
    """
    header, lines = _parse(data)
    # 1. The box's key vouched for the session, and the session for the log's key.
    record = header.node.record
    statement = _verify_voucher(header, record)
    key = NoteKey(statement.origin, SIGNATURE, bytes.fromhex(statement.log_key))
    # 2. The log's key signed the checkpoint.
    signed = parse_checkpoint(header.checkpoint.encode())
    checkpoint = verify_signature(signed, key)
    # 3. The leaves are those of the checkpoint, in their order, and all of them.
    hashes = [leaf_hash(line) for line in lines]
    if len(hashes) != checkpoint.size or root_of(hashes) != checkpoint.root:
        raise _diagnosed(hashes, header, checkpoint)
    leaves = tuple(parse_leaf(line) for line in lines)
    # 4. The first one says whose log it is.
    _check_opening(leaves, statement)
    # 5. Every witness asked for saw this history, and so did whoever kept an earlier checkpoint.
    notes = [parse_checkpoint(note.encode()) for note in header.cosigned]
    for note in (*notes, *(() if earlier is None else (earlier,))):
        _check_continues(note, key, hashes)
    cosigned = tuple(_cosigned_by(witness, (signed, *notes)) for witness in witnesses)
    return VerifiedLog(record, statement.consortium, checkpoint, leaves, cosigned)


def checkpoint_of(data: bytes) -> SignedCheckpoint:
    """The checkpoint of an export, or one that was kept by itself.

    Raises:
        PeerProtocolError: It is neither (`audit.bad_export`, `audit.bad_note`).
    """
    return parse_checkpoint(_parse(data)[0].checkpoint.encode() if data.startswith(b"{") else data)


def _parse(data: bytes) -> tuple[_Header, list[bytes]]:
    if len(data) > MAX_BUNDLE_BYTES:
        raise _bad_export(f"it is larger than {MAX_BUNDLE_BYTES} bytes")
    first, *lines = data.split(b"\n")
    if not lines or lines.pop():
        raise _bad_export("its last line has no end")
    if any(len(line) > MAX_LEAF_BYTES for line in lines):
        raise _bad_export("a line is too long")
    try:
        return _Header.model_validate_json(first), lines
    except ValidationError as error:
        raise _bad_export(explain_invalid(error, whole="first line")) from error


def _verify_voucher(header: _Header, record: NodeRecord) -> AuditLogKey:
    proof = parse_proof(header.statement.encode())
    said = AuditLogKey.parse(proof.payload)
    view = TrustView(said.consortium, {record.root.key_id: record}, frozenset(), 0, _NEWEST)
    session = verify_session(header.certificate.encode(), view, now_s=said.issued_s)
    statement = verify_statement(proof, session, AuditLogKey, now_s=said.issued_s)
    if (statement.site, statement.node) != (record.site, record.node):
        raise PeerProtocolError(
            "audit.foreign_box",
            "The export's statement about the log's key names another box than the key that signed it.",
            next_step="It counts for nothing; see which box it came from.",
        )
    return statement


def _check_opening(leaves: Sequence[Leaf], statement: AuditLogKey) -> None:
    said = (statement.consortium, statement.site, statement.node, statement.log_key)
    match leaves:
        case [LogOpened() as first, *_] if (first.consortium, first.site, first.node, first.key) == said:
            return
        case _:
            raise PeerProtocolError(
                "audit.bad_opening",
                "The log does not begin with the entry that says whose it is.",
                next_step="It counts for nothing; ask the hospital for the box's whole log.",
            )


def _check_continues(note: SignedCheckpoint, key: NoteKey, hashes: Sequence[bytes]) -> None:
    before = verify_signature(note, key)
    if before.size > len(hashes):
        raise _tail_cut(len(hashes), before.size)
    if root_of(hashes[: before.size]) != before.root:
        raise PeerProtocolError(
            "audit.split_view",
            f"The box showed two histories: a checkpoint that it signed over {before.size} entries is not of this log.",
            next_step="Keep both; together they prove that the box's log was forged.",
        )


def _cosigned_by(witness: NoteKey, notes: Sequence[SignedCheckpoint]) -> CosignedCheckpoint:
    # The largest comes last to be asked: what fails in an older one is still told.
    ordered = sorted(notes, key=lambda note: note.checkpoint.size)
    bearing = [note for note in ordered if any(line.name == witness.name for line in note.signatures)]
    found = [verify_cosignature(note, witness) for note in bearing]
    return found[-1] if found else verify_cosignature(ordered[-1], witness)


def _diagnosed(hashes: Sequence[bytes], header: _Header, checkpoint: Checkpoint) -> PeerProtocolError:
    """What was done to the leaves, as far as the file itself still says it."""
    size = checkpoint.size
    listed = _listed(header)
    if len(listed) != size or root_of(listed) != checkpoint.root:
        if len(hashes) < size:
            return _tail_cut(len(hashes), size)
        return PeerProtocolError(
            "audit.other_root",
            "The log's entries are not those of its checkpoint: some were altered, added, removed or moved.",
            next_step="It counts for nothing; get the export from the box itself.",
        )
    place = next((i for i, (ours, signed) in enumerate(zip(hashes, listed, strict=False)) if ours != signed), None)
    if len(hashes) < size:
        return _tail_cut(len(hashes), size) if place is None else _leaf_missing(place)
    if len(hashes) > size:
        return _leaf_added(size if place is None else place)
    return _leaf_order(place) if sorted(hashes) == sorted(listed) else _leaf_altered(place)


def _listed(header: _Header) -> list[bytes]:
    try:
        joined = base64.b64decode(header.hashes, validate=True)
    except ValueError:
        return []
    return [joined[start : start + 32] for start in range(0, len(joined), 32)]


def _tail_cut(size: int, signed: int) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.tail_cut",
        f"The end of the log was cut off: it has {size} entries, and its box signed for {signed}.",
        next_step="Ask the hospital for the whole log.",
    )


def _leaf_missing(place: int) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.leaf_missing",
        f"Entry {place} of the log was left out.",
        next_step="Ask the hospital for the whole log.",
    )


def _leaf_added(place: int) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.leaf_added",
        f"Entry {place} of the log was put in; the box did not sign it.",
        next_step="It counts for nothing; get the export from the box itself.",
    )


def _leaf_order(place: int | None) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.leaf_order",
        f"The log's entries stand in another order than the box signed, from entry {place} on.",
        next_step="It counts for nothing; get the export from the box itself.",
    )


def _leaf_altered(place: int | None) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.leaf_altered",
        f"Entry {place} of the log is not the one that the box signed.",
        next_step="It counts for nothing; get the export from the box itself.",
    )


def _bad_export(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.bad_export",
        f"The file is no export of an audit log: {what}.",
        next_step="Export the log again with `seh-agent audit export`.",
    )
