"""A release on trial must leave a state that the release before it can read, as it may be given up.

All releases so far write the same formats, so a trial needs nothing special. The day that one changes, its successor
writes the older format until it is committed, and this file says which formats have one.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.audit import log

AGENT = Path(log.__file__).parents[1]
FORMAT = re.compile(r'"secur-e-health/([a-z0-9-]+)/(\d+)"')


def formats() -> list[tuple[str, int]]:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(AGENT.rglob("*.py")))
    return sorted({(name, int(number)) for name, number in FORMAT.findall(text)})


@pytest.mark.parametrize(("name", "number"), formats())
def test_the_release_before_reads_what_a_trial_writes(name: str, number: int) -> None:
    assert number == 1, f"{name}: how does a release on trial write format {number - 1} until it is committed?"


def test_the_formats_are_found() -> None:
    assert {"enrolment", "pins", "counters", "updater", "steward-counters"} <= {name for name, _ in formats()}


def test_the_release_before_opens_the_audit_log_of_a_trial() -> None:
    assert log._FORMAT == 1
