"""Identifiers as they appear in statements, paths and messages."""

from __future__ import annotations

import re
from typing import Annotated, NewType

from pydantic import StringConstraints

from agent.core.errors import OperatorError

IDENTIFIER_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
"""A DNS label (RFC 1035 2.3.1, digits first allowed): safe in paths, URLs and certificates."""

StudyID = NewType("StudyID", str)
SiteID = NewType("SiteID", str)
DatasetID = NewType("DatasetID", str)

IdentifierText = Annotated[str, StringConstraints(pattern=IDENTIFIER_PATTERN)]


def check_identifier(text: str, *, kind: str) -> str:
    """Return `text` if it is a valid identifier.

    Args:
        text: The candidate.
        kind: What it names, for the sentence ("site", "study").

    Raises:
        OperatorError: It is not 1 to 63 lower-case letters, digits and inner hyphens.
    """
    if not re.fullmatch(IDENTIFIER_PATTERN, text):
        raise OperatorError(
            "core.bad_identifier",
            f"{text[:80]!r} cannot name a {kind}.",
            next_step="Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end.",
        )
    return text
