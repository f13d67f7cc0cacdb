"""A token as a QR code: a file, a terminal, or part of a sheet."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

import segno

from agent.core.errors import OperatorError

MODULE_PIXELS: Final = 8
QUIET_ZONE: Final = 4
"""Modules of white around the code (ISO/IEC 18004, 6.3.8)."""
_KIND_FOR_SUFFIX: Final = {".png": "png", ".svg": "svg"}


def make_code(text: str) -> segno.QRCode:
    """The code of a token: alphanumeric, error correction M, since it may be folded or scratched on its way."""
    return segno.make_qr(text, error="m", boost_error=False)


def store_code(path: Path, text: str) -> None:
    """Write the code into a picture that only its owner may read.

    Args:
        path: Ends in `.png` or `.svg`.
        text: The token's.

    Raises:
        OperatorError: It ends otherwise, exists already, or cannot be written.
    """
    kind = _KIND_FOR_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise OperatorError(
            "token.unknown_picture",
            f"{path.name} names no kind of picture that is written here.",
            next_step="Let the name end in .png or .svg.",
        )
    picture = io.BytesIO()
    make_code(text).save(picture, kind=kind, scale=MODULE_PIXELS, border=QUIET_ZONE)
    store_secret(path, picture.getvalue())


def terminal_code(text: str) -> str:
    """The code in characters, for a terminal with light letters on dark ground or the other way round."""
    out = io.StringIO()
    make_code(text).terminal(out, border=QUIET_ZONE, compact=True)
    return out.getvalue()


def store_secret(path: Path, data: bytes) -> None:
    """Write a file that holds a token, readable by its owner only.

    Raises:
        OperatorError: It exists already (`token.file_exists`), or cannot be written (`token.cannot_write`).
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except FileExistsError as error:
        raise OperatorError(
            "token.file_exists",
            f"{path} exists already.",
            next_step="Name another file: one token is not written over another.",
        ) from error
    except OSError as error:
        raise OperatorError(
            "token.cannot_write",
            f"{path} cannot be written: {error.strerror}.",
            next_step="Check the directory, its permissions and its free space.",
        ) from error
