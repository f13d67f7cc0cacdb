"""USB sticks as images, made by other people's tools (dosfstools, mtools)."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.trust.token import STICK_LABEL

PARTITION_AT = 2048 * 512


def find_tool(name: str) -> str:
    """A program of dosfstools or mtools; administrators' programs may lie outside a user's PATH."""
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert found, f"{name} is missing: install packaging/debian-packages.txt"
    return found


def make_stick(
    path: Path,
    files: Mapping[str, bytes],
    *,
    bits: int = 32,
    mebibytes: int = 34,  # as small as FAT32 goes
    label: str = STICK_LABEL,
    partition: bool = False,
    options: Sequence[str] = (),
) -> Path:
    """An image of a stick.

    Args:
        path: Where it goes.
        files: By name, in the root directory.
        bits: 12, 16 or 32.
        mebibytes: Its size; sparse.
        label: Of the volume.
        partition: Whether the volume lies in the first entry of a partition table.
        options: More for mkfs.fat.
    """
    offset = PARTITION_AT if partition else 0
    with path.open("wb") as stream:
        stream.truncate(mebibytes << 20)
    kibibytes = (mebibytes << 10) - offset // 1024
    format_ = ("-F", str(bits), "-n", label, "--offset", str(offset // 512), *options)
    run(find_tool("mkfs.fat"), *format_, str(path), str(kibibytes))
    for name, content in files.items():
        run(find_tool("mcopy"), "-i", f"{path}@@{offset}", "-", f"::{name}", data=content)
    if partition:
        sectors = (mebibytes << 11) - offset // 512
        entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x0C, bytes(3), offset // 512, sectors)
        with path.open("r+b") as stream:
            stream.seek(446)
            stream.write(entry + bytes(48) + b"\x55\xaa")
    return path


def run(*command: str, data: bytes = b"") -> None:
    """Run a program that must succeed."""
    subprocess.run(command, input=data, check=True, capture_output=True)
