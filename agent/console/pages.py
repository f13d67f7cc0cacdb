"""Pages in the reader's language: Jinja2 templates from `pages/`, everything in them escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, JSONResponse, Response

from agent.console.asked import Asked
from agent.console.names import ENTRIES, LINKS, OUTCOMES, RULES, STATES, UNITS
from agent.console.words import LANGUAGES, amount, number, translations
from agent.core.config import ConsoleSection
from agent.core.errors import Fault, SecureHealthError

PAGES: Final = Path(__file__).with_name("pages")
EXTENSIONS: Final = ("jinja2.ext.i18n",)
_STATUS_FOR_FAULT: Final[Mapping[Fault, HTTPStatus]] = MappingProxyType(
    {
        Fault.OPERATOR: HTTPStatus.CONFLICT,
        Fault.PEER: HTTPStatus.UNPROCESSABLE_ENTITY,
        Fault.NETWORK: HTTPStatus.SERVICE_UNAVAILABLE,
        Fault.HARDWARE: HTTPStatus.SERVICE_UNAVAILABLE,
        Fault.SOFTWARE: HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)
_STATUS: Final[Mapping[str, HTTPStatus]] = MappingProxyType(
    {
        "console.stale_page": HTTPStatus.FORBIDDEN,
        "console.key_refused": HTTPStatus.FORBIDDEN,
        "console.bad_form": HTTPStatus.BAD_REQUEST,
        "console.no_such_page": HTTPStatus.NOT_FOUND,
    }
)
_DIGEST_GROUP: Final = 8


class Pages:
    """Renders.

    Args:
        settings: Of the console.
    """

    def __init__(self, settings: ConsoleSection) -> None:
        self._settings = settings
        self._environments = {language: _environment(language) for language in LANGUAGES}

    def page(self, name: str, asked: Asked, status: HTTPStatus = HTTPStatus.OK, **content: object) -> Response:
        """A page.

        Args:
            name: Of the template, without its ending.
            asked: Whom it answers.
            status: Of the answer.
            content: What it shows.
        """
        text = (
            self._environments[asked.language]
            .get_template(f"{name}.html")
            .render(asked=asked, door=not self._settings.on_loopback, languages=LANGUAGES, **content)
        )
        return HTMLResponse(text, status, headers={"vary": "accept-language, cookie"})

    def failure(self, error: SecureHealthError, asked: Asked) -> Response:
        """A failure as a page."""
        return self.page("error", asked, status_of(error), error=error)


def failure_json(error: SecureHealthError) -> Response:
    """A failure as scripts read it."""
    content = {"code": error.code, "sentence": error.sentence, "next_step": error.next_step}
    return JSONResponse(content, status_of(error))


def status_of(error: SecureHealthError) -> HTTPStatus:
    """The HTTP status of a failure."""
    return _STATUS.get(error.code, _STATUS_FOR_FAULT[error.fault])


@cache
def _environment(language: str) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=EXTENSIONS,
    )
    words = translations(language)
    environment.install_gettext_translations(words, newstyle=True)  # type: ignore[attr-defined]
    environment.policies["ext.i18n.trimmed"] = True

    def named(table: Mapping[str, str]) -> Any:  # noqa: ANN401 - a filter, as Jinja2 takes it
        return lambda name: words.gettext(table[name]) if name in table else name

    environment.filters |= {
        "utc": _utc,
        "iso": lambda at_s: datetime.fromtimestamp(at_s, UTC).isoformat(),
        "number": lambda value, digits=3: number(value, language, digits),
        "amount": lambda count: amount(count, language),
        "digest": _grouped,
        "compact": lambda content: json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1),
        "rule": named(RULES),
        "state": named(STATES),
        "link": named(LINKS),
        "outcome": named(OUTCOMES),
        "entry": named(ENTRIES),
        "unit": named(UNITS),
    }
    return environment


def _utc(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"


def _grouped(digest: str) -> str:
    """Hex in groups that people can compare."""
    return " ".join(digest[start : start + _DIGEST_GROUP] for start in range(0, len(digest), _DIGEST_GROUP))
