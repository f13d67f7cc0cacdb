"""A release on a stick, for boxes that reach no repository: `release.json` and `app.raw` on a FAT volume SEH-UPDATE.

Volume and files are written by dosfstools and mtools, without mounting anything.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError
from agent.trust.channels import IMAGE_NAME, RECORD_NAME, UPDATE_LABEL
from provisioning.authority.repository import storing
from provisioning.tokens.usb import describe_stick

_SPARE_BYTES: Final = 32 << 20
"""For the volume's own tables."""
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"

Confirm = Callable[[str], bool]


def write_release(place: Path, record: Path, image: Path, *, confirm: Confirm, sysfs: Path = Path("/sys")) -> None:
    """Put a release where a box can read it.

    Args:
        place: A stick's block device, all of which is erased, or a directory: that of a mounted FAT stick, say, which
            has to be labelled SEH-UPDATE.
        record: The release's signed record.
        image: Its image.
        confirm: Asks the operator before a stick is erased.
        sysfs: Where the kernel describes devices.

    Raises:
        OperatorError: It is neither, no removable disk, in use, or the operator said no.
        HardwareError: It cannot be written.
    """
    if place.is_dir():
        with storing():
            for source, name in ((image, IMAGE_NAME), (record, RECORD_NAME)):
                shutil.copyfile(source, place / name)
            os.sync()
    elif place.is_block_device():
        _write_device(place, record, image, confirm, sysfs)
    else:
        raise OperatorError(
            "release.no_stick",
            f"{place} is neither a stick's device nor a directory.",
            next_step="Plug the stick in, and find its name with `lsblk`.",
        )


def make_volume(place: Path, record: Path, image: Path) -> None:
    """Make the volume on a device or in an image file.

    Raises:
        OperatorError: dosfstools or mtools are not installed (`release.no_tool`).
        HardwareError: It cannot be written (`release.stick_failed`).
    """
    # One file system over the whole stick: a box reads it with or without a partition table.
    _run("mkfs.fat", "-I", "-F", "32", "-n", UPDATE_LABEL, str(place))
    for source, name in ((image, IMAGE_NAME), (record, RECORD_NAME)):
        _run("mcopy", "-i", str(place), str(source), f"::{name}")


def _write_device(place: Path, record: Path, image: Path, confirm: Confirm, sysfs: Path) -> None:
    stick = describe_stick(place.stat().st_rdev, place, sysfs=sysfs)
    needed = image.stat().st_size + _SPARE_BYTES
    if stick.size_bytes < needed:
        raise OperatorError(
            "release.stick_too_small",
            f"{place} ({stick.name}) is too small: the release needs {needed / 1e9:.1f} GB.",
            next_step="Use a larger stick.",
        )
    if not confirm(f"{place}: {stick.name}, {stick.size_bytes / 1e9:.1f} GB. Everything on it will be erased. Go on?"):
        raise OperatorError("release.declined", f"{place} was left as it is.", next_step="Name the right stick.")
    make_volume(place, record, image)
    with place.open("rb") as stream:
        os.fsync(stream.fileno())


def _run(name: str, *arguments: str) -> None:
    program = shutil.which(name, path=_PATH)
    if program is None:
        raise OperatorError(
            "release.no_tool",
            f"{name} is not installed.",
            next_step="Install the packages dosfstools and mtools, or name the directory of a mounted stick.",
        )
    done = subprocess.run((program, *arguments), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise HardwareError(
            "release.stick_failed",
            f"The stick could not be written: {done.stderr.strip()[:200] or name + ' failed'}.",
            next_step="Unmount it if it is mounted, or use another stick.",
        )
