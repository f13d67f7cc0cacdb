"""Fields of a message that came off the wire: taken as exactly one type, within our limits, or refused.

Every function raises `PeerProtocolError` (`refusals.malformed`) and converts nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TypeVar

from agent.secagg import refusals
from agent.secagg.terms import MAX_SITES

Header = Mapping[str, object]
Value = TypeVar("Value")


def check_keys(header: Header, *names: str) -> None:
    """Check that a header has exactly these fields."""
    if header.keys() != set(names):
        raise refusals.malformed("fields that do not belong to it, or are missing")


def check_empty(payload: bytes | memoryview) -> None:
    """Check that a message carries no vector."""
    if len(payload):
        raise refusals.malformed("a payload where none belongs")


def take_bytes(value: object, shortest: int, longest: int | None = None) -> bytes:
    """Bytes of `shortest` to `longest` (by default exactly `shortest`) length."""
    if type(value) is not bytes or not shortest <= len(value) <= (shortest if longest is None else longest):
        raise refusals.malformed("a field of the wrong type or length")
    return value


def take_text(value: object) -> str:
    """A name of 1 to 63 characters."""
    if type(value) is not str or not 1 <= len(value) <= 63:
        raise refusals.malformed("a name of the wrong type or length")
    return value


def take_int(value: object) -> int:
    """An integer in 0..2^31 - 1; a boolean is none."""
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise refusals.malformed("a number of the wrong type or size")
    return value


def take_list(value: object, longest: int) -> list[object]:
    """A list of at most `longest` items."""
    if type(value) is not list or len(value) > longest:
        raise refusals.malformed("a list of the wrong type or length")
    return value


def take_fields(value: object, count: int) -> list[object]:
    """A list of exactly `count` items."""
    fields = take_list(value, count)
    if len(fields) != count:
        raise refusals.malformed("an entry with fields missing")
    return fields


def take_sorted(value: object, parse: Callable[[object], Value], site: Callable[[Value], str]) -> tuple[Value, ...]:
    """A list by site, strictly rising: no hospital twice, one order only."""
    items = tuple(parse(item) for item in take_list(value, MAX_SITES))
    names = [site(item) for item in items]
    for before, after in itertools.pairwise(names):
        if before == after:
            raise refusals.duplicate_site(after)
        if before > after:
            raise refusals.malformed("hospitals that are not sorted by name")
    return items
