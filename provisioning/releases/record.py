"""What releases' signers sign, one after the other: DSSE envelopes that gather signatures.

A release's record, and the list of who may sign such records from now on (`agent.update.keys`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import FormatError, VerificationError
from securesystemslib.signer import Key, Signature, Signer

from agent.core.errors import OperatorError
from agent.statements.release import PAYLOAD_TYPE, Release, parse_release
from agent.statements.release_keys import KEYS_PAYLOAD_TYPE, ReleaseKeys, parse_key_list

MAX_RECORD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class _Signed:
    """A statement, signed by some or all that must.

    Args:
        envelope: As it is published.
    """

    envelope: Envelope

    def signed_by(self, signers: Iterable[Signer]) -> Self:
        """The same with more signatures."""
        signatures = dict(self.envelope.signatures)
        for signer in signers:
            # Not `Envelope.sign`: it changes the envelope that was given.
            signature = signer.sign(self.envelope.pae())
            signatures[signature.keyid] = signature
        return self._with(signatures)

    def without_others(self, keyids: Iterable[str]) -> Self:
        """The same with the signatures of these keys alone."""
        kept = frozenset(keyids)
        return self._with({keyid: one for keyid, one in self.envelope.signatures.items() if keyid in kept})

    def signers(self, keys: Mapping[str, Key]) -> frozenset[str]:
        """Ids of those of the keys that signed it."""
        return frozenset(keyid for keyid, key in keys.items() if self._is_signed_by(key))

    def encode(self) -> bytes:
        """JSON; the inverse of `parse_record`, or of `parse_key_list_record`."""
        return json.dumps(self.envelope.to_dict()).encode() + b"\n"

    def _is_signed_by(self, key: Key) -> bool:
        try:
            self.envelope.verify([key], 1)
        except VerificationError:
            return False
        return True

    def _with(self, signatures: dict[str, Signature]) -> Self:
        return type(self)(Envelope(self.envelope.payload, self.envelope.payload_type, signatures))


@dataclass(frozen=True, slots=True)
class ReleaseRecord(_Signed):
    """A release."""

    @classmethod
    def of(cls, release: Release) -> ReleaseRecord:
        """The record of a release, unsigned."""
        return cls(Envelope(release.payload(), PAYLOAD_TYPE, {}))

    @property
    def release(self) -> Release:
        """What is signed."""
        return parse_release(self.envelope.payload)


@dataclass(frozen=True, slots=True)
class KeyList(_Signed):
    """Who may sign releases from now on; those who could before sign it."""

    @classmethod
    def of(cls, keys: ReleaseKeys) -> KeyList:
        """A list, unsigned."""
        return cls(Envelope(keys.payload(), KEYS_PAYLOAD_TYPE, {}))

    @property
    def keys(self) -> ReleaseKeys:
        """What is signed."""
        return parse_key_list(self.envelope.payload)


def parse_record(data: bytes) -> ReleaseRecord:
    """Parse a record; no signature is verified.

    Raises:
        OperatorError: It is none (`release.bad_record`).
        PeerProtocolError: What it signs is no release (`statements.bad_release`).
    """
    record = ReleaseRecord(_parse_envelope(data, PAYLOAD_TYPE))
    parse_release(record.envelope.payload)
    return record


def parse_key_list_record(data: bytes) -> KeyList:
    """Parse a list that waits for signatures; none is verified.

    Raises:
        OperatorError: It is none (`release.bad_record`).
        PeerProtocolError: What it signs is no list (`update.bad_key_list`).
    """
    record = KeyList(_parse_envelope(data, KEYS_PAYLOAD_TYPE))
    parse_key_list(record.envelope.payload)
    return record


def _parse_envelope(data: bytes, payload_type: str) -> Envelope:
    if len(data) > MAX_RECORD_BYTES:
        raise _bad_record()
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FormatError) as error:
        raise _bad_record() from error
    if envelope.payload_type != payload_type:
        raise _bad_record()
    return envelope


def _bad_record() -> OperatorError:
    return OperatorError(
        "release.bad_record",
        "The file is no record of a release.",
        next_step="Name the release.json that `seh-provision release build` made.",
    )
