"""How long to wait: between polls that find nothing, and between attempts that fail."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

JITTER = 0.2


def _jittered(seconds: float, dice: random.Random) -> float:
    return seconds * dice.uniform(1 - JITTER, 1 + JITTER)


@dataclass(slots=True)
class PollPace:
    """Polls fast inside a round and slowly when idle.

    The wait is a tenth of the time since the last message, within bounds: whatever a round's length, polling adds at
    most about a tenth to it, and a quiet night costs the SuperLink next to nothing.

    Args:
        fast_s: Least wait.
        idle_s: Greatest wait.
        dice: Source of jitter, so that nodes do not fall into step.
    """

    fast_s: float
    idle_s: float
    dice: random.Random = field(repr=False)
    _last_message_s: float = float("-inf")

    def message_at(self, now_s: float) -> None:
        """Note that a message came, or was answered, at `now_s` (monotonic)."""
        self._last_message_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next poll."""
        quiet_s = now_s - self._last_message_s
        return _jittered(min(max(quiet_s / 10, self.fast_s), self.idle_s), self.dice)


@dataclass(slots=True)
class Backoff:
    """Waits that double from `first_s` to `cap_s`, with jitter, until `reset`."""

    first_s: float
    cap_s: float
    dice: random.Random = field(repr=False)
    failures: int = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        # Beyond 2**20 the cap has long been reached; the exponent must not grow for ever.
        wait_s = min(self.first_s * 2.0 ** min(self.failures, 20), self.cap_s)
        self.failures += 1
        return _jittered(wait_s, self.dice)

    def reset(self) -> None:
        """Start over: something worked."""
        self.failures = 0
