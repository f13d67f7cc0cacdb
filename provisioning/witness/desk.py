"""What the witness answers: it cosigns a checkpoint only where that continues the last one it cosigned.

Source: C2SP tlog-witness (add-checkpoint) and tlog-cosignature (cosignature/v1). Which logs there are, it learns from
the boxes themselves, and believes a box that the consortium's trust repository names.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.audit.leaves import LogOpened, parse_leaf
from agent.audit.note import (
    COSIGNATURE,
    SIGNATURE,
    Checkpoint,
    NoteKey,
    SignedCheckpoint,
    cosign,
    note_key,
    parse_checkpoint,
    parse_decimal,
    parse_hash,
    verify_signature,
)
from agent.audit.tree import Hashes, leaf_hash, verify_consistency
from agent.core.clock import Clock
from agent.core.errors import NetworkError, PeerProtocolError
from agent.core.ids import SiteID
from agent.statements.chain import verify_session, verify_statement
from agent.statements.envelope import parse_proof
from agent.statements.kinds import AuditLogKey
from agent.trust.snapshot import TrustSnapshot, TrustSource
from agent.trust.tuf_faults import check_not_expired
from provisioning.witness.store import KnownLog, WitnessStore

MAX_PROOF_LINES: Final = 63
PLAIN: Final = "text/plain; charset=utf-8"
SIZE: Final = "text/x.tlog.size"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back.

    Args:
        status: HTTP.
        body: UTF-8.
        media_type: Of the body.
    """

    status: HTTPStatus
    body: str = ""
    media_type: str = PLAIN


@dataclass(frozen=True, slots=True)
class Submission:
    """A request of add-checkpoint.

    Args:
        old: Size of the checkpoint before, as the asker believes.
        proof: That the new one continues it.
        signed: The new one.
    """

    old: int
    proof: Hashes
    signed: SignedCheckpoint


