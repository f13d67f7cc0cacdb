"""How much one address, or one token, may ask for: fixed, in memory, and bounded whatever comes."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from agent.core.clock import Clock
from agent.core.errors import NetworkError

MAX_KNOWN: Final = 20_000
MAX_HELD_BYTES: Final = 160 << 20
"""Of all requests' bodies together, however many connections there are: their senders are not known yet."""
MAX_HELD_FROM_ADDRESS_BYTES: Final = 40 << 20


@dataclass(frozen=True, slots=True)
class Rate:
    """How many requests are taken.

    Args:
        burst: At once.
        per_s: A second, after that.
    """

    burst: float
    per_s: float


ADDRESS_RATE: Final = Rate(burst=200, per_s=50)
"""One hospital's boxes and tools often share one address."""
REPOSITORY_RATE: Final = Rate(burst=5000, per_s=500)
"""A box that comes for the first time reads some files of every hospital."""
TOKEN_RATE: Final = Rate(burst=60, per_s=20)
SITE_RATE: Final = Rate(burst=200, per_s=50)
PUBLICATION_RATE: Final = Rate(burst=200, per_s=1 / 60)
"""Of one hospital: every version that it publishes is kept for ever."""
HEARTBEAT_RATE: Final = Rate(burst=10, per_s=1 / 30)
"""Of one box, which sends one every three minutes."""
PAIRING_RATE: Final = Rate(burst=20, per_s=0.1)
"""Of one address: strangers may ask, and so many pairings in all wait at one time."""


class RateLimiter:
    """Token buckets, one a name; the least recently used is forgotten where there are too many.

    Args:
        rate: For each name.
        clock: For time.
    """

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Take one request.

        Raises:
            NetworkError: There were too many (`registrar.too_many`).
        """
        with self._lock:
            now_s = self._clock.monotonic_s()
            level, before_s = self._buckets.pop(name, (self._rate.burst, now_s))
            level = min(self._rate.burst, level + (now_s - before_s) * self._rate.per_s)
            allowed = level >= 1
            self._buckets[name] = (level - 1 if allowed else level, now_s)
            if len(self._buckets) > MAX_KNOWN:
                self._buckets.popitem(last=False)
        if not allowed:
            raise _too_many()


class ByteBudget:
    """How much of requests is held in memory at one time; for one thread."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def share(self, name: str) -> Iterator[Share]:
        """One request's part; given back at the block's end."""
        part = Share(self._held, name)
        try:
            yield part
        finally:
            self._held[name] -= part.size
            if not self._held[name]:
                del self._held[name]


class Share:
    """What one request holds.

    Args:
        held: By address.
        name: Its own.
    """

    def __init__(self, held: Counter[str], name: str) -> None:
        self._held = held
        self._name = name
        self.size = 0

    def take(self, count: int) -> None:
        """Hold so many bytes more.

        Raises:
            NetworkError: That would be too many (`registrar.too_many`).
        """
        if self._held[self._name] + count > MAX_HELD_FROM_ADDRESS_BYTES or self._held.total() + count > MAX_HELD_BYTES:
            raise _too_many()
        self._held[self._name] += count
        self.size += count


def _too_many() -> NetworkError:
    return NetworkError(
        "registrar.too_many",
        "Too many requests come from there.",
        next_step="Wait a little, and try again.",
    )


def address_name(host: str) -> str:
    """What is counted as one address: IPv6 hosts get a whole /64 each (RFC 6177 2)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
