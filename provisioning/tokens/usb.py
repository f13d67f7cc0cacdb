"""A token onto a stick. Only what is surely a stick is written to, and only after a person said so."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError
from agent.trust.token import STICK_LABEL
from provisioning.tokens.volume import SECTORS, stick_volume

_SYSFS_SECTOR_BYTES: Final = 512  # sysfs counts in these, whatever the device's own are
_LEFTOVER_BYTES: Final = 1 << 20
"""At a device's end there may be the second copy of a partition table (GPT)."""
_LABEL_AT: Final = (43, 71)  # FAT12 and FAT16; FAT32
_REREAD_PARTITIONS: Final = 0x125F  # BLKRRPART of linux/fs.h

Confirm = Callable[[str], bool]
"""Shows a person a question, and says whether it was answered with yes."""


@dataclass(frozen=True, slots=True)
class Stick:
    """A removable disk, as the kernel describes it.

    Args:
        name: Maker and model.
        size_bytes: Of the whole.
        sector_bytes: Logical.
        partitions: Names of those that the kernel sees on it.
    """

    name: str
    size_bytes: int
    sector_bytes: int
    partitions: tuple[str, ...]


def describe_stick(device: int, path: Path, *, sysfs: Path = Path("/sys")) -> Stick:
    """What the kernel knows of a block device.

    Args:
        device: Its number (`st_rdev`).
        path: As the operator named it.
        sysfs: Where the kernel tells it.

    Raises:
        OperatorError: It is a part of a disk (`usb.is_partition`), not removable (`usb.not_removable`), or too small.
    """
    place = sysfs / "dev" / "block" / f"{os.major(device)}:{os.minor(device)}"
    if (place / "partition").exists():
        raise OperatorError(
            "usb.is_partition",
            f"{path} is a part of a disk.",
            next_step="Name the whole stick, without the digit at the end.",
        )
    if _read(place / "removable") != "1":
        raise OperatorError(
            "usb.not_removable",
            f"{path} is no removable disk, so it is not written to.",
            next_step="Plug the stick in, and find its name with `lsblk`.",
        )
    maker, model = (_read(place / "device" / part) for part in ("vendor", "model"))
    stick = Stick(
        name=" ".join(f"{maker} {model}".split()) or "unnamed stick",
        size_bytes=int(_read(place / "size") or "0") * _SYSFS_SECTOR_BYTES,
        sector_bytes=int(_read(place / "queue" / "logical_block_size") or "512"),
        partitions=tuple(sorted(child.parent.name for child in place.glob("*/partition"))),
    )
    if stick.size_bytes < SECTORS * stick.sector_bytes:
        raise OperatorError(
            "usb.too_small",
            f"{path} ({stick.name}) is too small, or has no medium in it.",
            next_step="Use another stick.",
        )
    return stick


def write_stick(
    path: Path, text: str, *, serial: int, erase: bool, confirm: Confirm, sysfs: Path = Path("/sys")
) -> None:
    """Make a token's stick, or an image of one.

    Args:
        path: A stick's block device, or a file that is to become an image.
        text: The token's.
        serial: Of the volume, 32 bits.
        erase: Whether what a stick or an image holds may be lost.
        confirm: Asks the operator before a stick is written to.
        sysfs: Where the kernel describes devices.

    Raises:
        OperatorError: It is no removable disk, is in use, holds something else, or the operator said no.
        HardwareError: It cannot be written, or gives back something else (`usb.write_failed`).
    """
    if path.is_block_device():
        _write_device(path, text, serial=serial, erase=erase, confirm=confirm, sysfs=sysfs)
    else:
        _write_image(path, stick_volume(text, serial=serial), erase=erase)


