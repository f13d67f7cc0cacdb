"""Short names that the agent uses, as people read them; each is translated where it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final


def _(text: str) -> str:
    """Marks a message for translation (gettext's own manual, "Special cases")."""
    return text


RULES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "policy": _("The hospital's policy can be read"),
        "site_named": _("The study names this hospital"),
        "not_expired": _("The study has not ended"),
        "requester": _("The hospital admits this requester"),
        "purpose": _("The hospital serves this purpose"),
        "duo_known": _("The terms of use are known here"),
        "duo_permission": _("The data may be used for this"),
        "fields": _("The hospital gives these fields"),
        "schema": _("The data have the form that is needed"),
        "minimum_rows": _("There are enough records"),
        "minimum_cohort": _("Enough hospitals take part"),
        "visa": _("The requester shows the papers asked for"),
        "privacy_bounded": _("The policy allows what results may reveal"),
        "model_digest": _("The model is the one in the study"),
        "dataset_unchanged": _("The data are as they were approved"),
        "approved": _("Stewards have approved"),
        "budget": _("The privacy budget is enough"),
    }
)
"""Rules of the permit; those that are missing here begin with `duo_`: conditions of a data set."""

STATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "waiting": _("Waits for you"),
        "approved": _("Approved"),
        "refused": _("Refused"),
        "withdrawn": _("Withdrawn"),
        "not-permitted": _("Not permitted"),
        "absent": _("No longer here"),
    }
)

LINKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "starting": _("Starting"),
        "waiting": _("Needs help"),
        "waiting for enrolment": _("Not enrolled yet"),
        "enrolling": _("Enrolling"),
        "joining": _("Joining"),
        "online": _("Online"),
        "lost": _("No contact"),
        "stopped": _("Stopped"),
    }
)

OUTCOMES: Final[Mapping[str, str]] = MappingProxyType(
    {"ok": _("In order"), "warn": _("Look at this"), "fail": _("Wrong"), "not applicable": _("Does not apply")}
)

ENTRIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "log-opened": _("Record begun"),
        "agent-started": _("Agent started"),
        "release-installed": _("Software installed"),
        "steward-enrolled": _("Steward's key on record"),
        "permit-decided": _("Permit decided"),
        "approval-given": _("Approval given"),
        "approval-refused": _("Study refused"),
        "approval-withdrawn": _("Approval withdrawn"),
        "budget-reserved": _("Privacy budget reserved"),
        "budget-settled": _("Privacy budget settled"),
        "data-opened": _("Data opened"),
        "update-sent": _("Masked update sent"),
        "message-refused": _("Message refused"),
    }
)
"""Kinds of leaves in the audit log."""

UNITS: Final[Mapping[str, str]] = MappingProxyType(
    {"record": _("each patient record"), "hospital": _("the whole hospital")}
)

ALL: Final = (RULES, STATES, LINKS, OUTCOMES, ENTRIES, UNITS)
