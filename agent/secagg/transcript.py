"""Exact bytes: framed fields, labelled digests, keys derived from them. Nothing here is secret by itself.

Every hash and every signed statement takes length-prefixed fields behind a label of its own, so that no two purposes
and no two field boundaries can be confused.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from functools import lru_cache

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
    parts: list[bytes | memoryview] = [_frame_label(label)]
    for value in fields:
        data = value if isinstance(value, bytes) else _field_bytes(value)
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def digest(label: str, *fields: Field) -> bytes:
    """SHA-256 of `frame_fields`."""
    if not any(isinstance(value, memoryview) for value in fields):
        return hashlib.sha256(frame_fields(label, *fields)).digest()
    # Vectors come as views: they are hashed where they stand.
    state = hashlib.sha256(_frame_label(label))
    for value in fields:
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


@lru_cache(maxsize=64)
def _frame_label(label: str) -> bytes:
    data = (_LABEL_PREFIX + label).encode()
    return _LENGTH.pack(len(data)) + data


def _field_bytes(value: Field) -> bytes | memoryview:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return _UINT.pack(value)
    if isinstance(value, memoryview):
        return value.cast("B")
    return value
