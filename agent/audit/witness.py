"""The box's side of its witnesses: they are shown each new checkpoint, and remember the last one better than a disk.

At every start, and before anything leaves, the log is held against what a witness has seen: a witness that saw more
entries says that this disk was rolled back; one that saw other entries, that there are two histories.

Source: C2SP tlog-witness, add-checkpoint.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from agent.audit.leaves import encode_leaf
from agent.audit.log import AuditLog
from agent.audit.note import (
    COSIGNATURE,
    CosignedCheckpoint,
    NoteKey,
    SignedCheckpoint,
    parse_decimal,
    parse_signatures,
    parse_vkey,
)
from agent.audit.tree import Hashes
from agent.core.errors import NetworkError, OperatorError, PeerProtocolError

ADD_CHECKPOINT: Final = "/add-checkpoint"
REGISTER: Final = "/v1/logs"
MAX_ANSWER_BYTES: Final = 1 << 14
FRESH_S: Final = 24 * 3600
"""How old, in seconds, a cosignature may be while anything leaves the box."""
CLOCK_SKEW_S: Final = 120
_MAX_TURNS: Final = 4

Post = Callable[[str, bytes], tuple[int, bytes]]
"""Posts bytes to a path of the witness, and returns status and body, of at most `MAX_ANSWER_BYTES`; raises
`NetworkError` where the witness does not answer."""


def parse_witness(vkey: str) -> NoteKey:
    """Parse a witness's key.

    Raises:
        PeerProtocolError: It is none of a witness (`audit.bad_witness`), or was copied wrongly.
    """
    key = parse_vkey(vkey)
    if key.kind != COSIGNATURE:
        raise PeerProtocolError(
            "audit.bad_witness",
            f"The key of {key.name} is none of a witness: it makes no cosignatures.",
            next_step="Take the line that `seh-provision witness init` printed, or the witness's own page.",
        )
    return key


def register(log: AuditLog, post: Post, statement: bytes, certificate: bytes) -> None:
    """Tell the consortium's witness of this log; the same again does no harm.

    Args:
        log: Its first leaf is `log-opened`.
        post: To the witness.
        statement: DSSE envelope of the `audit-log-key` statement.
        certificate: DSSE envelope of the session certificate whose key signed it.

    Raises:
        PeerProtocolError: The witness does not take it: `audit.history_hidden` where it knows an earlier log of this
            box that the new one does not begin with.
        NetworkError: The witness does not answer.
    """
    opened = base64.b64encode(encode_leaf(log.leaf(0))).decode()
    request = {"statement": statement.decode(), "certificate": certificate.decode(), "opened": opened}
    status, _ = post(REGISTER, json.dumps(request).encode())
    match status:
        case HTTPStatus.OK | HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            return  # another standard witness learns of logs from its own operator
        case HTTPStatus.CONFLICT:
            raise PeerProtocolError(
                "audit.history_hidden",
                "The witness knows an earlier audit log of this box, and this one does not begin with its end.",
                next_step="Put the earlier log back. If it is lost for good, ask the witness's operator to forget it.",
            )
        case HTTPStatus.FORBIDDEN | HTTPStatus.BAD_REQUEST:
            raise PeerProtocolError(
                "audit.not_registered",
                "The witness does not take this box's audit log: it does not believe the box's key.",
                next_step="See that the box is on its hospital's record; the witness's own log says more.",
            )
        case _:
            raise _no_witness(status)


def submit(log: AuditLog, post: Post, witness: NoteKey) -> CosignedCheckpoint:
    """Have the newest checkpoint cosigned; holds the whole log against what the witness has seen.

    Args:
        log: The box's.
        post: To the witness.
        witness: Its key.

    Returns:
        The cosigned checkpoint, which the log keeps.

    Raises:
        OperatorError: `audit.rolled_back`: the witness has seen a longer log of this box; `audit.own_witness`.
        PeerProtocolError: `audit.split_view`: it has seen another history; `audit.witness_forgot`: it has cosigned more
            than it says now; `audit.unknown_log`: it does not know this log; `audit.bad_cosignature`,
            `audit.not_cosigned`: what it answered is no cosignature of its.
        NetworkError: It does not answer (`audit.no_witness`).
    """
    if witness.public_key == log.key.public_key:
        raise _own_witness(witness)
    old = cosigned = _cosigned_size(log, witness)
    for _ in range(_MAX_TURNS):
        head = log.checkpoint()
        status, body = post(
            ADD_CHECKPOINT, encode_submission(old, log.consistency_proof(old, head.checkpoint.size), head)
        )
        if status == HTTPStatus.OK:
            lines = [line for line in parse_signatures(_text(body)) if line.name == witness.name]
            return log.add_cosignature(head.with_signatures(*lines), witness)
        if status != HTTPStatus.CONFLICT:
            raise _refused(status, witness)
        old = _compared(log, witness, old, cosigned, parse_decimal(_text(body).removesuffix("\n")))
        # Read before the witness is asked: another thread may have a newer cosignature by the time it has answered.
        cosigned = _cosigned_size(log, witness)
    raise _no_witness(HTTPStatus.CONFLICT)


def check_witnessed(log: AuditLog, witness: NoteKey, *, size: int, now_s: int) -> CosignedCheckpoint:
    """Check that a witness has cosigned so much of the log, and not long ago; nothing leaves the box before.

    Args:
        log: The box's.
        witness: Its key.
        size: So many leaves must be covered.
        now_s: Seconds since 1970.

    Raises:
        OperatorError: `audit.not_witnessed`: it has not cosigned so many; `audit.cosignature_old`: it did more than
            24 h ago, or by a clock that is wrong.
    """
    cosigned = log.cosigned(witness)
    if cosigned is None or cosigned.size < size:
        raise OperatorError(
            "audit.not_witnessed",
            f"The witness {witness.name} has not cosigned the newest entries of this box's audit log.",
            next_step="Nothing leaves the box until it has; see that the box reaches the witness.",
        )
    if not now_s - FRESH_S <= cosigned.time_s <= now_s + CLOCK_SKEW_S:
        raise OperatorError(
            "audit.cosignature_old",
            f"The last cosignature of the witness {witness.name} is more than 24 hours old, or from the future.",
            next_step="Nothing leaves the box until there is a new one; see to its line to the witness, and its clock.",
        )
    return cosigned


def encode_submission(old: int, proof: Hashes, head: SignedCheckpoint) -> bytes:
    """The body of add-checkpoint."""
    lines = [f"old {old}", *(base64.b64encode(value).decode() for value in proof), ""]
    return ("\n".join(lines) + "\n" + head.note).encode()


def _cosigned_size(log: AuditLog, witness: NoteKey) -> int:
    cosigned = log.cosigned(witness)
    return cosigned.size if cosigned else 0


def _compared(log: AuditLog, witness: NoteKey, old: int, cosigned: int, known: int) -> int:
    """From which size to try again, given what the witness says it knows."""
    # Another thread may have added leaves, and submitted them, since `head` was read.
    if known > log.size:
        raise OperatorError(
            "audit.rolled_back",
            f"This box's audit log has {log.size} entries, and the witness {witness.name} has seen {known} of it: the "
            "disk was put back to an earlier state.",
            next_step="Nothing leaves this box. Put the newest state back; if it is lost, tell the consortium.",
        )
    if known == old:
        raise _split_view(witness)
    if known < cosigned:
        raise PeerProtocolError(
            "audit.witness_forgot",
            f"The witness {witness.name} says that it has seen {known} entries of this box's audit log, and it has "
            f"cosigned {cosigned}.",
            next_step="Its database was put back to an earlier state, so it witnesses nothing; tell its operator.",
        )
    return known


def _refused(status: int, witness: NoteKey) -> PeerProtocolError | NetworkError:
    match status:
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            return _split_view(witness)
        case HTTPStatus.NOT_FOUND | HTTPStatus.FORBIDDEN:
            return PeerProtocolError(
                "audit.unknown_log",
                f"The witness {witness.name} does not know this box's audit log, or not its key.",
                next_step="The box tells it of its log at each start; see that the box is on its hospital's record.",
            )
        case _:
            return _no_witness(status)


def _text(body: bytes) -> str:
    if len(body) > MAX_ANSWER_BYTES or not body:
        raise _no_witness(HTTPStatus.OK)
    return body.decode(errors="replace")


def _split_view(witness: NoteKey) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.split_view",
        f"The witness {witness.name} has seen another history of this audit log than the one on this box.",
        next_step="Nothing leaves this box. Keep the log as it is, export it, and compare it with earlier exports.",
    )


def _own_witness(witness: NoteKey) -> OperatorError:
    return OperatorError(
        "audit.own_witness",
        f"The witness {witness.name} has this box's own key, and nobody witnesses himself.",
        next_step="Name a witness of another party.",
    )


def _no_witness(status: int) -> NetworkError:
    return NetworkError(
        "audit.no_witness",
        f"The witness of the audit log does not answer as a witness does (HTTP status {status}).",
        next_step="It is asked again; if it lasts, tell the witness's operator.",
    )
