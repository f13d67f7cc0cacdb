"""What the slot tool remembers, and every step that it may take from there.

state.json: `{"state": {...}, "mac": "<hex>"}`. The MAC is made with the tool's secret, so nobody but root writes one;
the generation follows a counter in the TPM (`agent.update.floor`), so that an old one that is put back is found out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Self

from agent.core.errors import OperatorError

MAX_STATE_BYTES: Final = 4096
TRIES: Final = 3
"""Starts that a release on trial gets."""


class SlotName(StrEnum):
    """One of the two places for a payload."""

    A = "a"
    B = "b"

    @property
    def other(self) -> SlotName:
        """The one beside it."""
        return SlotName.B if self is SlotName.A else SlotName.A


class Phase(StrEnum):
    """Where an update stands."""

    STEADY = "steady"  # the good slot runs; the other one is empty or holds an older release
    STAGED = "staged"  # the good slot runs; the other one holds a newer release that waits for its turn
    TRIAL = "trial"  # the other slot runs, and must show that it is well


class Event(StrEnum):
    """What can happen to it."""

    STAGE = "stage"  # a release is whole in the other slot
    DROP = "drop"  # what was staged is to be overwritten
    SWITCH = "switch"  # the staged release takes over, on trial
    TRY = "try"  # a release on trial is started
    COMMIT = "commit"  # it was well for long enough
    FAIL = "fail"  # it was not, or had no tries left
    ROLLBACK = "rollback"  # a person wants the older release again
    REPLACE = "replace"  # the good slot is damaged, the other one is not


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a step leads.

    Args:
        phase: Afterwards.
        flips: Whether the other slot is the good one afterwards.
    """

    phase: Phase
    flips: bool = False


TRANSITIONS: Final = MappingProxyType(
    {
        (Phase.STEADY, Event.STAGE): Outcome(Phase.STAGED),
        (Phase.STEADY, Event.ROLLBACK): Outcome(Phase.STEADY, flips=True),
        (Phase.STEADY, Event.REPLACE): Outcome(Phase.STEADY, flips=True),
        (Phase.STAGED, Event.DROP): Outcome(Phase.STEADY),
        (Phase.STAGED, Event.SWITCH): Outcome(Phase.TRIAL),
        (Phase.STAGED, Event.REPLACE): Outcome(Phase.STEADY, flips=True),
        (Phase.TRIAL, Event.TRY): Outcome(Phase.TRIAL),
        (Phase.TRIAL, Event.COMMIT): Outcome(Phase.STEADY, flips=True),
        (Phase.TRIAL, Event.FAIL): Outcome(Phase.STEADY),
    }
)
"""Every step that there is."""


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered.

    Args:
        generation: Which writing of the state this is.
        floor: The lowest security epoch that may run here.
        good: The slot to which a failure leads back.
        phase: Where an update stands.
        tries_left: Starts that the release on trial still has.
        needs: Checks that the release on trial must pass, as the one before it did.
        window: When the staged release may take over (`agent.update.window`); None for at once.
        failed: Version of the release that was last given up here.
    """

    generation: int
    floor: int
    good: SlotName
    phase: Phase = Phase.STEADY
    tries_left: int = 0
    needs: tuple[str, ...] = ()
    window: str | None = None
    failed: str | None = None

    @property
    def active(self) -> SlotName:
        """The slot that runs."""
        return self.good.other if self.phase is Phase.TRIAL else self.good

    def after(self, event: Event, **changes: Any) -> Self:  # noqa: ANN401 - a field's value each
        """The state after a step.

        Args:
            event: The step.
            changes: Fields that it sets beside.

        Raises:
            OperatorError: There is no such step from here (`update.wrong_step`).
        """
        outcome = TRANSITIONS.get((self.phase, event))
        if outcome is None:
            raise OperatorError(
                "update.wrong_step",
                f"In the state {self.phase.value!r} there is no step {event.value!r}.",
                next_step="Look at `seh-slot status`; an update that is under way ends by itself.",
            )
        good = self.good.other if outcome.flips else self.good
        return replace(self, phase=outcome.phase, good=good, **changes)


def encode_state(state: State, secret: bytes) -> bytes:
    """What state.json holds.

    Args:
        state: The state.
        secret: (32,), the tool's.
    """
    fields = asdict(state)
    return json.dumps({"state": fields, "mac": _mac(fields, secret)}, indent=1).encode() + b"\n"


def parse_state(data: bytes, secret: bytes) -> State:
    """Parse and authenticate what `encode_state` gave.

    Raises:
        ValueError: It is something else, or somebody else wrote it.
    """
    if len(data) > MAX_STATE_BYTES:
        raise ValueError("it is larger than a state may be")
    try:
        fields = json.loads(data)
        authentic = hmac.compare_digest(_mac(fields["state"], secret), str(fields["mac"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is no state") from error
    if not authentic:
        raise ValueError("somebody else wrote it")
    state = State(**fields["state"])
    return replace(state, good=SlotName(state.good), phase=Phase(state.phase), needs=tuple(state.needs))


def derive(secret: bytes, purpose: bytes) -> bytes:
    """A key of its own for each purpose: (32,)."""
    return hmac.digest(secret, b"secur-e-health slot " + purpose, hashlib.sha256)


def _mac(fields: dict[str, Any], secret: bytes) -> str:
    body = json.dumps(fields, sort_keys=True).encode()
    return hmac.digest(derive(secret, b"state"), body, hashlib.sha256).hex()
