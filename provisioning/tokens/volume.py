"""A small FAT16 volume with one file in it: the whole content of a token's stick.

Written whole from here, so that a stick is the same wherever it is made, and holds nothing of who had it before.

Source: Microsoft, FAT32 File System Specification 1.03, sections 3 to 7.
"""

from __future__ import annotations

import struct
from typing import Final

from agent.trust.token import STICK_FILE, STICK_LABEL

SECTORS: Final = 16384
MAX_CONTENT_BYTES: Final = 4096

_SHORT_NAME: Final = b"SEH-TO~1TXT"
_LABEL: Final = STICK_LABEL.encode("ascii").ljust(11)
_ROOT_ENTRIES, _FATS, _MEDIA = 512, 2, 0xF8
_ENTRY_BYTES: Final = 32
_ARCHIVE, _VOLUME_LABEL, _LONG_NAME, _LAST_LONG = 0x20, 0x08, 0x0F, 0x41
_DAY: Final = 0x0021  # 1 January 1980: tells nothing of when it was made
_END_OF_CHAIN: Final = 0xFFFF


def stick_volume(text: str, *, serial: int, sector_bytes: int = 512) -> bytes:
    """The volume: 16384 sectors, labelled `SEH-TOKEN`, with `SEH-TOKEN.TXT` in its root directory.

    Args:
        text: ASCII; the file's one line.
        serial: Of the volume, 32 bits.
        sector_bytes: The device's logical sector.
    """
    content = text.encode("ascii") + b"\r\n"
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError("more than a token")
    fat_sectors = 2 * SECTORS // sector_bytes
    root_at = 1 + _FATS * fat_sectors
    data_at = root_at + _ROOT_ENTRIES * _ENTRY_BYTES // sector_bytes
    clusters = -(-len(content) // sector_bytes)  # of one sector each
    chain = [_MEDIA | 0xFF00, _END_OF_CHAIN, *range(3, 2 + clusters), _END_OF_CHAIN]
    volume = bytearray(SECTORS * sector_bytes)
    volume[:512] = _boot_sector(sector_bytes, fat_sectors, serial)
    for copy in range(_FATS):
        struct.pack_into(f"<{len(chain)}H", volume, (1 + copy * fat_sectors) * sector_bytes, *chain)
    entries = (
        _entry(_LABEL, _VOLUME_LABEL) + _long_entry() + _entry(_SHORT_NAME, _ARCHIVE, cluster=2, size=len(content))
    )
    volume[root_at * sector_bytes : root_at * sector_bytes + len(entries)] = entries
    volume[data_at * sector_bytes : data_at * sector_bytes + len(content)] = content
    return bytes(volume)


def _boot_sector(sector_bytes: int, fat_sectors: int, serial: int) -> bytes:
    head = struct.pack(
        "<3s8sHBHBHHBHHHII",
        b"\xeb\x3c\x90",
        b"MSDOS5.0",  # section 3.1: what all drivers know
        sector_bytes,
        1,  # sectors a cluster
        1,  # reserved sectors
        _FATS,
        _ROOT_ENTRIES,
        SECTORS,
        _MEDIA,
        fat_sectors,
        63,  # sectors a track
        255,  # heads
        0,
        0,
    )
    tail = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, serial, _LABEL, b"FAT16   ")
    return (head + tail).ljust(510, b"\0") + b"\x55\xaa"


def _entry(name: bytes, attributes: int, *, cluster: int = 0, size: int = 0) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, attributes, 0, 0, 0, _DAY, _DAY, 0, 0, _DAY, cluster, size)


def _long_entry() -> bytes:
    # Section 7: the name has exactly the 13 characters of one part, so it takes neither end nor filling.
    name = STICK_FILE.encode("utf-16-le")
    checksum = 0
    for byte in _SHORT_NAME:
        checksum = ((checksum & 1) << 7 | checksum >> 1) + byte & 0xFF
    return struct.pack("<B10sBBB12sH4s", _LAST_LONG, name[:10], _LONG_NAME, 0, checksum, name[10:22], 0, name[22:])
