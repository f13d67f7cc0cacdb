"""Examinations of the box for the console: made in a thread of their own, as some checks wait for the network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from agent.core.box_view import CheckView, HealthView
from agent.core.clock import Clock
from agent.core.config import AgentConfig
from agent.core.errors import SecureHealthError

FRESH_S: Final = 60.0
"""An examination that is older is made anew when somebody asks."""

Examine = Callable[[], tuple[CheckView, ...]]

log = structlog.get_logger()


@dataclass(slots=True)
class ExaminationDesk:
    """Answers with the last examination, and makes another one meanwhile. Thread-safe.

    Args:
        examine: Makes one.
        clock: The service's.
    """

    examine: Examine
    clock: Clock
    _last: HealthView = field(default_factory=HealthView)
    _ended_s: float = float("-inf")
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self) -> HealthView:
        """The last one; whether another is being made."""
        with self._lock:
            under_way = self._thread is not None and self._thread.is_alive()
            if not under_way and self.clock.monotonic_s() - self._ended_s > FRESH_S:
                self._thread = threading.Thread(target=self._run, name="doctor", daemon=True)
                self._thread.start()
                under_way = True
            return self._last.model_copy(update={"under_way": under_way})

    def _run(self) -> None:
        try:
            checks = self.examine()
        except SecureHealthError as error:
            checks = (CheckView(name="box", outcome="fail", sentence=error.sentence, next_step=error.next_step),)
        except Exception:  # a fault of ours here must not end the agent
            log.exception("examination_broke")
            return
        with self._lock:
            self._last = HealthView(examined_s=int(self.clock.now().timestamp()), checks=checks)
            self._ended_s = self.clock.monotonic_s()


def examiner(config: AgentConfig, clock: Clock) -> Examine:
    """What `seh-agent doctor` looks at, as views."""

    def examine_all() -> tuple[CheckView, ...]:
        from agent.service.doctor.box import open_box  # noqa: PLC0415 - an idle agent need not hold the checks
        from agent.service.doctor.examination import CHECKS, examine  # noqa: PLC0415 - the same

        views = []
        with open_box(config, clock) as box:
            for name, check in CHECKS.items():
                found = examine(box, check)
                views.append(
                    CheckView(
                        name=name,
                        outcome=found.outcome.value,
                        sentence=found.sentence,
                        next_step=found.next_step,
                        code=found.code,
                    )
                )
        return tuple(views)

    return examine_all
