"""The GPU: whether the one that is there can be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from agent.core.errors import HardwareError, OperatorError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding

_NVIDIA: Final = "0x10de"  # PCI vendor
_DISPLAY: Final = "0x03"  # PCI class of displays and 3D controllers
_NODES: Final = ("dev/nvidiactl", "dev/nvidia0", "dev/nvidia-uvm")


def check(box: Box, *, root: Path = Path("/")) -> Finding:
    """Look for a GPU, its driver and its devices.

    Args:
        box: The box.
        root: Of the file system.

    Raises:
        OperatorError: The configuration wants one, and there is none.
        HardwareError: The configuration wants one, and it cannot be used.
    """
    wanted = box.config.training.device
    if wanted == "cpu":
        return Finding.not_applicable("The configuration trains on the processor.")
    if not _found(root):
        if wanted == "auto":
            return Finding.not_applicable("The machine has no GPU; training runs on the processor.")
        raise OperatorError(
            "doctor.no_gpu",
            "The configuration wants a GPU, and the machine has none.",
            next_step='Write `device = "auto"` below [training], or put one in.',
        )
    missing = [f"/{name}" for name in _NODES if not (root / name).exists()]
    version = root / "proc/driver/nvidia/version"
    if not version.exists() or missing:
        what = f"these devices are missing: {', '.join(missing)}" if version.exists() else "its driver is not loaded"
        unusable = HardwareError(
            "doctor.gpu_unusable",
            f"The machine has a GPU, but {what}.",
            next_step="Install nvidia-driver and nvidia-modprobe, restart the box, and see what `nvidia-smi` says.",
        )
        if wanted == "cuda":
            raise unusable
        return Finding.warning(unusable)
    driver = re.search(r"\d+\.\d+(\.\d+)?", version.read_text(encoding="ascii"))
    return Finding.ok(f"The GPU has its driver, {driver[0] if driver else 'of an unknown version'}.")


def _found(root: Path) -> bool:
    return any(
        (device / "vendor").read_text(encoding="ascii").strip() == _NVIDIA
        and (device / "class").read_text(encoding="ascii").startswith(_DISPLAY)
        for device in (root / "sys/bus/pci/devices").glob("*")
    )
