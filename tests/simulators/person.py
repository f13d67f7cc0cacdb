"""Somebody at the box: answers for PIN and touch, and remembers what was asked, never what was answered."""

from __future__ import annotations

import gc
import weakref
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


class WatchedPIN(str):
    """A PIN whose death can be watched."""

    __slots__ = ("__weakref__",)


@dataclass
class WatchedTechnician(Technician):
    """Knows one PIN, and afterwards whether anybody still holds what was typed."""

    typed: list[weakref.ref[WatchedPIN]] = field(default_factory=list)

    @override
    def ask_pin(self, device: str, *, attempts_remaining: int | None) -> str:
        pin = WatchedPIN(super().ask_pin(device, attempts_remaining=attempts_remaining))
        self.typed.append(weakref.ref(pin))
        return pin

    @property
    def held(self) -> int:
        """How many of the PINs that were typed are still in memory."""
        gc.collect()
        return sum(reference() is not None for reference in self.typed)
