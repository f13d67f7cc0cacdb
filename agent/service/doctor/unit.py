"""The agent's unit: whether the agent runs, is well by its own account, and passed its self-test."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Final

from agent.core.errors import OperatorError, SoftwareError
from agent.service.doctor.box import Box
from agent.service.doctor.finding import Finding
from agent.service.health import HEALTH_NAME
from agent.service.state import not_running

MAX_HEALTH_BYTES: Final = 16 << 10
UNIT_STATE: Final = "SEH_UNIT_STATE"
"""What `systemctl show` says of the unit, which the packaged `seh-agent` asks: the release itself sees no systemd."""


def check(box: Box, *, environment: Mapping[str, str] = os.environ) -> Finding:
    """Look at the agent's lock, its status, its report, and what the service manager says.

    Args:
        box: The box.
        environment: `SEH_UNIT_STATE` is read.

    Raises:
        OperatorError: No agent runs.
        SoftwareError: It is not well, or ends by itself.
    """
    if box.status is None:
        state = dict(word.partition("=")[::2] for word in environment.get(UNIT_STATE, "").split())
        if state.get("Result", "success") != "success":
            raise SoftwareError(
                "doctor.unit_failed",
                f"The agent's unit is {state.get('ActiveState', 'down')}: it ended with {state['Result'][:40]}, "
                f"and was started anew {state.get('NRestarts', '0')[:10]} times.",
                next_step="`journalctl -u seh-agent -e` shows why; mend what the other lines say first.",
            )
        raise not_running()
    report = _report(box)
    checks = report.get("checks")
    if isinstance(checks, dict) and (checks.get("agent") is False or checks.get("self_test") is False):
        raise SoftwareError(
            "doctor.agent_unwell",
            f"The agent runs, and says of itself that it is not well: {report.get('sentence') or 'its loop hangs'}.",
            next_step="`systemctl restart seh-agent`; if it stays so, report it with `journalctl -u seh-agent`.",
        )
    if box.status.trouble:
        return Finding.warning(
            OperatorError(
                "doctor.agent_waits",
                f"The agent runs, and waits: {box.status.sentence} [{box.status.trouble}]",
                next_step=box.status.next_step or "Wait: it tries again by itself.",
            )
        )
    return Finding.ok(f"The agent runs ({box.status.line}){_release(report)}.")


def _report(box: Box) -> dict[str, object]:
    """What the agent says of itself; nothing where it runs outside its unit."""
    try:
        with (box.runtime / HEALTH_NAME).open("rb") as stream:
            report = json.loads(stream.read(MAX_HEALTH_BYTES))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _release(report: dict[str, object]) -> str:
    return f", release {report['version']}" if isinstance(report.get("version"), str) else ""
