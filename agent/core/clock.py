"""Time as an argument: pure rooms never read a clock of their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a part may ask about time."""

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC; may jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never run backwards."""
        ...


class SystemClock:
    """The operating system's clocks; built once, where the service is wired."""

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC; may jump."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()