def _write_device(path: Path, text: str, *, serial: int, erase: bool, confirm: Confirm, sysfs: Path) -> None:
    # O_EXCL: the kernel refuses while it, or a part of it, is mounted or used otherwise.
    with _opened(path, os.O_RDWR | os.O_EXCL) as descriptor:
        stick = describe_stick(os.fstat(descriptor).st_rdev, path, sysfs=sysfs)
        if not erase:
            _check_free(descriptor, path, stick)
        size = f"{stick.size_bytes / 1e9:.1f} GB"
        if not confirm(f"{path}: {stick.name}, {size}. Everything on it will be erased. Go on?"):
            raise _declined(path)
        write_volume(descriptor, stick_volume(text, serial=serial, sector_bytes=stick.sector_bytes), stick)
        if stick.partitions:
            with suppress(OSError):  # the kernel forgets them at the next plugging in, too
                fcntl.ioctl(descriptor, _REREAD_PARTITIONS)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OperatorError(
                "usb.in_use",
                f"{path} is in use.",
                next_step="Unmount it (the file manager's eject button does), then try again.",
            ) from error
        if error.errno == errno.EEXIST:
            raise _holds_something(path, "the file exists already") from error
        raise OperatorError(
            "usb.cannot_open",
            f"{path} cannot be written to: {error.strerror}.",
            next_step="Check the name; writing a stick may need `sudo`.",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_volume(descriptor: int, volume: bytes, stick: Stick) -> None:
    """Put `volume` at the front of a stick, so that an interruption leaves no volume rather than half a one.

    Args:
        descriptor: Open for reading and writing.
        volume: At most as large as the stick.
        stick: The stick.

    Raises:
        HardwareError: It cannot be written, or gives back something else (`usb.write_failed`).
    """
    leftover = min(_LEFTOVER_BYTES, stick.size_bytes - len(volume))
    try:
        _write_at(descriptor, bytes(stick.sector_bytes), 0)
        os.fsync(descriptor)
        _write_at(descriptor, bytes(leftover), stick.size_bytes - leftover)
        _write_at(descriptor, volume[stick.sector_bytes :], stick.sector_bytes)
        os.fsync(descriptor)
        _write_at(descriptor, volume[: stick.sector_bytes], 0)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # read from the stick, not from memory
        written = _read_at(descriptor, len(volume))
    except OSError as error:
        raise _write_failed(error.strerror or "it does not answer") from error
    if written != volume:
        raise _write_failed("it gives back something else than was written")


def _write_image(path: Path, volume: bytes, *, erase: bool) -> None:
    if erase and path.is_file():
        path.unlink()  # a new file: who could read the old one, or has it open, does not see the token
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        try:
            _write_at(descriptor, volume, 0)
            os.fsync(descriptor)
        except OSError as error:
            raise _write_failed(error.strerror or "it cannot be written") from error


def _check_free(descriptor: int, path: Path, stick: Stick) -> None:
    """A stick may be overwritten unasked only if it is empty, or an older token's."""
    if stick.partitions:
        raise _holds_something(path, f"{stick.name} has partitions ({', '.join(stick.partitions)})")
    front = _read_at(descriptor, _LEFTOVER_BYTES)
    ours = any(front[at : at + 11] == STICK_LABEL.encode().ljust(11) for at in _LABEL_AT)
    if not ours and front.strip(b"\0") and front.strip(b"\xff"):
        raise _holds_something(path, f"{stick.name} is not empty")


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _read_at(descriptor: int, count: int) -> bytes:
    parts = b""
    while len(parts) < count and (part := os.pread(descriptor, count - len(parts), len(parts))):
        parts += part
    return parts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _holds_something(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "usb.holds_something",
        f"{path} was not written to: {what}.",
        next_step="Use an empty stick, or add --erase if everything on it may be lost.",
    )


def _declined(path: Path) -> OperatorError:
    return OperatorError("usb.declined", f"{path} was left as it is.", next_step="Name the right stick.")


def _write_failed(what: str) -> HardwareError:
    return HardwareError(
        "usb.write_failed",
        f"The stick could not be written: {what}.",
        next_step="Use another stick; this one may be worn out or locked against writing.",
    )
