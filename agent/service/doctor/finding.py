"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from agent.core.errors import Fault, SecureHealthError


class Outcome(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the agent needs, and how it is.

    Args:
        outcome: How it is.
        sentence: What was found, in plain words.
        fault: Whose fault it is, where something is wrong.
        next_step: What to do about it.
        code: Stable; empty where nothing is wrong.
    """

    outcome: Outcome
    sentence: str
    fault: Fault | None = None
    next_step: str = ""
    code: str = ""

    @classmethod
    def ok(cls, sentence: str) -> Self:
        """All is well."""
        return cls(Outcome.OK, sentence)

    @classmethod
    def not_applicable(cls, sentence: str) -> Self:
        """This box has no such thing, or cannot have it yet."""
        return cls(Outcome.NOT_APPLICABLE, sentence)

    @classmethod
    def warning(cls, error: SecureHealthError) -> Self:
        """It works, and somebody should look at it."""
        return cls(Outcome.WARN, error.sentence, error.fault, error.next_step, error.code)

    @classmethod
    def failure(cls, error: SecureHealthError) -> Self:
        """It does not work."""
        return cls(Outcome.FAIL, error.sentence, error.fault, error.next_step, error.code)
