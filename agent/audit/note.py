"""Signed notes, checkpoints and cosignatures: the texts in which a log says its size and root, and others witness it.

Source: C2SP signed-note, tlog-checkpoint and tlog-cosignature (https://c2sp.org), the Ed25519 types.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.core.errors import PeerProtocolError

MAX_NOTE_BYTES: Final = 1 << 16
MAX_SIGNATURES: Final = 32
MAX_TREE_SIZE: Final = 1 << 48
SIGNATURE: Final = 0x01
"""Type of a log's own signature."""
COSIGNATURE: Final = 0x04
"""Type of a witness's signature with its time."""
_DASH: Final = "\N{EM DASH} "
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})", re.ASCII)
_NAME: Final = re.compile(r"[^\s+\x00-\x1f]{1,255}")
_ROOT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key as notes name it.

    Args:
        name: Of the log or witness; no spaces, no plus.
        kind: `SIGNATURE` or `COSIGNATURE`.
        public_key: Ed25519: (32,).
    """

    name: str
    kind: int
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """By which a signature's line names it: (4,)."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public_key).digest()[:4]

    @property
    def vkey(self) -> str:
        """In one line, as people pass it on (signed-note, verifier keys)."""
        material = base64.b64encode(bytes([self.kind]) + self.public_key).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"

    def verify(self, signature: bytes, message: bytes) -> None:
        """Verify an Ed25519 signature (RFC 8032).

        Raises:
            InvalidSignature: It does not hold.
        """
        Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, message)


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature's line.

    Args:
        name: Whose.
        key_id: (4,).
        signature: Of the key's type.
    """

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        """As it stands below a note, with its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log says of itself.

    Args:
        origin: The log's name.
        size: How many leaves.
        root: Hash of the tree: (32,).
    """

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint with its signatures, none of which is verified yet.

    Args:
        checkpoint: What was said.
        signatures: By whom.
    """

    checkpoint: Checkpoint
    signatures: tuple[NoteSignature, ...]

    @property
    def note(self) -> str:
        """The whole note."""
        return self.checkpoint.text + "\n" + "".join(signature.line for signature in self.signatures)

    def with_signatures(self, *more: NoteSignature) -> SignedCheckpoint:
        """The same with further signatures; those it has stand once."""
        return SignedCheckpoint(self.checkpoint, tuple(dict.fromkeys((*self.signatures, *more))))


@dataclass(frozen=True, slots=True)
class CosignedCheckpoint:
    """A checkpoint that a witness has cosigned, verified.

    Args:
        signed: The note, the log's signature and the witness's among its signatures.
        witness: The witness's key.
        time_s: When the witness cosigned, in seconds since 1970.
    """

    signed: SignedCheckpoint
    witness: NoteKey
    time_s: int

    @property
    def size(self) -> int:
        """How many leaves are witnessed."""
        return self.signed.checkpoint.size


def note_key(name: str, key: Ed25519PrivateKey, kind: int) -> NoteKey:
    """The public half of a key under its name."""
    return NoteKey(_checked_name(name), kind, key.public_key().public_bytes_raw())


def parse_vkey(text: str) -> NoteKey:
    """Parse a key as people pass it on.

    Raises:
        PeerProtocolError: It is no Ed25519 key, or was copied wrongly (`audit.bad_note`).
    """
    match text.split("+", 2):
        case [name, key_id, material]:
            data = _unbase64(material)
        case _:
            raise _bad_note("a key does not have the form name+id+key")
    if len(data) != _ROOT_BYTES + 1 or data[0] not in {SIGNATURE, COSIGNATURE}:
        raise _bad_note("a key is no Ed25519 key of a log or witness")
    key = NoteKey(_checked_name(name), data[0], data[1:])
    if key.key_id.hex() != key_id:
        raise _bad_note("a key does not fit its own id, so it was copied wrongly")
    return key


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> SignedCheckpoint:
    """Sign as the log whose origin the checkpoint names."""
    own = note_key(checkpoint.origin, key, SIGNATURE)
    signature = NoteSignature(own.name, own.key_id, key.sign(checkpoint.text.encode()))
    return SignedCheckpoint(checkpoint, (signature,))


def cosign(checkpoint: Checkpoint, name: str, key: Ed25519PrivateKey, *, time_s: int) -> NoteSignature:
    """Sign as a witness, with the time (cosignature/v1)."""
    signature = key.sign(_cosigned_message(checkpoint, time_s))
    own = note_key(name, key, COSIGNATURE)
    return NoteSignature(own.name, own.key_id, struct.pack(">Q", time_s) + signature)


def verify_signature(signed: SignedCheckpoint, key: NoteKey) -> Checkpoint:
    """Verify that the log signed.

    Raises:
        PeerProtocolError: No signature of this key is there (`audit.foreign_key`), or one that does not hold
            (`audit.bad_signature`).
    """
    if key.kind != SIGNATURE or signed.checkpoint.origin != key.name:
        raise _foreign_key(key)
    for signature in _signatures_of(signed, key):
        _verify(key, signature.signature, signed.checkpoint.text.encode())
        return signed.checkpoint
    raise _foreign_key(key)


