"""A person at a real terminal: reads what a command shows, and types an answer to each question."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence


def converse(command: Sequence[str], answers: Mapping[str, str], *, limit_s: float = 60.0) -> tuple[str, int]:
    """Run a command at a terminal.

    Args:
        command: With its arguments.
        answers: What is typed, by a piece of the question; the same question may come several times.
        limit_s: How long the command may take to end once it has said its last word.

    Returns:
        All that the terminal showed, and the exit status.
    """
    terminal, far_end = os.openpty()
    shown, read = "", 0
    try:
        with subprocess.Popen(
            command, stdin=far_end, stdout=far_end, stderr=far_end, start_new_session=True
        ) as process:
            os.close(far_end)
            with contextlib.suppress(OSError):  # EIO: the command has ended
                while piece := os.read(terminal, 1000):
                    shown += piece.decode(errors="replace")
                    for question, answer in answers.items():
                        if question in shown[read:]:
                            read = len(shown)
                            os.write(terminal, f"{answer}\n".encode())
            return shown, process.wait(limit_s)
    finally:
        os.close(terminal)
