"""Two places on the disk for a payload: written whole or not counted, checked before use, preallocated.

{a,b}/app.raw       the image; more space is taken than it needs, so that the next release needs no free disk
{a,b}/app.verity    its dm-verity tree, made here
{a,b}/app.roothash  the tree's root, hex, for systemd
{a,b}/meta.json     the release's signed record: written last, so where it is, the rest is
current             a link to the one that runs
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError, PeerProtocolError
from agent.core.files import store_atomically, sync_directory
from agent.statements.release import Release
from agent.update.programs import ProgramError, Run, run_program
from agent.update.release import MAX_RECORD_BYTES
from agent.update.state import SlotName

IMAGE_FILE: Final = "app.raw"
VERITY_FILE: Final = "app.verity"
ROOT_HASH_FILE: Final = "app.roothash"
RECORD_FILE: Final = "meta.json"
CURRENT_LINK: Final = "current"
_CHUNK_BYTES: Final = 1 << 20
_VERITY_UUID: Final = "5ec0eea1-7400-4000-8000-000000000001"
"""Fixed, so that the same image gives the same file everywhere; it names nothing."""


class Slots:
    """The two slots.

    Args:
        directory: Holds them; only root writes there.
        run: Runs programs.
    """

    def __init__(self, directory: Path, run: Run = run_program) -> None:
        self.directory = directory
        self._run = run

    def path(self, name: SlotName, file: str) -> Path:
        """A slot's file."""
        return self.directory / name / file

    def reserve(self, image_bytes: int) -> None:
        """Take the space for an image of that size in both slots.

        Raises:
            OSError: The disk is full.
        """
        for name in SlotName:
            (self.directory / name).mkdir(exist_ok=True)
            self._reserve(self.path(name, IMAGE_FILE), image_bytes)
            self._reserve(self.path(name, VERITY_FILE), _tree_bytes(image_bytes))
            sync_directory(self.directory / name)
        sync_directory(self.directory)

    def record(self, name: SlotName) -> bytes | None:
        """The signed record of what a slot holds; None where it holds nothing whole."""
        with suppress(FileNotFoundError):
            return read_regular(self.path(name, RECORD_FILE), MAX_RECORD_BYTES)
        return None

    def write(self, name: SlotName, image: int, release: Release, record: bytes) -> None:
        """Write a release into a slot that does not run.

        Args:
            name: The slot; what it held is lost from the first step on.
            image: A descriptor to read the image from; whatever lies there.
            release: What it must be.
            record: The release's signed record.

        Raises:
            PeerProtocolError: The image is another (`update.wrong_image`).
            HardwareError: The tree cannot be made (`update.program_failed`).
            OSError: The disk is full, or does not take it.
        """
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        for file in (RECORD_FILE, ROOT_HASH_FILE):
            self.path(name, file).unlink(missing_ok=True)
        sync_directory(directory)
        self._reserve(self.path(name, IMAGE_FILE), release.image_bytes, cut_to=release.image_bytes)
        self._reserve(self.path(name, VERITY_FILE), _tree_bytes(release.image_bytes))
        self._copy(name, image, release)
        self._make_tree(name, release)
        store_atomically(self.path(name, ROOT_HASH_FILE), release.root_hash.encode() + b"\n")
        store_atomically(self.path(name, RECORD_FILE), record)

    def check(self, name: SlotName, release: Release) -> None:
        """Check that a slot's files are what systemd will take them for; what they contain is checked as it is read.

        Args:
            name: The slot.
            release: What its record, already verified, says.

        Raises:
            HardwareError: They are not (`update.damaged_slot`).
        """
        try:
            root_hash = read_regular(self.path(name, ROOT_HASH_FILE), 128)
            sizes = [self.path(name, file).lstat() for file in (IMAGE_FILE, VERITY_FILE)]
        except OSError as error:
            raise _damaged(name, "a file is missing") from error
        if root_hash.strip() != release.root_hash.encode():
            raise _damaged(name, "its root hash is not the one that was signed")
        if not all(stat.S_ISREG(one.st_mode) for one in sizes) or sizes[0].st_size != release.image_bytes:
            raise _damaged(name, "its image has another size than was signed")

    def verify(self, name: SlotName, release: Release) -> None:
        """Read a whole slot, and hold it against the signed root hash.

        Raises:
            HardwareError: A byte is wrong (`update.damaged_slot`).
        """
        self.check(name, release)
        image, tree = self.path(name, IMAGE_FILE), self.path(name, VERITY_FILE)
        try:
            self._run(("veritysetup", "verify", str(image), str(tree), release.root_hash))
        except ProgramError as error:
            raise _damaged(name, "its image is not what was signed") from error

    @property
    def current(self) -> str | None:
        """Where `current` points; None where it is no link."""
        try:
            return str((self.directory / CURRENT_LINK).readlink())
        except OSError:
            return None

    def point(self, name: SlotName) -> None:
        """Have `current` point to a slot.

        Raises:
            OSError: The disk does not take it.
        """
        if self.current == name:
            return
        fresh = self.directory / (CURRENT_LINK + ".partial")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.replace(self.directory / CURRENT_LINK)
        sync_directory(self.directory)

    def _reserve(self, path: Path, size: int, *, cut_to: int | None = None) -> None:
        with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
            held = 512 * os.fstat(descriptor).st_blocks
            if cut_to is not None and os.fstat(descriptor).st_size > cut_to:
                os.ftruncate(descriptor, cut_to)  # which gives back what was taken beyond
            self._run(("fallocate", "--keep-size", "--length", str(max(size, held)), str(path)))
            os.fsync(descriptor)

    def _copy(self, name: SlotName, image: int, release: Release) -> None:
        # What is hashed is what was written: whoever owns the source may change it at any time.
        digest, left = hashlib.sha256(), release.image_bytes
        with _opened(self.path(name, IMAGE_FILE), os.O_WRONLY) as descriptor:
            while left:
                chunk = os.read(image, min(left, _CHUNK_BYTES))
                if not chunk:
                    break
                digest.update(chunk)
                _write_all(descriptor, chunk)
                left -= len(chunk)
            os.fsync(descriptor)
        if left or digest.hexdigest() != release.image_sha256:
            raise _wrong_image("its SHA-256 is not the one that was signed")

    def _make_tree(self, name: SlotName, release: Release) -> None:
        image, tree = self.path(name, IMAGE_FILE), self.path(name, VERITY_FILE)
        said = self._run(
            (
                *("veritysetup", "format", str(image), str(tree), "--hash", "sha256", "--format", "1"),
                *("--data-block-size", "4096", "--hash-block-size", "4096"),
                *("--data-blocks", str(release.image_bytes // 4096), "--salt", release.salt, "--uuid", _VERITY_UUID),
            )
        )
        roots = [line.split()[-1] for line in said.decode().splitlines() if line.startswith("Root hash:")]
        if roots != [release.root_hash]:
            raise _wrong_image("its root hash is not the one that was signed")
        with _opened(tree, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)


def _tree_bytes(image_bytes: int) -> int:
    # 32 bytes for each block of 4096, the same of those, and so on: 1/127; and a few blocks for what is not full.
    return image_bytes // 127 + (64 << 10)


def read_regular(path: Path, most: int) -> bytes:
    """Read a file that somebody else may have put there.

    Args:
        path: Its last part is not followed if it is a link.
        most: How many bytes it may have.

    Raises:
        OperatorError: It is no regular file, or larger (`update.bad_file`).
        OSError: It cannot be read.
    """
    with opened_regular(path) as descriptor, open(descriptor, "rb", closefd=False) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise _bad_file(path, "is larger than it may be")
    return data


@contextmanager
def opened_regular(path: Path) -> Iterator[int]:
    """A descriptor to read a file that somebody else may have put there; see `read_regular`."""
    # A named pipe must not make the tool wait for its writer.
    with _opened(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _bad_file(path, "is no regular file")
        yield descriptor


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _damaged(name: SlotName, what: str) -> HardwareError:
    return HardwareError(
        "update.damaged_slot",
        f"The release in slot {name.value} cannot run: {what}.",
        next_step="The box runs the other one if it may; the next update writes this slot anew.",
    )


def _wrong_image(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "update.wrong_image",
        f"An image is not the release that it came with: {what}.",
        next_step="It is not used. Fetch the release again; if it repeats, tell its publisher.",
    )


def _bad_file(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "update.bad_file",
        f"The file {path.name} {what}.",
        next_step="It is not used. Fetch the release again.",
    )
