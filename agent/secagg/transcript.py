"""Exact bytes: framed fields, labelled digests, keys derived from them. Nothing here is secret by itself.

Every hash and every signed statement takes length-prefixed fields behind a label of its own, so that no two purposes
and no two field boundaries can be confused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

DIGEST_BYTES = 32
KEY_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
"""Stands where there is nothing to hash yet, e.g. the sum before the first."""

_LABEL_PREFIX = "secur-e-health/secagg/1/"
_LENGTH = struct.Struct(">I")
_UINT = struct.Struct(">Q")

Field = bytes | memoryview | str | int


def frame_fields(label: str, *fields: Field) -> bytes:
    """Encode `label` and `fields`: each as u32be length and bytes; text as UTF-8, integers as u64be."""
    parts: list[bytes | memoryview] = []
    for value in (_LABEL_PREFIX + label, *fields):
        data = _field_bytes(value)
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def digest(label: str, *fields: Field) -> bytes:
    """SHA-256 of `frame_fields`, without joining large fields into one copy."""
    state = hashlib.sha256()
    for value in (_LABEL_PREFIX + label, *fields):
        data = _field_bytes(value)
        state.update(_LENGTH.pack(len(data)))
        state.update(data)
    return state.digest()


def digest_list(label: str, items: Iterable[Field]) -> bytes:
    """Digest of a list, its length included."""
    values = tuple(items)
    return digest(label, len(values), *values)


def extract_key(secret: bytes, *, salt: bytes, label: str, fields: Iterable[Field]) -> bytes:
    """HKDF-SHA256 (RFC 5869): extract from `secret` under `salt`, expand under the framed label and fields."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=salt, info=frame_fields(label, *fields)).derive(secret)


def expand_key(key: bytes, label: str, *fields: Field) -> bytes:
    """HKDF-SHA256 expand only (RFC 5869 2.3): a further key from a uniform one."""
    return HKDFExpand(hashes.SHA256(), KEY_BYTES, info=frame_fields(label, *fields)).derive(key)


def _field_bytes(value: Field) -> bytes | memoryview:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return _UINT.pack(value)
    if isinstance(value, memoryview):
        return value.cast("B")
    return value
