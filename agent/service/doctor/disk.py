"""The disk: whether there is room for what the agent has to write down before it answers."""

from __future__ import annotations

import os
from typing import Final

from agent.core.errors import HardwareError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding

LEAST_BYTES: Final = 100 << 20
WANTED_BYTES: Final = 1 << 30


def check(box: Box, *, least_bytes: int = LEAST_BYTES, wanted_bytes: int = WANTED_BYTES) -> Finding:
    """Look at the file system of the state directory.

    Args:
        box: The box.
        least_bytes: Below this, work stops soon.
        wanted_bytes: Below this, somebody should look.

    Raises:
        HardwareError: It is full, cannot be written, or cannot be seen.
    """
    directory = box.config.node.state_directory
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise HardwareError(
            "doctor.no_state_directory",
            f"The state directory {directory} cannot be seen: {error.strerror}.",
            next_step="Start the agent once: its unit makes it. If it is a disk of its own, mount that.",
        ) from error
    if status.f_flag & os.ST_RDONLY:
        raise HardwareError(
            "doctor.disk_read_only",
            f"The disk with {directory} can only be read.",
            next_step="The kernel does so after faults of a disk: look into `dmesg`, and check the disk.",
        )
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes >= wanted_bytes and status.f_favail != 0:
        return Finding.ok(f"{free_bytes / 1e9:.1f} GB are free at {directory}.")
    full = HardwareError(
        "doctor.disk_full",
        f"The disk with {directory} is nearly full: {free_bytes / 1e6:.0f} MB and {status.f_favail} files are left.",
        next_step="Make room: `du -xh -d2 / | sort -h` shows what takes it. Never delete in the state directory.",
    )
    if free_bytes < least_bytes or status.f_favail == 0:
        raise full
    return Finding.warning(full)
