"""Serves the repository's files, read only, each as it was when it was opened: some are replaced while others read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse

from agent.core.errors import OperatorError

WHOLE_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 18
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_JSON, _BYTES = "application/json", "application/octet-stream"


def file_routes(directory: Path) -> APIRouter:
    """Routes under /repository/.

    Args:
        directory: Of the repository.
    """
    router = APIRouter(prefix="/repository")

    @router.api_route("/{path:path}", methods=["GET", "HEAD"])
    def file(path: str) -> Response:
        stream = _open(directory, path)
        size = os.fstat(stream.fileno()).st_size
        kind = _JSON if path.endswith(".json") else _BYTES
        if size <= WHOLE_BYTES:
            with stream:
                return Response(stream.read(WHOLE_BYTES), media_type=kind)
        return StreamingResponse(_chunks(stream, size), media_type=kind, headers={"content-length": str(size)})

    return router


def no_such_place() -> OperatorError:
    """There is nothing there."""
    return OperatorError(
        "registrar.no_such_place",
        "The registrar has nothing there.",
        next_step="Use the release that the consortium uses.",
    )


def _open(directory: Path, path: str) -> BinaryIO:
    if not all(map(_PART.fullmatch, path.split("/"))):
        raise no_such_place()
    try:
        descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise no_such_place() from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise no_such_place()
    return os.fdopen(descriptor, "rb")


def _chunks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    with stream:
        while size > 0 and (chunk := stream.read(min(CHUNK_BYTES, size))):
            size -= len(chunk)
            yield chunk
