"""Where a token comes from: a stick, a picture, or a keyboard. Each gives its text; `agent.trust.token` parses it."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from agent.core.errors import OperatorError
from agent.core.fat import DescriptorDevice, read_root_file
from agent.trust.token import MAX_TOKEN_CHARACTERS, STICK_FILE

MAX_FILE_BYTES: Final = 64 << 10
MAX_IMAGE_BYTES: Final = 32 << 20


def token_from_descriptor(descriptor: int) -> str:
    """The text in `SEH-TOKEN.TXT` on the stick behind `descriptor`.

    Raises:
        OperatorError: There is none that can be read (`stick.*`).
        HardwareError: The stick is damaged or does not answer.
    """
    data = read_root_file(DescriptorDevice(descriptor), STICK_FILE, limit=MAX_FILE_BYTES)
    return data.decode("utf-8-sig", errors="replace")


def token_from_stick(path: Path) -> str:
    """The text in `SEH-TOKEN.TXT` on a stick.

    Args:
        path: Block device (`/dev/sdb1`, `/dev/sdb`), or an image of one.

    Raises:
        OperatorError: `path` is neither, may not be opened, or holds no token that can be read.
        HardwareError: The stick is damaged or does not answer.
    """
    try:
        # Without blocking: a path that names a pipe must not hang before it is refused.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_open(path, os.strerror(error.errno or 0)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise _cannot_open(path, "it is neither a device nor an image of one")
        return token_from_descriptor(descriptor)
    finally:
        os.close(descriptor)


def token_from_image(path: Path) -> str:
    """The text of the token's code in a picture.

    Args:
        path: PNG or JPEG, at most 32 MiB.

    Raises:
        OperatorError: It cannot be opened, is no picture, or shows no code of ours.
    """
    from agent.enrolment.qr import parse_picture, tokens_in  # noqa: PLC0415 - an optional library

    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise _cannot_open(path, os.strerror(error.errno or 0)) from error
    if len(data) > MAX_IMAGE_BYTES:
        raise _cannot_open(path, f"it is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    found = tokens_in(parse_picture(data))
    if not found:
        raise OperatorError(
            "code.none_found",
            f"No enrolment code was found in {path}.",
            next_step="Take the picture again: the whole code, flat, sharp, without reflections.",
        )
    if len(found) > 1:
        raise OperatorError(
            "code.several_found",
            f"{path} shows {len(found)} enrolment codes.",
            next_step="Take a picture of the one code that is meant for this box.",
        )
    return found[0]


def token_from_line(stream: TextIO) -> str:
    """One line from a keyboard, or from a scanner that types like one.

    Raises:
        OperatorError: Nothing came (`code.nothing_typed`).
    """
    text = ""
    with suppress(UnicodeDecodeError):
        text = stream.readline(2 * MAX_TOKEN_CHARACTERS)
    if not text.strip():
        raise OperatorError(
            "code.nothing_typed",
            "No token was typed or scanned.",
            next_step="Start again, and scan the code while this waits.",
        )
    return text


def _cannot_open(path: Path, what: str) -> OperatorError:
    return OperatorError(
        "medium.cannot_open",
        f"{path} cannot be read: {what}.",
        next_step="Name the stick's device, its image, or the picture of the code; check that you may read it.",
    )
