"""Something that is done every so often, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

STOP_LIMIT_S: Final = 0.5
"""How long an act under way may delay the agent's end; its own limits end it later."""


class Periodic:
    """Acts again and again for as long as the `with` block lasts.

    Args:
        name: The thread's.
        act: What is done; handles its own failures, as one that raises ends the thread.
        every_s: The wait between two acts.
        first_s: The wait before the first, where it is the shorter.
        stretch: A factor for each wait, so that many boxes do not fall into step.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[], None],
        *,
        every_s: float,
        first_s: float,
        stretch: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._act = act
        self._every_s = every_s
        self._first_s = first_s
        self._stretch = stretch
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        wait_s = min(self._first_s, self._every_s)
        while not self._stop.wait(wait_s * self._stretch()):
            self._act()
            wait_s = self._every_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(STOP_LIMIT_S)
