"""Reading what an operator names on the command line."""

from __future__ import annotations

from pathlib import Path

from agent.core.errors import OperatorError


def read_file(path: Path) -> bytes:
    """The whole file.

    Raises:
        OperatorError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(
            "cli.file_unreadable",
            f"{path} cannot be read: {error.strerror}.",
            next_step="Check the path and the file's permissions.",
        ) from error
