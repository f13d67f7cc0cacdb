"""A release's image from the one that runs and a delta: `zstd --patch-from`, made by `provisioning.releases.delta`.

What comes out is bounded and hashed while it comes; only the hash of the whole image says whether it is right.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from agent.core.errors import PeerProtocolError

ZSTD: Final = "/usr/bin/zstd"
WINDOW_LOG: Final = 31
_COMMAND: Final = (ZSTD, "--decompress", "--stdout", "--quiet", f"--long={WINDOW_LOG}")
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """The image that a delta was made from.

    Args:
        path: A slot's file; it may be longer than the image, as slots are preallocated.
        length: Of the image, in bytes.
    """

    path: Path
    length: int


def apply_delta(base: Base, delta: Path, image: Path, *, sha256: str, length: int) -> None:
    """Make an image.

    Args:
        base: What the delta was made from.
        delta: As fetched.
        image: Where the new one goes.
        sha256: Of the new one, hex, as it was signed.
        length: Of the new one, in bytes, likewise.

    Raises:
        PeerProtocolError: Another image comes out, or none (`update.bad_delta`).
        OSError: The disk does not take it.
    """
    with image.open("wb") as stream:
        found = _written(_patched(base, delta), stream, length)
        stream.flush()
        os.fsync(stream.fileno())
    if found != sha256:
        raise _bad_delta("another image comes out")


def _patched(base: Base, delta: Path) -> Iterator[bytes]:
    with (
        _exactly(base) as descriptor,
        subprocess.Popen(
            (*_COMMAND, f"--patch-from=/proc/self/fd/{descriptor}", str(delta)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            pass_fds=(descriptor,),
        ) as process,
    ):
        assert process.stdout is not None  # noqa: S101 - it was asked for
        try:
            while chunk := process.stdout.read(_CHUNK_BYTES):
                yield chunk
            if process.wait() != 0:
                raise _bad_delta("it does not fit the release that runs here")
        finally:
            process.kill()


@contextmanager
def _exactly(base: Base) -> Iterator[int]:
    """A file of the image alone, in memory: zstd counts from its end."""
    descriptor = os.memfd_create("base", os.MFD_CLOEXEC)
    try:
        with base.path.open("rb") as stream:
            left = base.length
            while left and (count := os.sendfile(descriptor, stream.fileno(), None, left)):
                left -= count
        yield descriptor
    finally:
        os.close(descriptor)


def _written(chunks: Iterator[bytes], stream: BinaryIO, length: int) -> str:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        if size > length:
            raise _bad_delta("more comes out than was signed")
        digest.update(chunk)
        stream.write(chunk)
    return digest.hexdigest()


def _bad_delta(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.bad_delta",
        f"The update's delta cannot be used: {what}.",
        next_step="The whole image is used in its place, where there is one.",
    )
