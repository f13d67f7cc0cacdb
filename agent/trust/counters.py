"""Signature counters of others' FIDO2 keys, as this verifier saw them: what a cloned key cannot keep up with.

{"format": "secur-e-health/counters/1",
 "counters": {"<key id>": {"count": 41, "certificate": "<digest>", "before": "<digest>", "seen_s": 1800000000}}}

A key counts each signature, and its clone does not know. A node shows one certificate for as long as its session
lasts, so the certificate with the highest count may come again and again; any other must show a higher count.

Source: WebAuthn Level 3, 6.1.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.core.validation import explain_invalid
from agent.statements.chain import Session
from agent.statements.kinds import Hex32, Seconds
from agent.statements.roots import KeyKind

COUNTERS_FILE_NAME: Final = "counters.json"
MAX_KEYS: Final = 4096
"""How many keys are remembered; more than any roster names. Beyond it, the one that was raised longest ago goes."""
MAX_FILE_BYTES: Final = 1 << 21
OVERLAP_S: Final = 3600
"""How long, in seconds, the certificate before the newest still counts: a coordinator shows what it was given for half
an hour, while another study's already shows the next."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Seen(_Stored):
    """What one key showed.

    Args:
        count: The highest counter.
        certificate: Digest of the certificate that showed it.
        before: Digest of the one that showed the highest counter before; None where there was none.
        seen_s: When `certificate` was first seen, in seconds since 1970.
    """

    count: Annotated[int, Field(gt=0, lt=1 << 32)]
    certificate: Hex32
    before: Hex32 | None = None
    seen_s: Seconds

    def admits(self, session: Session, *, now_s: int) -> bool:
        """Whether a certificate that shows no higher count was accepted here before, and may come again."""
        if session.certificate == self.certificate:
            return session.signature_count == self.count
        return session.certificate == self.before and now_s < self.seen_s + OVERLAP_S


class _File(_Stored):
    format: Literal["secur-e-health/counters/1"] = "secur-e-health/counters/1"
    counters: Annotated[dict[Hex32, _Seen], Field(max_length=MAX_KEYS)] = {}


class CounterStore:
    """Remembers counters across restarts, in one file that only this verifier writes. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: The file; made, with its directory, when a counter is first seen.

        Raises:
            OperatorError: It cannot be read (`trust.bad_counters`).
        """
        self._path = path
        self._seen: Mapping[str, _Seen] = _load(path)
        self._lock = Lock()

    def check(self, session: Session, *, now_s: int) -> None:
        """Check what a verified certificate shows, and remember it before it counts; only FIDO2 keys count.

        Args:
            session: As verified.
            now_s: Seconds since 1970.

        Raises:
            PeerProtocolError: The counter did not rise (`trust.cloned_key`).
            HardwareError: The disk does not take it (`trust.counters_not_stored`).
        """
        root = session.record.root
        if root.kind is not KeyKind.FIDO2:
            return
        with self._lock:
            seen = self._seen.get(root.key_id)
            if session.signature_count == 0 and seen is None:
                return  # it keeps no counter
            if seen is None or session.signature_count > seen.count:
                self._remember(session, now_s=now_s)
            elif not seen.admits(session, now_s=now_s):
                raise _cloned(session, seen.count)

    def _remember(self, session: Session, *, now_s: int) -> None:
        key_id, counters = session.record.root.key_id, dict(self._seen)
        before = counters.pop(key_id, None)
        if len(counters) == MAX_KEYS:
            del counters[next(iter(counters))]
        counters[key_id] = _Seen(
            count=session.signature_count,
            certificate=session.certificate,
            before=None if before is None else before.certificate,
            seen_s=now_s,
        )
        _store(self._path, _File(counters=counters).model_dump_json(exclude_none=True).encode())
        self._seen = counters


def _load(path: Path) -> dict[str, _Seen]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _bad_file(path, error.strerror or "it cannot be read") from error
    if len(data) > MAX_FILE_BYTES:
        raise _bad_file(path, f"it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return _File.model_validate_json(data).counters
    except ValidationError as error:
        raise _bad_file(path, explain_invalid(error, whole="file")) from error


def _store(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store_atomically(path, data, mode=0o600)
    except OSError as error:
        raise HardwareError(
            "trust.counters_not_stored",
            f"The counters of others' security keys cannot be written to {path}: {error.strerror}.",
            next_step="Free space on the disk, or have it checked; until then no certificate of a new session counts.",
        ) from error


def _cloned(session: Session, last_count: int) -> PeerProtocolError:
    return PeerProtocolError(
        "trust.cloned_key",
        "A security key's signature counter did not rise since its last certificate, so it may have been cloned.",
        next_step="Nothing was done with it. Ask the hospital to revoke that key and to enrol its box with another.",
        key_id=session.record.root.key_id,
        count=session.signature_count,
        last_count=last_count,
    )


def _bad_file(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "trust.bad_counters",
        f"The record of others' signature counters, {path}, cannot be used: {what}.",
        next_step="Restore it from a backup. If you remove it, what was seen of others' keys is forgotten.",
    )
