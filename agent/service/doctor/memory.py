"""Memory: whether there is enough to train."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding

NEEDED_BYTES: Final = int(3.5 * (1 << 30))
"""Of the four gigabytes that a box should have, firmware and kernel keep some."""
LEAST_FREE_BYTES: Final = 700 << 20
"""What a worker takes to load its libraries and train a small model."""


def check(_: Box, *, meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Look at what the machine has, and what is free.

    Args:
        meminfo: proc(5).

    Raises:
        HardwareError: A worker could not start.
    """
    found = dict(re.findall(r"^(\w+): +(\d+) kB$", meminfo.read_text(encoding="ascii"), re.MULTILINE))
    total_bytes, free_bytes = (int(found[name]) << 10 for name in ("MemTotal", "MemAvailable"))
    if free_bytes < LEAST_FREE_BYTES:
        raise HardwareError(
            "doctor.memory_used_up",
            f"Only {free_bytes / 1e6:.0f} MB of memory are free; training needs {LEAST_FREE_BYTES / 1e6:.0f} MB.",
            next_step="See what takes it (`systemd-cgtop -m`), and give this box no other work.",
        )
    if total_bytes < NEEDED_BYTES:
        return Finding.warning(
            HardwareError(
                "doctor.little_memory",
                f"The machine has {total_bytes / 1e9:.1f} GB of memory; 4 GB are wanted.",
                next_step="Give it more memory, or expect larger studies to be declined here.",
            )
        )
    return Finding.ok(f"{free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB of memory are free.")
