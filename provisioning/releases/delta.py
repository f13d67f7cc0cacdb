"""Deltas from earlier images: `zstd --patch-from`, bit-exact; a box applies them with `agent.update.delta`."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from agent.core.errors import OperatorError

_ZSTD: Final = "zstd"
_WINDOW_LOG: Final = 31
"""What a box allows; both ends must."""


def make_delta(base: Path, image: Path, delta: Path) -> None:
    """Make a delta.

    Args:
        base: The earlier image.
        image: The new one.
        delta: Where it goes; replaced.

    Raises:
        OperatorError: It cannot be made (`release.no_delta`).
    """
    arguments = ("-q", "-f", f"--long={_WINDOW_LOG}", f"--patch-from={base}", str(image), "-o", str(delta))
    try:
        done = subprocess.run((_ZSTD, *arguments), check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise _no_delta(base, "zstd is not installed") from error
    if done.returncode != 0:
        raise _no_delta(base, done.stderr.strip()[:200] or f"zstd ended with {done.returncode}")


def _no_delta(base: Path, what: str) -> OperatorError:
    return OperatorError(
        "release.no_delta",
        f"No delta could be made from {base}: {what}.",
        next_step="Check that file, and that the package zstd is installed.",
    )