def verify_cosignature(signed: SignedCheckpoint, witness: NoteKey) -> CosignedCheckpoint:
    """Verify that a witness cosigned; of several times the latest counts.

    Raises:
        PeerProtocolError: The witness has not cosigned (`audit.not_cosigned`), or a signature in its name does not
            hold (`audit.bad_cosignature`).
    """
    times = [_verify_one(signed.checkpoint, signature, witness) for signature in _signatures_of(signed, witness)]
    if witness.kind != COSIGNATURE or not times:
        raise PeerProtocolError(
            "audit.not_cosigned",
            f"The witness {witness.name} has not cosigned this checkpoint of the audit log.",
            next_step="Submit it to the witness, or name the witness that cosigned it.",
        )
    return CosignedCheckpoint(signed, witness, max(times))


def parse_checkpoint(data: bytes) -> SignedCheckpoint:
    """Parse a signed checkpoint; nothing is verified yet.

    Args:
        data: At most 64 KiB.

    Raises:
        PeerProtocolError: It is none (`audit.bad_note`).
    """
    if len(data) > MAX_NOTE_BYTES:
        raise _bad_note(f"it is larger than {MAX_NOTE_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad_note("it is not UTF-8") from error
    if any(ord(letter) < 0x20 and letter != "\n" for letter in text):
        raise _bad_note("it has control characters")
    body, blank, below = text.rpartition("\n\n")
    if not blank:
        raise _bad_note("it has no signatures")
    return SignedCheckpoint(_parse_body(body), parse_signatures(below))


def parse_signatures(text: str) -> tuple[NoteSignature, ...]:
    """Parse signature lines, at least one.

    Raises:
        PeerProtocolError: They are none (`audit.bad_note`).
    """
    lines = text.split("\n")
    if lines.pop() or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise _bad_note("it does not end in signature lines")
    return tuple(_parse_signature(line) for line in lines)


def parse_decimal(text: str) -> int:
    """Parse a tree's size: ASCII digits, no leading zero.

    Raises:
        PeerProtocolError: It is none, or beyond any log (`audit.bad_note`).
    """
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_TREE_SIZE:
        raise _bad_note("its size is no number of leaves")
    return int(text)


def parse_hash(text: str) -> bytes:
    """Parse a hash in Base64: (32,).

    Raises:
        PeerProtocolError: It is none (`audit.bad_note`).
    """
    value = _unbase64(text)
    if len(value) != _ROOT_BYTES:
        raise _bad_note("a hash does not have 32 bytes")
    return value


def _parse_body(body: str) -> Checkpoint:
    # tlog-checkpoint, "Note text"; extension lines, which nobody can audit, are not taken.
    match body.split("\n"):
        case [origin, size, root]:
            return Checkpoint(_checked_name(origin), parse_decimal(size), parse_hash(root))
        case _:
            raise _bad_note("it does not have exactly three lines")


def _parse_signature(line: str) -> NoteSignature:
    if not line.startswith(_DASH):
        raise _bad_note("a signature's line does not begin with a dash")
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    data = _unbase64(encoded)
    if len(data) < 5:
        raise _bad_note("a signature is too short")
    return NoteSignature(_checked_name(name), data[:4], data[4:])


def _signatures_of(signed: SignedCheckpoint, key: NoteKey) -> list[NoteSignature]:
    return [one for one in signed.signatures if (one.name, one.key_id) == (key.name, key.key_id)]


def _verify(key: NoteKey, signature: bytes, message: bytes) -> None:
    try:
        key.verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise PeerProtocolError(
            "audit.bad_signature",
            f"A checkpoint of the audit log {key.name} was not signed by its key, or was altered.",
            next_step="It counts for nothing; get the log's export from the box itself.",
        ) from error


def _verify_one(checkpoint: Checkpoint, signature: NoteSignature, witness: NoteKey) -> int:
    if len(signature.signature) != 8 + 64:
        raise _bad_cosignature(witness)
    (time_s,) = struct.unpack(">Q", signature.signature[:8])
    try:
        witness.verify(signature.signature[8:], _cosigned_message(checkpoint, time_s))
    except (InvalidSignature, ValueError) as error:
        raise _bad_cosignature(witness) from error
    return int(time_s)


def _cosigned_message(checkpoint: Checkpoint, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{checkpoint.text}".encode()


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _bad_note("a name is empty, too long, or has spaces or a plus")
    return name


def _unbase64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_note("it is not in Base64") from error
    if base64.b64encode(data).decode() != text:
        raise _bad_note("its Base64 is not the canonical one")
    return data


def _foreign_key(key: NoteKey) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.foreign_key",
        f"A checkpoint is not one of the audit log {key.name}: another key signed it, or it names another log.",
        next_step="It counts for nothing here; see which box it came from.",
    )


def _bad_cosignature(witness: NoteKey) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.bad_cosignature",
        f"A cosignature in the name of the witness {witness.name} does not hold: it was forged or altered.",
        next_step="Count the checkpoint as not witnessed, and ask the witness what it has seen.",
    )


def _bad_note(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.bad_note",
        f"A checkpoint, or a key of a log or witness, cannot be read: {what}.",
        next_step="Get it anew from where it came.",
    )
