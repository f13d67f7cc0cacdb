"""The reader of update sticks: one short-lived process, started for one stick, that may read it and fill `incoming/`.

    python3 -m agent.update.stick CONFIGURATION < /dev/sdb1

It runs apart from the agent, without network, devices or rights (`packaging/systemd/seh-update-stick@.service`). What a
stick brings is held against the same keys, the same floor and the same hash as what the network brings.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import structlog

from agent.core.config import AgentConfig, load_config
from agent.core.errors import OperatorError, PeerProtocolError, SecureHealthError
from agent.core.fat import DescriptorDevice, Device, RootFile, open_root_file, read_root_file
from agent.core.logging import configure_logging
from agent.core.terminal import EXIT_STATUS
from agent.statements.release import Release
from agent.trust.channels import IMAGE_NAME, RECORD_NAME, delta_name
from agent.update.box import Box, load_box
from agent.update.channel import check_release
from agent.update.delta import Base, apply_delta
from agent.update.download import check_room, kept_on_disk, whole_or_none
from agent.update.release import MAX_RECORD_BYTES, verify_release
from agent.update.updater import UpdateFolder, check_not_on_trial, noted
from agent.update.window import Window, parse_window

_DELTA_FILE: Final = "stick.zst"

log = structlog.get_logger()


def take_from_stick(device: Device, folder: UpdateFolder, box: Box, window: Window | None) -> Release:
    """Take the release on a stick, and ask the slot tool to install it.

    Args:
        device: The stick.
        folder: The updater's.
        box: What runs here.
        window: When the box may change over.

    Raises:
        SecureHealthError: There is none that may run here, or it cannot be read or kept; it is noted, too.
    """
    with folder.held(), noted(folder):
        check_not_on_trial(box)
        record = read_root_file(device, RECORD_NAME, limit=MAX_RECORD_BYTES)
        release = verify_release(record, box.keys)
        check_release(release, box.running)
        if not folder.incoming.holds(release):
            folder.incoming.finish(release, _image(device, folder, box, release))
        folder.incoming.hand_over(release, record, window)
    return release


def _image(device: Device, folder: UpdateFolder, box: Box, release: Release) -> Path:
    check_room(folder.path, release.image_bytes)
    image = folder.incoming.begin(release)
    delta = _delta(device, box, release)
    if delta is not None and box.image is not None:
        try:
            _apply(folder, box.image, delta, image, release)
        except PeerProtocolError as error:
            log.warning("delta_refused", code=error.code, sentence=error.sentence)
        else:
            return image
    _copy(open_root_file(device, IMAGE_NAME, limit=release.image_bytes), image)
    return image


def _delta(device: Device, box: Box, release: Release) -> RootFile | None:
    """The stick's delta from what runs here; None where it brings none."""
    try:
        return open_root_file(device, delta_name(str(box.running.version)), limit=release.image_bytes)
    except OperatorError:
        return None


def _apply(folder: UpdateFolder, base: Base, delta: RootFile, image: Path, release: Release) -> None:
    # A stick gives no file that zstd could open.
    copied = folder.path / _DELTA_FILE
    try:
        _copy(delta, copied)
        with kept_on_disk(image), whole_or_none(image):
            apply_delta(base, copied, image, sha256=release.image_sha256, length=release.image_bytes)
    finally:
        copied.unlink(missing_ok=True)


def _copy(file: RootFile, place: Path) -> None:
    with kept_on_disk(place), whole_or_none(place), place.open("wb") as stream:
        for part in file.parts():
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())


def read_stick(descriptor: int, config: AgentConfig) -> Release:
    """Take the release on the stick behind `descriptor`, as the configuration says.

    Raises:
        SecureHealthError: As `take_from_stick` says.
    """
    folder = UpdateFolder(config.update.directory)
    window = parse_window(config.update.window)
    return take_from_stick(DescriptorDevice(descriptor), folder, load_box(config), window)


def main() -> int:
    """Entry point: the stick is standard input."""
    configure_logging()
    (configuration,) = sys.argv[1:]
    try:
        release = read_stick(sys.stdin.fileno(), load_config(Path(configuration)))
    except SecureHealthError as error:
        log.warning("stick_refused", error=error)
        return EXIT_STATUS[error.fault]
    log.info("stick_taken", version=str(release.version))
    return 0


if __name__ == "__main__":
    sys.exit(main())
