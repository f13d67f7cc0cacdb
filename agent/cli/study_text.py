"""A study in plain words, for a terminal; what strangers wrote passes without control characters."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from agent.core.box_view import ApprovalView, StudyLine, StudyView
from agent.identity.session import utc

WIDTH: Final = 100
_STATES: Final = {
    "waiting": "waits for a steward",
    "approved": "approved",
    "refused": "refused by a steward",
    "withdrawn": "approval withdrawn",
    "not-permitted": "not permitted",
    "absent": "no longer here",
}


def plain(text: str) -> str:
    """Text from outside, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def state_of(line: StudyLine) -> str:
    """How a study stands, in a few words."""
    state = _STATES[line.state]
    if line.state == "not-permitted" and line.rule:
        state += f" (rule {line.rule})"
    return f"{state}, running" if line.running else state


def describe(view: StudyView) -> str:
    """All that a steward must know, line by line."""
    return "\n".join(_lines(view))


def bound_of(view: StudyView) -> str:
    """What results may tell about one record, or one hospital."""
    if view.epsilon is None:
        return (
            "NOT BOUNDED: nothing limits what the sums and the finished model tell about this hospital or a patient. "
            "The budget counts it as unbounded."
        )
    whom = "one patient's record" if view.unit == "record" else "this hospital"
    return f"bounded: epsilon {view.epsilon:g}, delta {view.delta:g}, over the whole study, for {whom}"


def _lines(view: StudyView) -> Iterator[str]:
    line = view.line
    yield f"{line.study}: {plain(line.title)}"
    yield f"  {state_of(line)}; {_approvals_needed(view)}"
    yield from _entry("Asked by", plain(line.requester))
    yield from _entry("Purpose", plain(view.purpose))
    if view.legal_basis:
        yield from _entry("Legal basis", plain(view.legal_basis))
    if view.duo:
        yield from _entry("Use (DUO)", plain(", ".join(view.duo)))
    yield from _entry("Data set", f"{line.dataset or 'none here fits'}; at least {view.minimum_rows} patients")
    yield from _entry("Reads", _listed(view.fields, view.field_count))
    yield from _entry("Learns", plain(view.label))
    hospitals = _listed(view.sites, view.site_count)
    yield from _entry("Hospitals", f"{hospitals}; never fewer than {view.minimum_sites} in a sum")
    yield from _entry("Privacy", bound_of(view))
    if view.dropout == "continue":
        accepted = "; to approve is to ACCEPT that" if view.accept_differencing else ""
        yield from _entry(
            "Beware",
            "rounds go on without a silent hospital: two sums that differ by one hospital can show that hospital's "
            f"change and size{accepted}",
        )
    yield from _entry("Rounds", f"{view.rounds}, until {utc(line.expires_s)}")
    yield from _entry("SHA-256", line.study_digest)
    for finding in view.findings:
        if not finding.passed:
            yield from _entry("Against it", f"{plain(finding.sentence)} [{finding.rule}]")
    for approval in view.approvals:
        yield from _entry(f"Approval {approval.sequence}", approval_line(approval))


def approval_line(approval: ApprovalView) -> str:
    """An approval in a line."""
    state = f"does not count: {plain(approval.trouble)}" if approval.trouble else "counts"
    return f"by {approval.steward}, {utc(approval.given_s)}, until {utc(approval.not_after_s)}; {state}"


def _approvals_needed(view: StudyView) -> str:
    return "one steward must approve" if view.approvals_needed == 1 else f"{view.approvals_needed} people must approve"


def _entry(label: str, text: str) -> list[str]:
    start = f"  {label + ':':14}"
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start]


def _listed(names: tuple[str, ...], count: int) -> str:
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return plain(", ".join(names)) + more
