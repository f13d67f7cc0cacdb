"""The box's key: whether it answers, is the one that was enrolled, and proves."""

from __future__ import annotations

from agent.core.errors import HardwareError, OperatorError
from agent.enrolment.record import other_key
from agent.identity.key import PresenceState, open_key
from agent.identity.session import SessionState
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.selftest import check_key


def check(box: Box) -> Finding:
    """Have the key prove, where it does so without a person.

    Raises:
        SecureHealthError: It is missing, another one, or does not prove.
    """
    key = open_key(box.config.key.uri)
    if box.record is not None and box.record.key_id != key.key_id:
        raise other_key(box.record)
    presence = key.presence()
    if presence.state is PresenceState.READY:
        check_key(key)
        return Finding.ok(f"The {key.kind.value} key answers: {presence.device}.")
    away = HardwareError(
        "doctor.key_away",
        f"The {key.kind.value} key does not answer: it is {presence.state.value} ({presence.device}).",
        next_step=presence.next_step or "Put it in.",
    )
    if box.status is not None and box.status.session == SessionState.VALID:
        return Finding.warning(away)  # it vouched already, and need not be there until it has to again
    raise away


def check_session(box: Box) -> Finding:
    """Look whether the key vouches for the running agent.

    Raises:
        OperatorError: A person has to vouch for it.
    """
    status = box.status
    if status is None or not status.session:
        return Finding.not_applicable("No session is kept: the agent does not run, or the box is not enrolled.")
    if status.session == SessionState.VALID:
        return Finding.ok("The box's key vouches for the running agent.")
    due = OperatorError(
        "doctor.session_due",
        f"The box's key has to vouch for the agent anew: {status.session_sentence}",
        next_step="Plug the key in, and run `seh-agent key renew` at the box.",
    )
    if status.session == SessionState.DUE:
        return Finding.warning(due)
    raise due
