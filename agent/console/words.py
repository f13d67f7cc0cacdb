"""The console's languages: what people read, by gettext, from `locale/`; English stands in the sources."""

from __future__ import annotations

import gettext
import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import polib

LOCALE: Final = Path(__file__).with_name("locale")
LANGUAGES: Final[Mapping[str, str]] = MappingProxyType(
    {"en": "English", "de": "Deutsch", "fr": "Français", "nl": "Nederlands"}
)
"""Each by its own name; the first stands in the sources."""
_SOURCE: Final = "en"
_MAX_HEADER: Final = 200
_DECIMAL: Final[Mapping[str, str]] = MappingProxyType({"en": "."})
_GROUP: Final = "\N{NARROW NO-BREAK SPACE}"
"""Between thousands, in all languages (SI Brochure, 5.4.4)."""


@cache
def translations(language: str) -> gettext.NullTranslations:
    """The messages of a language.

    Args:
        language: One of `LANGUAGES`.
    """
    if language == _SOURCE:
        return gettext.NullTranslations()
    messages = polib.pofile(str(LOCALE / f"{language}.po"), encoding="utf-8")
    return gettext.GNUTranslations(io.BytesIO(messages.to_binary()))


def preferred(header: str) -> str:
    """The language that a browser asks for (RFC 9110 12.5.4), else English.

    Args:
        header: Accept-Language.
    """
    wishes: list[tuple[float, str]] = []
    for part in header[:_MAX_HEADER].split(","):
        tag, _, weight = part.strip().partition(";q=")
        if re.fullmatch(r"0|1|0?\.\d+|1\.0+", weight or "1"):
            wishes.append((-float(weight or "1"), tag.partition("-")[0].lower()))
    return next(
        (tag for weight, tag in sorted(wishes, key=lambda wish: wish[0]) if weight and tag in LANGUAGES), _SOURCE
    )


def number(value: float, language: str, digits: int = 3) -> str:
    """A number for reading, with at most so many digits after the point.

    Args:
        value: Finite.
        language: Sets the decimal mark.
        digits: After it; trailing zeros are left out.
    """
    whole, _, rest = f"{value:.{digits}f}".partition(".")
    rest = rest.rstrip("0")
    if not rest and value and not float(whole):
        return f"{value:.0e}".replace("e-0", "e-")
    grouped = f"{int(whole):,}".replace(",", _GROUP)
    sign = "-" if value < 0 and not grouped.startswith("-") else ""
    return sign + grouped + (_DECIMAL.get(language, ",") + rest if rest else "")


def amount(count: int, language: str) -> str:
    """Bytes for reading, in decimal prefixes."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{number(size, language, 1)}\N{NO-BREAK SPACE}{unit}"
