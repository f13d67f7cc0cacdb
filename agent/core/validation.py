"""What is wrong with a file, in plain words, from pydantic's findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import ValidationError

from agent.core.ids import IDENTIFIER_PATTERN

ADDRESS_PATTERN: Final = r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
"""host:port; an IPv6 host stands in brackets."""

_FIRST = 1
_FORMS: Mapping[str, str] = MappingProxyType(
    {
        IDENTIFIER_PATTERN: "use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end",
        ADDRESS_PATTERN: "write host:port, such as example.org:8443",
    }
)
"""What the patterns that people meet ask for."""
_PLAIN: Mapping[str, Callable[[Mapping[str, Any]], str]] = MappingProxyType(
    {
        "missing": lambda _: "it is missing",
        "extra_forbidden": lambda _: "there is no such section or field",
        "json_invalid": lambda context: f"it is no JSON: {context.get('error', '')}",
        "value_error": lambda context: str(context.get("error", "it does not fit")),
        "string_pattern_mismatch": lambda context: _FORMS.get(
            str(context.get("pattern")), f"it does not have the form {context.get('pattern')}"
        ),
    }
)
"""By pydantic's error type; every other type speaks in pydantic's own words, which are plain enough."""


def explain_invalid(error: ValidationError, *, whole: str, within: tuple[str, ...] = ()) -> str:
    """The first fault, where it is, and how many more there are.

    Args:
        error: What pydantic found.
        whole: What the file is called where no field is at fault ("study").
        within: Where in the file the checked part stands.
    """
    found = error.errors(include_url=False, include_input=False)
    first = found[0]
    where = ".".join(_plain(str(part)) for part in (*within, *first["loc"])) or whole
    say = _PLAIN.get(first["type"])
    what = say(first.get("ctx", {})) if say else first["msg"]
    more = f" (and {len(found) - _FIRST} more)" if len(found) > _FIRST else ""
    return f"{where}: {what}{more}"


def _plain(name: str) -> str:
    """A field's name, which a stranger may have chosen, as it may go to a terminal: no control character."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)[:100]
