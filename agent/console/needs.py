"""What needs a person, most pressing first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from agent.core.box_view import AuditView, HealthView, StateView, StewardView, StudyLine

Kind = Literal["key", "trouble", "blocked", "no-steward", "offered", "studies", "check"]


@dataclass(frozen=True, slots=True)
class Need:
    """One thing to do.

    Args:
        kind: What it is about.
        sentence: The agent's own, in English; empty where the page says it.
        next_step: Likewise.
        count: How many of them.
    """

    kind: Kind
    sentence: str = ""
    next_step: str = ""
    count: int = 0


def needs_of(
    state: StateView,
    audit: AuditView | None,
    stewards: Iterable[StewardView],
    studies: Iterable[StudyLine],
    health: HealthView,
) -> tuple[Need, ...]:
    """What a person should do.

    Args:
        state: Of the agent.
        audit: The log; None where the box keeps none.
        stewards: Their keys.
        studies: All of them.
        health: The last examination.
    """
    needs: list[Need] = []
    if state.session_next_step:
        needs.append(Need("key", state.session_sentence, state.session_next_step))
    if state.trouble:
        needs.append(Need("trouble", state.sentence, state.next_step))
    if audit is not None and audit.blocked:
        needs.append(Need("blocked", audit.blocked))
    known = tuple(stewards)
    if not any(steward.endorsed for steward in known):
        needs.append(Need("no-steward"))
    offered = sum(not steward.endorsed for steward in known)
    if offered:
        needs.append(Need("offered", count=offered))
    waiting = sum(line.state == "waiting" for line in studies)
    if waiting:
        needs.append(Need("studies", count=waiting))
    needs += [Need("check", each.sentence, each.next_step) for each in health.checks if each.outcome == "fail"]
    return tuple(needs)
