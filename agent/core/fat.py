"""Files from the root directory of a FAT volume, read without mounting it: no kernel file system sees the stick.

FAT12, FAT16 and FAT32, with long names, with and without a partition table (MBR). Every length on the stick is checked
before it is believed, and every walk over it is bounded by what we are ready to read, never by what it announces.

Source: Microsoft, FAT32 File System Specification 1.03; ECMA-107.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from agent.core.errors import HardwareError, OperatorError

SECTOR_BYTES: Final = 512
MAX_DIRECTORY_BYTES: Final = 128 << 10
MAX_CLUSTER_BYTES: Final = 64 << 10

_SIGNATURE: Final = b"\x55\xaa"
_ENTRY_BYTES: Final = 32
_PARTITIONS_AT, _PARTITIONS = 446, 4
_FAT_PARTITIONS: Final = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF})
_LABEL, _DIRECTORY, _LONG_NAME, _ATTRIBUTES = 0x08, 0x10, 0x0F, 0x3F
_LAST_LONG, _LONG_PLACE, _MAX_LONG_PARTS, _LONG_PART_BYTES = 0x40, 0x1F, 20, 26
_DELETED, _END, _KANJI = 0xE5, 0x00, 0x05
_FAT12_CLUSTERS, _FAT16_CLUSTERS, _FAT32_CLUSTERS = 4085, 65525, 0x0FFFFFF5  # fewer than these
_FIRST_CLUSTER: Final = 2


class Device(Protocol):
    """Where a volume lies: a stick, a partition of one, or an image of either."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset`.

        Raises:
            HardwareError: The device does not give them.
        """
        ...


class DescriptorDevice:
    """A stick or an image of one, behind an open file descriptor.

    Args:
        descriptor: Open for reading; block device or file. It stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset`.

        Raises:
            HardwareError: The device fails or ends (`stick.unreadable`).
        """
        parts = b""
        try:
            while len(parts) < count:
                part = os.pread(self._descriptor, count - len(parts), offset + len(parts))
                if not part:
                    raise _unreadable("it ends before its contents")
                parts += part
        except OSError as error:
            raise _unreadable(os.strerror(error.errno or 0)) from error
        return parts


@dataclass(frozen=True, slots=True)
class _Volume:
    """Where the parts of a volume lie; offsets and sizes in bytes.

    Args:
        fat: Start of the first allocation table.
        bits: Of one of its entries: 12, 16 or 32.
        root: Start of the root directory; 0 where it is a chain of clusters.
        root_bytes: Its size, where it is not.
        root_cluster: Its first cluster, where it is.
        data: Start of cluster 2.
        cluster_bytes: Size of a cluster.
        clusters: How many there are.
    """

    fat: int
    bits: int
    root: int
    root_bytes: int
    root_cluster: int
    data: int
    cluster_bytes: int
    clusters: int


@dataclass(frozen=True, slots=True)
class _Entry:
    is_directory: bool
    cluster: int
    size: int


@dataclass(frozen=True, slots=True)
class RootFile:
    """A file in the root directory.

    Args:
        device: The stick.
        volume: Where it lies on it.
        entry: As the directory says.
    """

    device: Device
    volume: _Volume
    entry: _Entry

    @property
    def size(self) -> int:
        """As the directory says, in bytes."""
        return self.entry.size

    def parts(self) -> Iterator[bytes]:
        """Its content, a cluster at a time; `size` bytes in all.

        Raises:
            HardwareError: The volume contradicts itself (`stick.damaged`), or the device does not answer.
        """
        left = self.size
        if not left:
            return
        for cluster in _chain(self.device, self.volume, self.entry.cluster):
            part = _cluster(self.device, self.volume, cluster)[:left]
            yield part
            left -= len(part)
            if not left:
                return
        raise _damaged("a file ends before its size")


def read_root_file(device: Device, name: str, *, limit: int) -> bytes:
    """The whole content of the file `name` in the root directory.

    Args:
        device: The stick.
        name: Compared without regard to case.
        limit: The most bytes that it may have.

    Raises:
        OperatorError: There is no FAT volume (`stick.not_fat`), no such file (`stick.no_file`), a folder in its place,
            or it is larger than `limit` (`stick.file_too_large`).
        HardwareError: The volume contradicts itself (`stick.damaged`), or the device does not answer.
    """
    return b"".join(open_root_file(device, name, limit=limit).parts())


def open_root_file(device: Device, name: str, *, limit: int) -> RootFile:
    """The file `name` in the root directory.

    Args:
        device: The stick.
        name: Compared without regard to case.
        limit: The most bytes that it may have.

    Raises:
        OperatorError, HardwareError: As `read_root_file` says.
    """
    volume = _find_volume(device)
    found = [entry for entry_name, entry in _entries(_root(device, volume)) if entry_name.upper() == name.upper()]
    if not found:
        raise OperatorError(
            "stick.no_file",
            f"The stick holds no file {name}.",
            next_step="Use the stick as it was made for this box, or copy the file to its top folder.",
        )
    if len(found) > 1:
        raise _damaged(f"two files are called {name}")
    entry = found[0]
    if entry.is_directory:
        raise OperatorError(
            "stick.no_file",
            f"{name} on the stick is a folder, not a file.",
            next_step="Use the stick as it was made for this box.",
        )
    if entry.size > limit:
        raise OperatorError(
            "stick.file_too_large",
            f"{name} on the stick has {entry.size} bytes; no more than {limit} are read.",
            next_step="Use the stick as it was made for this box.",
        )
    return RootFile(device, volume, entry)


def _find_volume(device: Device) -> _Volume:
    first = device.read(0, SECTOR_BYTES)
    volume = _parse_boot_sector(first, 0)
    if volume is not None:
        return volume
    if first.endswith(_SIGNATURE):
        for place in range(_PARTITIONS):
            kind, start, length = struct.unpack_from("<4xB3xII", first, _PARTITIONS_AT + 16 * place)
            if kind in _FAT_PARTITIONS and start and length:
                offset = start * SECTOR_BYTES
                volume = _parse_boot_sector(device.read(offset, SECTOR_BYTES), offset)
                if volume is not None:
                    return volume
    raise OperatorError(
        "stick.not_fat",
        "The stick is not formatted as FAT.",
        next_step="Use the stick as it was made for this box, or format it as FAT32 and copy the files to it.",
    )


def _parse_boot_sector(sector: bytes, offset: int) -> _Volume | None:
    """The volume that begins at `offset`; None where no FAT volume begins there."""
    size, per_cluster, reserved, fats, root_entries, total16, media, fat16 = struct.unpack_from("<HBHBHHBH", sector, 11)
    total32, fat32, root_cluster = *struct.unpack_from("<II", sector, 32), *struct.unpack_from("<I", sector, 44)
    total, fat_sectors = total16 or total32, fat16 or fat32
    root_bytes = root_entries * _ENTRY_BYTES
    if (
        not sector.endswith(_SIGNATURE)
        or size not in {512, 1024, 2048, 4096}
        or per_cluster.bit_count() != 1
        or size * per_cluster > MAX_CLUSTER_BYTES
        or not (reserved and fats in {1, 2} and total and fat_sectors)
        or not (media == 0xF0 or media >= 0xF8)
        or root_bytes > MAX_DIRECTORY_BYTES
    ):
        return None
    root_sectors = -(-root_bytes // size)
    root_at = reserved + fats * fat_sectors
    clusters = (total - root_at - root_sectors) // per_cluster
    # As every driver tells them apart: FAT32 has no 16-bit size of its table, and no root directory of fixed size.
    bits = 32 if not fat16 else 12 if clusters < _FAT12_CLUSTERS else 16
    most = _FAT32_CLUSTERS if bits == 32 else _FAT16_CLUSTERS
    if not 1 <= clusters < most or (bits == 32) == bool(root_entries):
        return None
    if (clusters + _FIRST_CLUSTER) * bits > fat_sectors * size * 8:
        return None
    return _Volume(
        fat=offset + reserved * size,
        bits=bits,
        root=0 if bits == 32 else offset + root_at * size,
        root_bytes=root_bytes,
        root_cluster=root_cluster if bits == 32 else 0,
        data=offset + (root_at + root_sectors) * size,
        cluster_bytes=size * per_cluster,
        clusters=clusters,
    )


def _root(device: Device, volume: _Volume) -> bytes:
    if volume.root:
        return device.read(volume.root, volume.root_bytes)
    parts = bytearray()
    for cluster in _chain(device, volume, volume.root_cluster):
        if len(parts) >= MAX_DIRECTORY_BYTES:
            raise OperatorError(
                "stick.too_many_files",
                "The stick holds too many files.",
                next_step="Use the stick as it was made for this box, or an empty one with only its files.",
            )
        parts += _cluster(device, volume, cluster)
    return bytes(parts)


def _chain(device: Device, volume: _Volume, first: int) -> Iterator[int]:
    """The clusters of a file or directory, in order; the caller stops when it has enough."""
    seen: set[int] = set()
    cluster = first
    while True:
        if not _FIRST_CLUSTER <= cluster < _FIRST_CLUSTER + volume.clusters or cluster in seen:
            raise _damaged("a file's parts lie outside the stick or in a circle")
        seen.add(cluster)
        yield cluster
        cluster = _next_cluster(device, volume, cluster)
        if cluster >= (0x0FFFFFF8 if volume.bits == 32 else (1 << volume.bits) - 8):
            return


def _next_cluster(device: Device, volume: _Volume, cluster: int) -> int:
    if volume.bits == 12:
        (pair,) = struct.unpack("<H", device.read(volume.fat + cluster + cluster // 2, 2))
        return int(pair >> 4 if cluster % 2 else pair & 0x0FFF)
    if volume.bits == 16:
        return int(struct.unpack("<H", device.read(volume.fat + 2 * cluster, 2))[0])
    return int(struct.unpack("<I", device.read(volume.fat + 4 * cluster, 4))[0]) & 0x0FFFFFFF


def _cluster(device: Device, volume: _Volume, cluster: int) -> bytes:
    return device.read(volume.data + (cluster - _FIRST_CLUSTER) * volume.cluster_bytes, volume.cluster_bytes)


def _entries(directory: bytes) -> Iterator[tuple[str, _Entry]]:
    """Files and folders with each of their names, the short and the long one."""
    long_name = _LongName()
    for at in range(0, len(directory) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        raw = directory[at : at + _ENTRY_BYTES]
        attributes = raw[11] & _ATTRIBUTES
        if raw[0] == _END:
            return
        if raw[0] == _DELETED:
            long_name = _LongName()
        elif attributes == _LONG_NAME:
            long_name.take(raw)
        else:
            if not attributes & _LABEL:
                high, low, size = struct.unpack_from("<H4xHI", raw, 20)
                entry = _Entry(bool(attributes & _DIRECTORY), high << 16 | low, size)
                yield from ((name, entry) for name in {_short_name(raw), long_name.end(raw)} if name)
            long_name = _LongName()


class _LongName:
    """Collects the parts of a long name, which stand before their short entry, the last part first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0
        self._checksum = -1

    def take(self, raw: bytes) -> None:
        """One more part; one that does not follow the part before it makes the name void."""
        place = raw[0] & _LONG_PLACE
        if raw[0] & _LAST_LONG and 1 <= place <= _MAX_LONG_PARTS:
            self._parts, self._missing, self._checksum = [], place, raw[13]
        elif not place or place != self._missing or raw[13] != self._checksum:
            self._missing = -1
        if self._missing > 0:
            self._parts.insert(0, raw[1:11] + raw[14:26] + raw[28:32])
            self._missing -= 1

    def end(self, raw: bytes) -> str:
        """The name, if it is whole and belongs to the short entry `raw`; empty otherwise."""
        if not self._parts or self._missing or self._checksum != _checksum(raw[:11]):
            return ""
        name = b"".join(self._parts).decode("utf-16-le", errors="replace")
        return name.partition("\0")[0]


def _short_name(raw: bytes) -> str:
    first = bytes([_DELETED]) if raw[0] == _KANJI else raw[:1]
    base, extension = (part.decode("latin-1").rstrip(" ") for part in (first + raw[1:8], raw[8:11]))
    return f"{base}.{extension}" if extension else base


def _checksum(short_name: bytes) -> int:
    # FAT specification, 7.2: of the eleven bytes of the short name.
    total = 0
    for byte in short_name:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total


def _damaged(what: str) -> HardwareError:
    return HardwareError(
        "stick.damaged",
        f"The stick is damaged: {what}.",
        next_step="Try another stick, or have a new one made.",
    )


def _unreadable(what: str) -> HardwareError:
    return HardwareError(
        "stick.unreadable",
        f"The stick cannot be read: {what}.",
        next_step="Plug it in again, or try another stick.",
    )
