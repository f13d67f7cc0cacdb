"""The clock: whether it agrees with the servers', who refuse what is minutes off."""

from __future__ import annotations

from typing import Final

from agent.core.errors import OperatorError, SecureHealthError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.doctor.probe import shake_hands

REFUSED_S: Final = 240
"""The SuperLink refuses what is 300 s off; nothing is left for the way there."""
NOTICED_S: Final = 30


def check(box: Box) -> Finding:
    """Compare the clock with the newest signed time, and with what the servers say.

    Raises:
        OperatorError: It is minutes off.
    """
    now_s = box.clock.now().timestamp()
    if box.snapshot is not None and now_s < box.snapshot.issued_s:
        raise _wrong(f"it is earlier than what the consortium signed, by {_duration(box.snapshot.issued_s - now_s)}")
    off_s = _difference(box)
    if off_s is None:
        return Finding.not_applicable("No server could be asked for the time.")
    if abs(off_s) >= NOTICED_S:
        wrong = _wrong(f"it is {_duration(abs(off_s))} {'ahead' if off_s > 0 else 'behind'}")
        if abs(off_s) >= REFUSED_S:
            raise wrong
        return Finding.warning(wrong)
    return Finding.ok(f"The clock agrees with the servers' to within {NOTICED_S} s.")


def _difference(box: Box) -> float | None:
    """By how many seconds this clock is ahead of a server's, which is believed for that much."""
    for server in box.servers:
        try:
            shown = shake_hands(server, box.config.network.proxy)
        except SecureHealthError:
            continue  # other checks say so
        if shown.date_s is not None:
            return box.clock.now().timestamp() - shown.date_s
    return None


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _wrong(how: str) -> OperatorError:
    return OperatorError(
        "doctor.clock_wrong",
        f"The clock of this box is wrong: {how}.",
        next_step="Name a time server of the hospital in /etc/systemd/timesyncd.conf (NTP=), and restart the box.",
    )
