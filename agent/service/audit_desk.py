"""Answers console and terminal about the audit log: its newest leaves, and its export in pieces."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Final

from agent.audit.bundle import Voucher, encode_bundle
from agent.audit.leaves import encode_leaf
from agent.audit.log import AuditLog
from agent.audit.witness import parse_witness
from agent.core.box_view import PIECE_BYTES, AuditView, ExportPiece, LeafView
from agent.core.errors import OperatorError
from agent.service.requests import AuditExportRequest, AuditRequest, Handlers
from agent.service.witnessing import WitnessDesk

MAX_SEARCHED: Final = 5000
"""Leaves that one answer looks at; the asker goes on from where it ended."""
MAX_EXPORTS: Final = 4
"""Exports that go on side by side while the log grows."""
WITNESS_WAIT_S: Final = 3.0
"""How long an export waits for its newest leaves to be cosigned."""
MAX_ANSWER_BYTES: Final = 48_000
_MOST_ESCAPED: Final = 1.5
"""How much longer a piece of an export may become as JSON text, before a shorter one is sent."""


@dataclass(slots=True)
class AuditDesk:
    """Answers; one call at a time, from the control socket's thread.

    Args:
        audit: The log.
        witnesses: What they say of it.
        voucher: Why its key is believed; raises where the box cannot prove who it is.
    """

    audit: AuditLog
    witnesses: WitnessDesk
    voucher: Callable[[], Voucher]
    _exported: tuple[int, bytes] = field(default=(0, b""), repr=False)
    _begun: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_EXPORTS), repr=False)
    _asking: Thread | None = field(default=None, repr=False)

    def handlers(self) -> Handlers:
        """By the request's word."""
        return {"audit": self.show, "audit-export": self.export}

    def show(self, request: AuditRequest) -> AuditView:
        """Leaves from a place back; those whose JSON has the searched text, without case."""
        size, last = self.audit.size, self.witnesses.last()
        start = size - 1 if request.start is None else min(request.start, size - 1)
        wanted, found, room = request.search.casefold(), list[LeafView](), MAX_ANSWER_BYTES
        index = start
        while index >= 0 and len(found) < request.count and start - index < MAX_SEARCHED:
            data = encode_leaf(self.audit.leaf(index)).decode()
            if wanted in data.casefold():
                room -= len(data)
                if room < 0 and found:
                    break
                found.append(_leaf_view(index, data))
            index -= 1
        return AuditView(
            size=size,
            leaves=tuple(found),
            following=index if index >= 0 else None,
            cosigned_size=0 if last is None else last.size,
            cosigned_s=None if last is None else last.time_s,
            witness=self.witnesses.names,
            blocked=self.witnesses.blocked(),
        )

    def export(self, request: AuditExportRequest) -> ExportPiece:
        """A piece of the export of the first `size` leaves; what was made for the first piece serves the others.

        Raises:
            OperatorError: The log has another number of leaves and no export of so many was begun, or it is shorter.
            HardwareError: The box cannot prove who it is.
        """
        # The box signs no shorter log than it has, only the rest of an export that it began: an end cut off would show.
        if request.size not in {0, self.audit.size, *self._begun}:
            raise _no_such_piece()
        size = request.size or self.audit.size
        if size not in self._begun:
            self._begun.append(size)
        if request.offset == 0:
            self._ask_witnesses(size)
        if self._exported[0] != size:
            keys = [parse_witness(witness.vkey) for witness in self.witnesses.witnesses()]
            self._exported = size, encode_bundle(self.audit, self.voucher(), keys, size=size)
        data = self._exported[1]
        if request.offset > len(data):
            raise _no_such_piece()
        text = _piece(data[request.offset : request.offset + PIECE_BYTES])
        if request.offset + len(text.encode()) >= len(data):
            self._exported = 0, b""
        return ExportPiece(size=size, offset=request.offset, text=text, total=len(data))

    def _ask_witnesses(self, size: int) -> None:
        """Give them a moment to cosign; one that keeps silent must not keep a withdrawal waiting behind this."""
        if self._asking is None or not self._asking.is_alive():
            self._asking = Thread(target=self.witnesses.bring_up_to, args=(size,), name="export", daemon=True)
            self._asking.start()
        self._asking.join(WITNESS_WAIT_S)


def _piece(data: bytes) -> str:
    """As much of it as ends between two characters, and fits into an answer."""
    text = data.decode(errors="ignore")
    while len(json.dumps(text)) > PIECE_BYTES * _MOST_ESCAPED:
        text = text[: len(text) // 2]
    return text


def _leaf_view(index: int, data: str) -> LeafView:
    content = json.loads(data)
    if len(data) > MAX_ANSWER_BYTES:  # no leaf of ours is; the export has it whole
        content = {"kind": content["kind"], "at_s": content["at_s"], "bytes": len(data)}
    return LeafView(index=index, kind=content.pop("kind"), at_s=content.pop("at_s"), content=content)


def _no_such_piece() -> OperatorError:
    return OperatorError(
        "audit.no_such_piece",
        "The audit log has no such part to export.",
        next_step="Begin the export anew.",
    )
