"""The hospital's maintenance window: when a box may change over to another release. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time
from typing import Final

_FORM: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day, each day, in the box's own time zone; it may pass midnight.

    Args:
        start: From when.
        end: Until when, exclusive.
    """

    start: time
    end: time

    def holds(self, now: datetime) -> bool:
        """Whether `now`, in the box's own time zone, lies inside."""
        moment = now.time().replace(tzinfo=None)
        if self.start < self.end:
            return self.start <= moment < self.end
        return moment >= self.start or moment < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def parse_window(text: str) -> Window:
    """Parse `02:00-05:00`.

    Raises:
        ValueError: It is something else, or of no length.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError("a window is written as 02:00-05:00")
    start, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
    if start == end:
        raise ValueError("a window that ends when it begins is none")
    return Window(start, end)
