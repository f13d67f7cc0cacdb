"""What browsers load beside a page."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Final

from starlette.responses import Response

PASSKEYS: Final = Path(__file__).with_name("passkeys.js")
"""How pages speak with security keys; loaded before the script of the page's own."""
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
)


def assets(directory: Path, *names: str) -> Mapping[str, Path]:
    """The files that pages load, by the names that they have there.

    Args:
        directory: Of the room's own.
        names: Of the room's own.
    """
    return MappingProxyType({name: directory / name for name in names} | {PASSKEYS.name: PASSKEYS})


def asset_answer(file: Path | None, headers: Mapping[str, str] | None = None) -> Response:
    """A file as browsers load it.

    Args:
        file: One that pages load; None where it was asked for another.
        headers: Of the answer.
    """
    if file is None:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    return Response(file.read_bytes(), media_type=_TYPES[file.suffix], headers=headers)
