"""Programs of the system that the slot tool runs: veritysetup and tpm2-tools."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from agent.core.errors import HardwareError

PATIENCE_S: Final = 120.0
"""The longest is a verity tree over the largest image."""

Run = Callable[..., bytes]
"""As `run_program`."""


class ProgramError(HardwareError):
    """A program of the system ended with a failure; `stderr` is what it said."""

    stderr: str = ""


def run_program(arguments: Sequence[str], stdin: bytes = b"", pass_fds: Sequence[int] = ()) -> bytes:
    """Run one to its end.

    Args:
        arguments: The program, found on the path, and its arguments: no secrets, as every process can read them.
        stdin: What it reads.
        pass_fds: Descriptors that it inherits.

    Returns:
        What it wrote.

    Raises:
        ProgramError: It is missing, does not end, or fails (`update.program_failed`).
    """
    try:
        done = subprocess.run(
            arguments, input=stdin, capture_output=True, check=False, timeout=PATIENCE_S, pass_fds=pass_fds
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(arguments[0], str(error)) from error
    if done.returncode:
        raise _failed(arguments[0], done.stderr.decode(errors="replace"))
    return done.stdout


def _failed(program: str, stderr: str) -> ProgramError:
    error = ProgramError(
        "update.program_failed",
        f"The program {program} failed.",
        next_step="Look at the journal of seh-activate and seh-install; the package's dependencies must be installed.",
        stderr=stderr[-2000:],
    )
    error.stderr = stderr
    return error
