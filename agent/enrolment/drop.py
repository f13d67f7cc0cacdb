"""The drop directory: where the reader of sticks, which may do nothing else, leaves what it found for the agent.

What lies there is untrusted: a stick made to break the reader could write it. It holds at most a token, which the agent
verifies as any other, or why there is none.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.core.errors import PeerProtocolError, SecureHealthError
from agent.trust.token import MAX_TOKEN_CHARACTERS

READING_FILE: Final = "stick.json"
MAX_READING_BYTES: Final = 8192
_MODE: Final = 0o640  # the directory's group, which is the agent's, reads it


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text that moves a terminal's cursor")
    return text


_Plain = Annotated[str, AfterValidator(_printable)]


class StickReading(BaseModel):
    """What the reader found on a stick: a token, or a failure as `agent.core.errors` describes one.

    Args:
        token: The token's text; empty where there is none.
        code: Of the failure; empty where there is none.
        sentence: What happened.
        next_step: What to do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    token: Annotated[_Plain, Field(max_length=MAX_TOKEN_CHARACTERS, repr=False)] = ""
    code: Annotated[str, Field(pattern=r"^([a-z0-9_]+\.[a-z0-9_]+)?$", max_length=100)] = ""
    sentence: Annotated[_Plain, Field(max_length=1000)] = ""
    next_step: Annotated[_Plain, Field(max_length=1000)] = ""

    @classmethod
    def of_failure(cls, error: SecureHealthError) -> Self:
        """The reading of a stick that gave no token."""
        return cls(code=error.code, sentence=error.sentence, next_step=error.next_step)


def leave_reading(directory: Path, reading: StickReading) -> None:
    """Put `reading` into `directory`, whole or not at all; it replaces an older one.

    Raises:
        OSError: The directory cannot be written.
    """
    partial = directory / f".{secrets.token_hex(8)}"
    with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, _MODE)) as stream:
        stream.write(reading.model_dump_json().encode())
    partial.replace(directory / READING_FILE)


def take_reading(directory: Path) -> StickReading | None:
    """Take what lies in `directory`, so that nobody takes it twice; None where nothing does.

    Raises:
        PeerProtocolError: It is nothing that our reader writes (`stick.bad_reading`).
    """
    path = directory / READING_FILE
    try:
        # Neither a link elsewhere nor a pipe that never answers is followed.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        _remove(path)
        raise _bad_reading() from error
    try:
        data = os.read(descriptor, MAX_READING_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
        _remove(path)
    try:
        return StickReading.model_validate_json(data)
    except ValidationError as error:
        raise _bad_reading() from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        try:
            path.unlink()
        except IsADirectoryError:
            path.rename(path.with_name(f".{secrets.token_hex(8)}"))  # else no stick would ever be read again


def _bad_reading() -> PeerProtocolError:
    return PeerProtocolError(
        "stick.bad_reading",
        "What the reader of sticks left is not what it writes, so the stick may be hostile.",
        next_step="Do not use that stick again; ask the consortium where it came from.",
    )
