"""CBOR (RFC 8949) from strangers: one value, no tags, nothing of indefinite length, no key twice."""

from __future__ import annotations

import io
from collections.abc import Callable

import cbor2


def decode_plain(data: bytes, *, max_depth: int, text_keys: bool) -> object:
    """Decode exactly one value.

    Args:
        data: No more bytes than the caller ever takes in.
        max_depth: How deep it may be nested.
        text_keys: Whether maps may have keys of text and bytes only; without it, `data` has to be short.

    Raises:
        ValueError: It is something else, or bytes follow it.
    """
    stream = io.BytesIO(data)
    try:
        value: object = cbor2.load(
            stream,
            semantic_decoders=_NoTags(),
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=text_keys,
        )
    except cbor2.CBORDecodeError as error:
        raise ValueError("not CBOR") from error
    if stream.tell() != len(data):
        raise ValueError("bytes after the value")
    return value


def _refuse_tag(_: object, __: bool) -> object:
    raise ValueError("tags are not taken")


class _NoTags(dict[int, Callable[[object, bool], object]]):
    """Refuses every CBOR tag: they build dates, patterns, references, cycles and numbers without bounds."""

    def __missing__(self, tag: int) -> Callable[[object, bool], object]:
        return _refuse_tag
