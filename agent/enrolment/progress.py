"""What an enrolment tells the person who waits for it, in plain words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """Where an enrolment stands; in this order, where nothing has to be done again."""

    TOKEN = "token"  # noqa: S105 - the step's name
    CONSORTIUM = "consortium"
    REGISTRAR = "registrar"
    SITE = "site"
    RECORD = "record"
    ENROLLED = "enrolled"


@dataclass(frozen=True, slots=True)
class Progress:
    """One piece of news.

    Args:
        step: Where the enrolment stands.
        sentence: What happens now.
        next_step: What a person should do; empty where nothing.
        trouble: Code of what is in the way; empty where nothing is. The enrolment goes on trying by itself.
    """

    step: Step
    sentence: str
    next_step: str = ""
    trouble: str = ""


Tell = Callable[[Progress], None]
"""Told of every piece of news, from the thread that enrols."""
