"""`incoming/`: where an update that is whole waits for the slot tool, whichever way it came."""

from __future__ import annotations

import hashlib
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.core.errors import PeerProtocolError
from agent.core.files import store_atomically, sync_directory
from agent.statements.release import VERSION_PATTERN, Release, Version
from agent.update.download import kept_on_disk
from agent.update.handover import (
    IMAGE_FILE,
    MAX_HANDOVER_BYTES,
    READY_FILE,
    RECORD_FILE,
    Handover,
    leave_handover,
    parse_handover,
)
from agent.update.window import Window

_PARTIAL: Final = ".partial"


@dataclass(frozen=True, slots=True)
class Incoming:
    """The directory.

    Args:
        path: Made when first written to.
    """

    path: Path

    def begin(self, release: Release) -> Path:
        """Where a release's image is to be written.

        Raises:
            HardwareError: The disk does not take it.
        """
        image = self._image(release)
        with kept_on_disk(image):
            image.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return image.with_name(image.name + _PARTIAL)

    def holds(self, release: Release) -> bool:
        """Whether a release's image is here already, whole."""
        image = self._image(release)
        return image.exists() and _digest(image) == release.image_sha256

    def finish(self, release: Release, image: Path) -> None:
        """Take a release's image in.

        Args:
            release: As verified.
            image: Lies on this disk, and on it for good; moved away.

        Raises:
            PeerProtocolError: It is another image than was signed (`update.other_image`).
            HardwareError: The disk does not take it.
        """
        with kept_on_disk(image):
            size, found = image.stat().st_size, _digest(image)
        if (size, found) != (release.image_bytes, release.image_sha256):
            image.unlink()
            raise other_image(release)
        place = self._image(release)
        with kept_on_disk(image):
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            image.chmod(0o644)
            image.replace(place)
            sync_directory(place.parent)

    def hand_over(self, release: Release, record: bytes, window: Window | None) -> None:
        """Ask the slot tool to install a release whose image was taken in; older ones are removed.

        Args:
            release: As verified.
            record: Its record.
            window: When the box may change over; None for at once.

        Raises:
            HardwareError: The disk does not take it.
        """
        place = self._image(release).with_name(RECORD_FILE)
        with kept_on_disk(place):
            store_atomically(place, record)
        self._ask(Handover("install", str(release.version), window))
        self._keep_only({str(release.version)})

    def ask_rollback(self, version: Version) -> None:
        """Ask the slot tool to go back to the other slot at once.

        Args:
            version: What that slot holds.

        Raises:
            HardwareError: The disk does not take it.
        """
        self._ask(Handover("rollback", str(version)))

    def ask_drop(self, version: Version) -> None:
        """Ask the slot tool to let go of a release that waits for its turn.

        Args:
            version: Which one.

        Raises:
            HardwareError: The disk does not take it.
        """
        self._ask(Handover("drop", str(version)))

    def waiting(self) -> Handover | None:
        """What the slot tool was asked for and has not taken yet."""
        try:
            with (self.path / READY_FILE).open("rb") as stream:
                return parse_handover(stream.read(MAX_HANDOVER_BYTES + 1))
        except (OSError, ValueError):
            return None

    def forget_up_to(self, running: Version) -> None:
        """Remove what is not newer than what runs here."""
        if self.path.exists():
            with kept_on_disk(self.path / "-"):
                names = {folder.name for folder in self.path.iterdir() if re.fullmatch(VERSION_PATTERN, folder.name)}
                self._keep_only({name for name in names if Version.parse(name) > running})

    def _ask(self, handover: Handover) -> None:
        with kept_on_disk(self.path / "-"):
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            leave_handover(self.path, handover)

    def _keep_only(self, names: set[str]) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir() and entry.name not in names:
                with suppress(OSError):
                    shutil.rmtree(entry)

    def _image(self, release: Release) -> Path:
        return self.path / str(release.version) / IMAGE_FILE


def other_image(release: Release) -> PeerProtocolError:
    """An image is not the one that a record names."""
    return PeerProtocolError(
        "update.other_image",
        f"The image that came for release {release.version} is not the one that was signed.",
        next_step="Nothing of it is used. If it repeats, tell the maker of the software.",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
