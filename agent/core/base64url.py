"""Bytes in JSON and URLs: base64url (RFC 4648 5) without padding."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")


def encode_bytes(data: bytes) -> str:
    """Bytes as text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_bytes(value: object) -> bytes:
    """The inverse of `encode_bytes`, for text from outside; a pydantic validator.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, str) or not _ALPHABET.fullmatch(value):
        raise ValueError("no base64url")
    try:
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    except binascii.Error as error:
        raise ValueError("no base64url") from error
