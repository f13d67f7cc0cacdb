"""What a record says of an image: its hash, and the root of the verity tree that each box makes anew.

Source: Linux, Documentation/admin-guide/device-mapper/verity.rst; format 1, SHA-256, blocks of 4096 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.core.errors import OperatorError
from agent.statements.release import MAX_IMAGE_BYTES

_BLOCK_BYTES: Final = 4096
_DIGESTS_A_BLOCK: Final = _BLOCK_BYTES // 32


@dataclass(frozen=True, slots=True)
class Measured:
    """An image's measurements.

    Args:
        sha256: Of the whole, hex.
        length: In bytes.
        salt: Of the verity tree, hex: the image's own hash, so that the same image gives the same record.
        root_hash: Of the verity tree, hex.
    """

    sha256: str
    length: int
    salt: str
    root_hash: str


def measure_image(path: Path) -> Measured:
    """Measure an image.

    Raises:
        OperatorError: It cannot be read, or does not consist of whole blocks (`release.bad_image`).
    """
    try:
        length = path.stat().st_size
        if length % _BLOCK_BYTES or not 0 < length <= MAX_IMAGE_BYTES:
            raise _bad_image(path, f"it has {length} bytes, which are no whole blocks of {_BLOCK_BYTES}, or too many")
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256")
        return Measured(sha256.hexdigest(), length, sha256.hexdigest(), _root_hash(_blocks(path), sha256.digest()))
    except OSError as error:
        raise _bad_image(path, error.strerror or str(error)) from error


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def _root_hash(blocks: Iterator[bytes], salt: bytes) -> str:
    digests = [hashlib.sha256(salt + block).digest() for block in blocks]
    while len(digests) > 1:
        level = [
            b"".join(digests[at : at + _DIGESTS_A_BLOCK]).ljust(_BLOCK_BYTES, b"\0")
            for at in range(0, len(digests), _DIGESTS_A_BLOCK)
        ]
        digests = [hashlib.sha256(salt + block).digest() for block in level]
    return digests[0].hex()


def _bad_image(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "release.bad_image", f"{path} cannot be released: {what}.", next_step="Name the app.raw that was built."
    )
