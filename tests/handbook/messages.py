"""The console's messages: `python -m tests.handbook.messages` adds to `locale/*.po` what is new, and drops the rest."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import polib
from jinja2 import Environment
from jinja2.ext import extract_from_ast

from agent.console.pages import EXTENSIONS, PAGES
from agent.console.words import LANGUAGES, LOCALE

NAMES = PAGES.with_name("names.py")
PLURALS = {
    "de": "nplurals=2; plural=(n != 1);",
    "fr": "nplurals=2; plural=(n > 1);",
    "nl": "nplurals=2; plural=(n != 1);",
}
Message = tuple[str, str | None]
"""As it stands in the sources, and its plural."""


def messages() -> dict[Message, str]:
    """All messages, each with the first file that says it."""
    found: dict[Message, str] = {}
    for path in sorted(PAGES.glob("*.html")):
        for message in _in_page(path):
            found.setdefault(message, f"pages/{path.name}")
    for node in ast.walk(ast.parse(NAMES.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            (text,) = node.args
            assert isinstance(text, ast.Constant)
            found.setdefault((str(text.value), None), NAMES.name)
    return found


def _in_page(path: Path) -> Iterator[Message]:
    environment = Environment(extensions=EXTENSIONS, autoescape=True)
    environment.policies["ext.i18n.trimmed"] = True
    environment.newstyle_gettext = True  # type: ignore[attr-defined]
    for _, function, text in extract_from_ast(environment.parse(path.read_text(encoding="utf-8"))):
        parts = text if isinstance(text, tuple) else (text,)  # what is filled in stands behind, as None
        singular, plural = parts[0], parts[1] if function == "ngettext" else None
        assert singular is not None
        yield singular, plural


def update(language: str) -> None:
    """Bring one language's file up to date; what is new in it has no translation yet."""
    path = LOCALE / f"{language}.po"
    old = polib.pofile(str(path), encoding="utf-8") if path.exists() else polib.POFile()
    known: dict[Message, polib.POEntry] = {(entry.msgid, entry.msgid_plural or None): entry for entry in old}
    fresh = polib.POFile(wrapwidth=110)
    fresh.metadata = {
        "Language": language,
        "MIME-Version": "1.0",
        "Content-Type": "text/plain; charset=UTF-8",
        "Content-Transfer-Encoding": "8bit",
        "Plural-Forms": PLURALS[language],
    }
    for message, place in messages().items():
        text, plural = message
        before = known.get(message)
        entry = polib.POEntry(msgid=text, occurrences=[(place, "")])
        if plural is None:
            entry.msgstr = before.msgstr if before else ""
        else:
            entry.msgid_plural = plural
            entry.msgstr_plural = dict(before.msgstr_plural) if before else {0: "", 1: ""}
        fresh.append(entry)
    fresh.save(str(path))


def main() -> None:
    """Update all languages."""
    for language in LANGUAGES:
        if language in PLURALS:
            update(language)


if __name__ == "__main__":
    main()
