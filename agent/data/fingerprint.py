"""What a data set is right now, as one digest: what a steward approved is void when it changes.

The bytes are hashed, never parsed; that is the worker's alone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final

import rfc8785

from agent.data.catalog import Dataset, no_source, open_source
from agent.data.quality import DeclinedError

MAX_REMEMBERED: Final = 256
SETTLED_NS: Final = 2_000_000_000
"""A file whose times are younger than this may still change within one tick of them, so its digest is not kept."""

_Identity = tuple[str, int, int, int, int, int]
"""path, device, inode, size, mtime_ns, ctime_ns: ctime is set by the kernel alone."""


class FileDigests:
    """SHA-256 of files, kept for as long as the kernel says that nobody touched them. Thread-safe.

    Args:
        now_ns: Wall-clock time in nanoseconds since 1970, as the file system writes it.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._kept: dict[_Identity, str] = {}
        self._lock = Lock()

    def dataset_digest(self, dataset: Dataset) -> str:
        """Digest (SHA-256, hex) of a data set as it lies there now; see `dataset_digest`.

        Raises:
            DeclinedError: Its file is not there, cannot be read, is too large, or changes while it is read.
        """
        descriptor = open_source(dataset)
        try:
            return self.opened_digest(dataset, descriptor)
        finally:
            os.close(descriptor)

    def opened_digest(self, dataset: Dataset, descriptor: int) -> str:
        """The same over a file that is open already, whatever lies at its path meanwhile.

        Args:
            dataset: The catalog's entry.
            descriptor: From `agent.data.catalog.open_source`; where it stands does not move.

        Raises:
            DeclinedError: It cannot be read, or changes while it is read (`data.changing`, `data.no_source`).
        """
        try:
            return dataset_digest(dataset, self._file_digest(dataset, descriptor))
        except OSError as error:
            raise no_source(dataset, error.strerror or "unknown reason") from error

    def _file_digest(self, dataset: Dataset, descriptor: int) -> str:
        identity = _identity(dataset.source, descriptor)
        with self._lock:
            kept = self._kept.get(identity)
        if kept is not None:
            return kept
        started_ns = self._now_ns()
        digest = _hash(descriptor, identity[3])
        if _identity(dataset.source, descriptor) != identity:
            raise DeclinedError(
                "data.changing",
                f"The file of data set {dataset.id} is being written while it is read.",
                next_step="Replace a data set's file whole, under its name; never write into it.",
            )
        if max(identity[-2:]) + SETTLED_NS < started_ns:
            self._keep(identity, digest)
        return digest

    def _keep(self, identity: _Identity, digest: str) -> None:
        with self._lock:
            while len(self._kept) >= MAX_REMEMBERED:
                del self._kept[next(iter(self._kept))]
            self._kept[identity] = digest


def dataset_digest(dataset: Dataset, file_digest: str) -> str:
    """Digest of a data set: SHA-256 (hex) over canonical JSON (RFC 8785) of its catalog entry and its file's digest.

    Args:
        dataset: The catalog's entry, as parsed.
        file_digest: SHA-256 of the file, hex.
    """
    content: dict[str, Any] = {
        "format": "secur-e-health/dataset/1",
        "dataset": dataset.model_dump(mode="json", by_alias=True),
        "sha256": file_digest,
    }
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()


def _hash(descriptor: int, size: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while offset < size and (piece := os.pread(descriptor, min(1 << 20, size - offset), offset)):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def _identity(path: Path, descriptor: int) -> _Identity:
    found = os.fstat(descriptor)
    return str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
