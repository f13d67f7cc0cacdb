"""Large files from the release repository: resumed where they broke off, bounded by what was signed.

A part that came is kept under the hash that the whole must have, so that no two files are ever mixed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.api.metadata import TargetFile

from agent.core.errors import HardwareError, PeerProtocolError
from agent.trust.fetcher import BoundedFetcher
from agent.trust.tuf_faults import translated
from agent.update.repository import MAKER

FRUITLESS_ATTEMPTS: Final = 5
"""So many attempts in a row may bring next to nothing before the file is given up until the next run."""
LEAST_SHARE: Final = 1000
"""They bring something where it is this part of the file: a server that sends crumbs would keep the updater busy."""
SPARE_BYTES: Final = 64 << 20
"""Left free on the disk, whatever is fetched: the agent's own files grow there."""
PAUSE_S: Final = 2.0
_NOT_SATISFIABLE: Final = 416

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are here."""
Wait = Callable[[float], object]


class Downloads:
    """The directory of files that are being fetched.

    Args:
        directory: Made where it is missing.
        fetcher: Fetches.
        wait: Waits so many seconds.
    """

    def __init__(self, directory: Path, fetcher: BoundedFetcher, wait: Wait) -> None:
        self._directory = directory
        self._fetcher = fetcher
        self._wait = wait

    def fetch(self, url: str, target: TargetFile, progress: Progress) -> Path:
        """Fetch a file, or the rest of it; it lies here when this returns, whole and as it was listed.

        Args:
            url: Where it is.
            target: As its role lists it.
            progress: Told how far it is.

        Raises:
            NetworkError: It does not come; what came is kept for the next time.
            PeerProtocolError: It is another file than was listed, or does not end.
            HardwareError: The disk does not take it; nothing of it is kept.
        """
        partial = self._place(target)
        with kept_on_disk(partial):
            self._forget_others(partial)
        with translated(MAKER):
            self._fetch(url, target, partial, progress)
        self._check(partial, target)
        return partial

    def room_needed(self, target: TargetFile) -> int:
        """How many more bytes of the disk a file takes."""
        return max(0, target.length - self._size(self._place(target)))

    def clear(self) -> None:
        """Remove all that was fetched."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _place(self, target: TargetFile) -> Path:
        return self._directory / f"{target.hashes['sha256']}.partial"

    def _size(self, partial: Path) -> int:
        return partial.stat().st_size if partial.exists() else 0

    def _forget_others(self, partial: Path) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in self._directory.iterdir():
            if other != partial:
                other.unlink()

    def _fetch(self, url: str, target: TargetFile, partial: Path, progress: Progress) -> None:
        best, fruitless = self._size(partial), 0
        while self._size(partial) < target.length:
            try:
                self._fetch_rest(url, target, partial, progress)
            except SlowRetrievalError:
                raise
            except DownloadError:
                fruitless += 1
                if self._size(partial) > best + target.length // LEAST_SHARE:
                    best, fruitless = self._size(partial), 0
                if fruitless >= FRUITLESS_ATTEMPTS:
                    raise
                self._wait(PAUSE_S)

    def _fetch_rest(self, url: str, target: TargetFile, partial: Path, progress: Progress) -> None:
        offset = self._size(partial)
        try:
            with (
                self._fetcher.fetch_from(url, offset) as (start, chunks),
                kept_on_disk(partial),
                partial.open("r+b" if start else "wb") as stream,
            ):
                stream.seek(start)
                _write(stream, chunks, target, progress)
                stream.flush()
                os.fsync(stream.fileno())
        except DownloadHTTPError as error:
            if error.status_code == _NOT_SATISFIABLE:
                partial.unlink(missing_ok=True)  # the server's file is shorter than what came of it before
            raise

    def _check(self, partial: Path, target: TargetFile) -> None:
        with kept_on_disk(partial), partial.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != target.hashes["sha256"]:
            partial.unlink()
            raise PeerProtocolError(
                "update.altered_file",
                f"{target.path} is not the file that was signed.",
                next_step="Nothing of it is used, and it is fetched again. If it repeats, somebody on the way alters "
                "it.",
            )


def check_room(directory: Path, needed_bytes: int) -> None:
    """Check that the disk can take so many bytes, before the first of them is fetched.

    Raises:
        HardwareError: It cannot (`update.disk_full`).
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes + SPARE_BYTES:
        raise HardwareError(
            "update.disk_full",
            f"The update needs {_mebibytes(needed_bytes + SPARE_BYTES)} MiB of the disk, and "
            f"{_mebibytes(free)} MiB are free.",
            next_step=f"Free space on the disk that holds {directory}; the release that runs stays meanwhile.",
        )


@contextmanager
def kept_on_disk(partial: Path) -> Iterator[None]:
    """Say what a disk that fails means, and give back the space of what was begun.

    Raises:
        HardwareError: It does not take something (`update.not_stored`).
    """
    try:
        yield
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HardwareError(
            "update.not_stored",
            f"The update cannot be kept on this box's disk: {error.strerror or error}.",
            next_step="Free space on the disk, or have it checked; the release that runs stays meanwhile.",
        ) from error


@contextmanager
def whole_or_none(place: Path) -> Iterator[None]:
    """Remove a file that could not be finished."""
    try:
        yield
    except BaseException:
        place.unlink(missing_ok=True)
        raise


def _write(stream: BinaryIO, chunks: Iterator[bytes], target: TargetFile, progress: Progress) -> None:
    size = stream.tell()
    for chunk in chunks:
        size += len(chunk)
        if size > target.length:
            stream.truncate(0)
            raise PeerProtocolError(
                "update.endless_file",
                f"{target.path} does not end where it should.",
                next_step="Nothing of it is used. If it repeats, tell the maker of the software.",
            )
        stream.write(chunk)
        progress(size, target.length)
    if size < target.length:
        raise DownloadError(f"{target.path} ended after {size} of {target.length} bytes")


def _mebibytes(count: int) -> int:
    return -(-count >> 20)
