"""Somebody at the box: answers for PIN and touch, and remembers what was asked, never what was answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from typing_extensions import override

from agent.identity.key import Person


@dataclass
class Technician(Person):
    """Knows one PIN.

    Args:
        pin: What is typed when a PIN is asked for.
        new_pin: What is chosen as a new one.
        insists: Whether the last attempt is risked.
        on_touch: What the hands do when a touch is asked for.
        asked: Attempts left, as shown with each question for a PIN.
        touches: How often a touch was asked for.
    """

    pin: str = "246813"
    new_pin: str = "246813"
    insists: bool = False
    on_touch: Callable[[], object] = lambda: None
    asked: list[int | None] = field(default_factory=list)
    touches: int = 0

    @property
    @override
    def risks_last_attempt(self) -> bool:
        return self.insists

    @override
    def ask_new_pin(self, device: str) -> str:
        return self.new_pin

    @override
    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        self.asked.append(attempts_remaining)
        return self.pin

    @override
    def ask_touch(self, device: str) -> None:
        self.touches += 1
        self.on_touch()
