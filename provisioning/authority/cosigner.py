"""The second organisation's cosigner: no timestamp or snapshot counts without its signature.

It believes nothing that the registrar's host says. It keeps its own copy of the repository's metadata, verifies that
what it is shown may follow it, remembers that on its disk, and only then signs. Whoever breaks into the registrar's
host can therefore neither take a revocation back, nor show one hospital another state than the next, nor invent a
hospital or a box; they can hold time still for no longer than a timestamp counts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cbor2
from securesystemslib.signer import Signature, Signer
from tuf.api.metadata import Metadata, Root, Snapshot, Timestamp

from agent.core.cbor import decode_plain
from agent.core.clock import Clock
from agent.core.errors import OperatorError, PeerProtocolError
from agent.core.files import store_atomically
from agent.trust.tuf_faults import translated
from provisioning.authority.repository import Proposal, RepositoryState, storing
from provisioning.authority.successor import check_successor

MAX_STATE_BYTES: Final = 256 << 20
STATE_FILE: Final = "cosigned.cbor"
_FORMAT: Final = "secur-e-health/cosigned/1"


@dataclass(frozen=True, slots=True)
class Cosignature:
    """What the cosigner answers.

    Args:
        timestamp: Over the proposed timestamp.
        snapshot: Over the proposed snapshot; None where the one before stays.
    """

    timestamp: Signature
    snapshot: Signature | None


class Cosigner:
    """Signs what may follow what it signed before; thread-safe.

    Args:
        directory: Its memory; written by this instance alone.
        signer: The second organisation's online key.
        clock: Its own, not the registrar's.
    """

    def __init__(self, directory: Path, signer: Signer, clock: Clock) -> None:
        self._path = directory / STATE_FILE
        self._signer = signer
        self._clock = clock
        self._lock = threading.Lock()
        self._state = load_state(self._path)

    def cosign(self, proposal: Proposal) -> Cosignature:
        """Sign a proposal; the same one again gets the same answer.

        Args:
            proposal: Signed by the registrar's own online key.

        Raises:
            PeerProtocolError: It may not follow what was signed before, or the registrar's key has not signed it.
            HardwareError: What is signed cannot be remembered here; then nothing is signed.
        """
        with self._lock, translated():
            before = self._state
            if not self._is_signed_already(proposal):
                # 1. Who asks must hold another online key: nobody else gets anything signed here.
                self._check_asker(proposal.applied(before), proposal)
                # 2. It must follow what was signed before, by this clock.
                after = check_successor(before, proposal, now=self._clock.now())
                # 3. On the disk before the signature exists: after a power cut, nothing else is signed in its place.
                with storing():
                    store_atomically(self._path, encode_state(after), mode=0o600)
                self._state = after
            return Cosignature(
                timestamp=self._signature_over(proposal.timestamp),
                snapshot=self._signature_over(proposal.snapshot) if proposal.snapshot else None,
            )

    def _is_signed_already(self, proposal: Proposal) -> bool:
        state = self._state
        return _signed(proposal.timestamp) == _signed(state.timestamp) and (
            not proposal.snapshot or _signed(proposal.snapshot) == _signed(state.snapshot)
        )

    def _check_asker(self, after: RepositoryState, proposal: Proposal) -> None:
        root = Metadata[Root].from_bytes(after.roots[-1]).signed
        ours = self._signer.public_key.keyid
        parts = [(Timestamp.type, proposal.timestamp)]
        if proposal.snapshot:
            parts.append((Snapshot.type, proposal.snapshot))
        for role, data in parts:
            metadata = Metadata[Timestamp].from_bytes(data)
            result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
            if ours not in root.roles[role].keyids:
                raise _may_not_ask(f"this cosigner's key does not stand in the root for {role}")
            if not set(result.signed) - {ours}:
                raise _may_not_ask("no other organisation has signed it")

    def _signature_over(self, data: bytes) -> Signature:
        return self._signer.sign(_signed(data))


def encode_state(state: RepositoryState) -> bytes:
    """CBOR; the inverse of `load_state`."""
    fields = {
        "format": _FORMAT,
        "roots": list(state.roots),
        "roles": dict(state.roles),
        "snapshot": state.snapshot,
        "timestamp": state.timestamp,
    }
    return cbor2.dumps(fields, canonical=True)


def load_state(path: Path) -> RepositoryState:
    """Read what was signed last.

    Raises:
        OperatorError: It is missing or damaged (`cosigner.bad_state`).
    """
    try:
        with path.open("rb") as stream:
            fields = decode_plain(stream.read(MAX_STATE_BYTES), max_depth=4, text_keys=True)
    except (OSError, ValueError) as error:
        raise _bad_state(path) from error
    match fields:
        case {
            "format": "secur-e-health/cosigned/1",
            "roots": list(roots),
            "roles": dict(roles),
            "snapshot": bytes(snapshot),
            "timestamp": bytes(timestamp),
        } if roots:
            return RepositoryState(tuple(roots), roles, snapshot, timestamp)
        case _:
            raise _bad_state(path)


def _signed(data: bytes) -> bytes:
    return Metadata[Timestamp].from_bytes(data).signed_bytes


def _may_not_ask(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "cosigner.may_not_ask",
        f"The cosigner signs nothing here: {what}.",
        next_step="See that the registrar's online key and the cosigner's are those that the root names.",
    )


def _bad_state(path: Path) -> OperatorError:
    return OperatorError(
        "cosigner.bad_state",
        f"What this cosigner signed so far cannot be read from {path}.",
        next_step="Restore it from a backup that is newer than anything it signed since, or have its key replaced by a "
        "root rotation: a cosigner that forgot could sign the past again.",
    )