class Witness:
    """Cosigns; thread-safe.

    Args:
        store: Its memory.
        name: Its name.
        key: Signs.
        source: Of what the trust repository says.
        clock: Its own.
    """

    def __init__(
        self, store: WitnessStore, name: str, key: Ed25519PrivateKey, source: TrustSource, clock: Clock
    ) -> None:
        self._store = store
        self._name = name
        self._key = key
        self._source = source
        self._clock = clock

    @property
    def key(self) -> NoteKey:
        """Its public key."""
        return note_key(self._name, self._key, COSIGNATURE)

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer a submission, with the statuses of tlog-witness.

        Raises:
            HardwareError: What was seen cannot be remembered; then nothing is cosigned.
        """
        try:
            asked = parse_submission(body)
        except PeerProtocolError as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error.sentence}\n")
        checkpoint = asked.signed.checkpoint
        known = self._store.log(checkpoint.origin)
        if known is None:
            return Answer(HTTPStatus.NOT_FOUND, "This log is not known here.\n")
        try:
            verify_signature(asked.signed, NoteKey(known.origin, SIGNATURE, known.key))
        except PeerProtocolError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error.sentence}\n")
        if asked.old > checkpoint.size:
            return Answer(HTTPStatus.BAD_REQUEST, "The old size is larger than the checkpoint.\n")
        with self._store.changing():
            refused = self._compared(asked)
            if refused is None:
                self._store.advance(checkpoint.origin, checkpoint.size, checkpoint.root, asked.signed.note)
        # What was seen is on the disk; from here on nothing else is cosigned in its place.
        return refused or Answer(HTTPStatus.OK, self._cosigned(checkpoint))

    def register(self, statement: bytes, certificate: bytes, opened: bytes) -> None:
        """Know a box's log from now on; the same again changes nothing.

        Args:
            statement: DSSE envelope of the `audit-log-key` statement.
            certificate: DSSE envelope of the session certificate whose key signed it.
            opened: The log's first leaf.

        Raises:
            PeerProtocolError: The box is not believed, or its log hides an earlier one (`witness.history_hidden`).
            NetworkError: The trust repository is needed and does not answer.
            HardwareError: It cannot be remembered.
        """
        said = self._believed(statement, certificate)
        first = parse_leaf(opened)
        if not isinstance(first, LogOpened) or (first.consortium, first.site, first.node, first.key) != (
            said.consortium,
            said.site,
            said.node,
            said.log_key,
        ):
            raise _not_taken("its first entry is about another log")
        digest = leaf_hash(opened)
        with self._store.changing():
            known = self._store.log(said.origin)
            if known is not None:
                if (known.key.hex(), known.opened) != (said.log_key, digest):
                    raise _history_hidden(said)
                return
            # Whoever names a log of a box that is yet to come would keep that box from ever being witnessed.
            if not said.origin.endswith(f"/{said.site}/{said.node}/{said.log_key[:8]}"):
                raise _not_taken("its log has another box's name")
            before = self._store.newest_of(said.site, said.node)
            if before is not None:
                _check_previous(first.previous, before, said)
            self._store.add(
                KnownLog(
                    origin=said.origin,
                    key=bytes.fromhex(said.log_key),
                    site=said.site,
                    node=said.node,
                    opened=digest,
                    number=0 if before is None else before.number + 1,
                    size=1,
                    root=digest,
                )
            )
        log.info("log_registered", origin=said.origin, site=said.site, node=said.node)

    def _compared(self, asked: Submission) -> Answer | None:
        checkpoint = asked.signed.checkpoint
        known = self._store.log(checkpoint.origin)
        if known is None:
            return Answer(HTTPStatus.NOT_FOUND, "This log is not known here.\n")
        same_size = asked.old == checkpoint.size
        if asked.old != known.size or (same_size and checkpoint.root != known.root):
            if checkpoint.size <= known.size and checkpoint.root != known.root:
                log.warning("log_went_back", origin=known.origin, seen=known.size, shown=asked.signed.note)
            return Answer(HTTPStatus.CONFLICT, f"{known.size}\n", SIZE)
        try:
            verify_consistency(
                asked.proof, old=known.size, new=checkpoint.size, old_root=known.root, new_root=checkpoint.root
            )
        except PeerProtocolError as error:
            # Two notes that one key signed, and no proof between them: evidence, so it is kept.
            log.warning("log_split", origin=known.origin, seen=known.note, shown=asked.signed.note)
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error.sentence}\n")
        return None

    def _cosigned(self, checkpoint: Checkpoint) -> str:
        time_s = int(self._clock.now().timestamp())
        return cosign(checkpoint, self._name, self._key, time_s=time_s).line

    def _believed(self, statement: bytes, certificate: bytes) -> AuditLogKey:
        try:
            return self._verified(statement, certificate, self._source.current())
        except (NetworkError, PeerProtocolError):
            # The box may be younger than what is known here of the repository.
            return self._verified(statement, certificate, self._source.refresh())

    def _verified(self, statement: bytes, certificate: bytes, snapshot: TrustSnapshot) -> AuditLogKey:
        now_s = self._source.now_s()
        proof = parse_proof(statement)
        site = SiteID(AuditLogKey.parse(proof.payload).site)
        record = snapshot.sites.get(site)
        if record is None or not snapshot.is_current(now_s):
            raise _not_taken("the consortium has no such hospital, or what is known of it has expired")
        check_not_expired(f"what {site} signed", record.expires_s, now_s)
        session = verify_session(certificate, snapshot.view(site), now_s=now_s)
        said = verify_statement(proof, session, AuditLogKey, now_s=now_s)
        if (said.consortium, said.site, said.node) != (snapshot.root_digest, session.record.site, session.record.node):
            raise _not_taken("it speaks about another box or consortium than its key's")
        return said


def parse_submission(body: bytes) -> Submission:
    """Parse a request of add-checkpoint; nothing is verified yet.

    Raises:
        PeerProtocolError: It is none (`audit.bad_note`).
    """
    head, _, note = body.partition(b"\n\n")
    first, *lines = head.decode(errors="replace").split("\n")
    signed = parse_checkpoint(note)
    if not first.startswith("old ") or len(lines) > MAX_PROOF_LINES:
        raise _not_taken("it does not begin with the old size and at most 63 hashes")
    return Submission(parse_decimal(first.removeprefix("old ")), tuple(parse_hash(line) for line in lines), signed)


def _check_previous(previous: str, before: KnownLog, said: AuditLogKey) -> None:
    try:
        end = verify_signature(parse_checkpoint(previous.encode()), NoteKey(before.origin, SIGNATURE, before.key))
    except PeerProtocolError as error:
        raise _history_hidden(said) from error
    if end.size < before.size or (end.size == before.size and end.root != before.root):
        raise _history_hidden(said)


def _history_hidden(said: AuditLogKey) -> PeerProtocolError:
    return PeerProtocolError(
        "witness.history_hidden",
        f"The box {said.node} of {said.site} shows a new audit log that does not begin with the end of its last one.",
        next_step="Ask the hospital. If the earlier log is lost for good, and why is known: `witness forget`.",
    )


def _not_taken(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "witness.not_taken",
        f"The witness does not take what a box sent: {what}.",
        next_step="See that the box is on its hospital's record, and that box and witness run the same release.",
    )
