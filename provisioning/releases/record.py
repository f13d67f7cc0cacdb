"""A release's record while its signers sign it, one after the other: a DSSE envelope that gathers signatures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import Key, Signer

from agent.core.errors import OperatorError
from agent.statements.release import PAYLOAD_TYPE, Release, parse_release

MAX_RECORD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release, signed by some or all that must.

    Args:
        envelope: The record as it is published.
    """

    envelope: Envelope

    @classmethod
    def of(cls, release: Release) -> ReleaseRecord:
        """The record of a release, unsigned."""
        return cls(Envelope(release.payload(), PAYLOAD_TYPE, {}))

    @property
    def release(self) -> Release:
        """What is signed."""
        return parse_release(self.envelope.payload)

    def signed_by(self, signers: Iterable[Signer]) -> ReleaseRecord:
        """The same with more signatures."""
        signatures = dict(self.envelope.signatures)
        for signer in signers:
            # Not `Envelope.sign`: it changes the envelope that was given.
            signature = signer.sign(self.envelope.pae())
            signatures[signature.keyid] = signature
        return ReleaseRecord(Envelope(self.envelope.payload, PAYLOAD_TYPE, signatures))

    def signers(self, keys: Mapping[str, Key]) -> frozenset[str]:
        """Ids of those of the keys that signed it."""
        return frozenset(keyid for keyid, key in keys.items() if self._is_signed_by(key))

    def encode(self) -> bytes:
        """JSON; the inverse of `parse_record`."""
        return json.dumps(self.envelope.to_dict()).encode() + b"\n"

    def _is_signed_by(self, key: Key) -> bool:
        try:
            self.envelope.verify([key], 1)
        except VerificationError:
            return False
        return True


def parse_record(data: bytes) -> ReleaseRecord:
    """Parse a record; no signature is verified.

    Raises:
        OperatorError: It is none (`release.bad_record`).
        PeerProtocolError: What it signs is no release (`statements.bad_release`).
    """
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record()
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise _bad_record() from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise _bad_record()
    record = ReleaseRecord(envelope)
    parse_release(envelope.payload)
    return record


def _bad_record() -> OperatorError:
    return OperatorError(
        "release.bad_record",
        "The file is no record of a release.",
        next_step="Name the release.json that `seh-provision release build` made.",
    )
