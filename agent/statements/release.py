"""What the signers of a release vouch for: version, security epoch, and the image down to its verity root.

The record is a DSSE envelope of the form that `agent.statements.envelope` names, kind `release`, with one signature a
signer. This module is standard library only, as it also runs in the slot tool, on Debian's own Python.

Source: DSSE v1.0.2 (protocol.md); RFC 8785 for the payload's canonical form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from agent.core.errors import PeerProtocolError

PAYLOAD_TYPE: Final = "application/vnd.secur-e-health.release.v1+json"
VERSION_PATTERN: Final = r"(?:0|[1-9][0-9]{0,5})\.(?:0|[1-9][0-9]{0,5})\.(?:0|[1-9][0-9]{0,5})"
MAX_EPOCH: Final = 1000
"""Each step costs a write to the TPM's counter, and those are numbered."""
MAX_IMAGE_BYTES: Final = 8 << 30
MAX_PAYLOAD_BYTES: Final = 4096
_BLOCK_BYTES: Final = 4096
_HEX32: Final = re.compile(r"[0-9a-f]{64}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """X.Y.Z, ordered (semver.org 2.0.0, without pre-releases)."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse X.Y.Z.

        Raises:
            PeerProtocolError: It is something else (`statements.bad_release`).
        """
        if re.fullmatch(VERSION_PATTERN, text) is None:
            raise _bad("it names no version")
        return cls(*map(int, text.split(".")))


@dataclass(frozen=True, slots=True)
class Release:
    """One release.

    Args:
        version: Which it is.
        epoch: Security epoch: rises only when older releases must never run again; 0 to `MAX_EPOCH`.
        image_sha256: Of app.raw, hex.
        image_bytes: Size of app.raw, a multiple of 4096.
        root_hash: Of the verity tree (SHA-256, blocks of 4096 bytes, hash format 1), hex.
        salt: With which the tree is made, 32 bytes, hex.
        commit: Which source it was built from.
        built_s: When, in whole seconds since 1970-01-01T00:00:00Z.
    """

    version: Version
    epoch: int
    image_sha256: str
    image_bytes: int
    root_hash: str
    salt: str
    commit: str
    built_s: int

    def payload(self) -> bytes:
        """The canonical bytes that are signed; the inverse of `parse_release`."""
        return _canonical(
            {
                "version": str(self.version),
                "epoch": self.epoch,
                "image": {"sha256": self.image_sha256, "bytes": self.image_bytes},
                "verity": {"root_hash": self.root_hash, "salt": self.salt},
                "commit": self.commit,
                "built_s": self.built_s,
            }
        )


def parse_release(payload: bytes) -> Release:
    """Parse the payload of a record. Nothing is verified.

    Args:
        payload: At most `MAX_PAYLOAD_BYTES`.

    Raises:
        PeerProtocolError: It is no release in canonical form (`statements.bad_release`).
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _bad("it is larger than any may be")
    try:
        fields = json.loads(payload)
        image, verity = fields["image"], fields["verity"]
        release = Release(
            Version.parse(_text(fields["version"])),
            _number(fields["epoch"], MAX_EPOCH),
            _matching(image["sha256"], _HEX32),
            _number(image["bytes"], MAX_IMAGE_BYTES),
            _matching(verity["root_hash"], _HEX32),
            _matching(verity["salt"], _HEX32),
            _matching(fields["commit"], _COMMIT),
            _number(fields["built_s"], 1 << 53),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _bad("a field is missing or of another form") from error
    # Whatever else stood in it, or stood twice, would not come out again.
    if release.payload() != payload:
        raise _bad("it is not in canonical form")
    if release.image_bytes % _BLOCK_BYTES or not release.image_bytes:
        raise _bad("its image does not consist of whole blocks")
    return release


def pre_authentication_encoding(payload: bytes) -> bytes:
    """DSSE's PAE of a release: what each signature covers."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _canonical(value: Mapping[str, Any]) -> bytes:
    # RFC 8785 over ASCII texts and whole numbers below 2**53, which is all that a release has.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise TypeError("not a whole number in its range")
    return value


def _matching(value: object, form: re.Pattern[str]) -> str:
    text = _text(value)
    if form.fullmatch(text) is None:
        raise ValueError("not of its form")
    return text


def _bad(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "statements.bad_release",
        f"A release's record cannot be used: {what}.",
        next_step="It is not installed. Fetch the release again; if it repeats, tell its publisher.",
    )
