"""Whether a release on trial is well: what the agent says of itself, held against the clock. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

MAX_HEALTH_BYTES: Final = 16 << 10
_CHECKS: Final = ("agent", "key", "superlink", "self_test")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a trial takes, in seconds since it was started in this boot.

    Args:
        ready_s: Within which the agent must be ready.
        well_s: How long it must be well without a break.
        deadline_s: Within which that must be so.
    """

    ready_s: int = 20
    well_s: int = 60
    deadline_s: int = 900


@dataclass(frozen=True, slots=True)
class Health:
    """What the agent says of itself (health.json), in this boot: the file lies in memory.

    Args:
        version: Of the release that speaks.
        pid: Its process.
        checks: `agent`, `key`, `superlink`, `self_test`: well or not; None while it is not known.
    """

    version: str
    pid: int
    checks: Mapping[str, bool | None]


@dataclass(frozen=True, slots=True)
class Watch:
    """How a trial went so far in this boot; kept in memory only.

    Args:
        started_s: When the release was first started, on the clock since boot.
        pid: Which process is well; 0 for none.
        well_since_s: Since when.
    """

    started_s: int
    pid: int = 0
    well_since_s: int = 0


class Verdict(StrEnum):
    """What is to be done about a release on trial."""

    WAIT = "wait"
    COMMIT = "commit"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict.

    Args:
        verdict: What is to be done.
        reason: Why, in plain words.
        watch: How the trial went so far.
        again: Whether a release that is given up may be tried again unasked: nothing was missing but somebody else's
            server, which could keep every box from it for good by being away for as long as a trial takes.
    """

    verdict: Verdict
    reason: str
    watch: Watch
    again: bool = False


def parse_health(data: bytes) -> Health:
    """Parse health.json, which whoever runs as the agent can write.

    Raises:
        ValueError: It is something else.
    """
    if len(data) > MAX_HEALTH_BYTES:
        raise ValueError("it is larger than a report may be")
    try:
        match json.loads(data):
            case {"version": str(version), "pid": int(pid), "checks": dict(checks)}:
                known = {name: checks.get(name) for name in _CHECKS}
                if not all(value is None or isinstance(value, bool) for value in known.values()):
                    raise ValueError("a check is neither well nor not")
                return Health(version, pid, known)
            case _:
                raise ValueError("it is no report")
    except RecursionError as error:
        raise ValueError("it is no report") from error


def judge(health: Health | None, watch: Watch, *, now_s: int, needs: Collection[str], limits: Limits) -> Judgement:
    """Judge a release on trial.

    Args:
        health: What it says of itself in this boot; None while it says nothing.
        watch: How its trial went so far.
        now_s: On the clock since boot.
        needs: Checks that it must pass beside being up: those that the release before it passed, as else an outage of
            the hospital's network, or a key that lies in a drawer, would undo good releases.
        limits: How long things may take.
    """
    elapsed_s = now_s - watch.started_s
    checks = dict.fromkeys(_CHECKS) if health is None else health.checks
    if checks["self_test"] is False:
        return Judgement(Verdict.FAIL, "it failed its own test", watch)
    if not checks["agent"] and elapsed_s >= limits.ready_s:
        return Judgement(Verdict.FAIL, f"it was not ready within {limits.ready_s} s", watch)
    missing = [name for name in _CHECKS if (name == "agent" or name in needs) and not checks[name]]
    if health is None or missing:
        watch = replace(watch, pid=0)
    elif watch.pid != health.pid:
        watch = replace(watch, pid=health.pid, well_since_s=now_s)
    if watch.pid and now_s - watch.well_since_s >= limits.well_s:
        return Judgement(Verdict.COMMIT, f"it was well for {limits.well_s} s", watch)
    if "key" in missing and checks["key"] is False and elapsed_s >= limits.ready_s:
        return Judgement(Verdict.FAIL, "it cannot use the box's key, which the release before it could", watch)
    if elapsed_s >= limits.deadline_s:
        reason = f"it was not well within {limits.deadline_s} s"
        return Judgement(Verdict.FAIL, reason, watch, again=set(missing) <= {"superlink"})
    reason = f"these are not known to be well yet: {', '.join(missing)}" if missing else "it is well, for now"
    return Judgement(Verdict.WAIT, reason, watch)
