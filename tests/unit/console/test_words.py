"""The console's languages: nothing lacks a translation, and what is filled in stands in each."""

from __future__ import annotations

import re

import polib
import pytest

from agent.console.words import LANGUAGES, LOCALE, amount, number, preferred, translations
from tests.handbook.messages import Message, messages

OTHERS = [language for language in LANGUAGES if language != "en"]
_FILLED = re.compile(r"%\((\w+)\)s")


def entries(language: str) -> dict[Message, polib.POEntry]:
    found = polib.pofile(str(LOCALE / f"{language}.po"), encoding="utf-8")
    return {(entry.msgid, entry.msgid_plural or None): entry for entry in found}


@pytest.mark.parametrize("language", OTHERS)
def test_no_message_lacks_a_translation_and_none_is_left_over(language: str) -> None:
    found = entries(language)
    assert set(found) == set(messages())
    assert [entry.msgid for entry in found.values() if not entry.translated() or entry.fuzzy] == []


@pytest.mark.parametrize("language", OTHERS)
def test_what_is_filled_in_stands_in_every_translation(language: str) -> None:
    for (text, plural), entry in entries(language).items():
        for form, translated in entry.msgstr_plural.items() if plural else [(0, entry.msgstr)]:
            expected = set(_FILLED.findall(plural if plural and form else text))
            given = set(_FILLED.findall(translated))
            # One may be a word in one language, and a figure in another.
            assert given - {"count"} == expected - {"count"}, (language, translated)
            assert "%" not in _FILLED.sub("", translated)


@pytest.mark.parametrize(
    ("language", "word"), [("de", "Studien"), ("fr", "Études"), ("nl", "Studies"), ("en", "Studies")]
)
def test_each_language_speaks_for_itself(language: str, word: str) -> None:
    assert translations(language).gettext("Studies") == word


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("de-AT,de;q=0.9,en;q=0.5", "de"),
        ("es,fr;q=0.4,nl;q=0.8", "nl"),
        ("*", "en"),
        ("", "en"),
        ("de;q=0, fr;q=0.1", "fr"),
        ("de;q=nan,fr;q=1e9,nl;q=0.2", "nl"),
        ("x" * 100_000, "en"),
    ],
)
def test_the_browser_s_wish_is_heard(header: str, language: str) -> None:
    assert preferred(header) == language


@pytest.mark.parametrize(
    ("value", "language", "text"),
    [
        (1.5, "en", "1.5"),
        (1.5, "de", "1,5"),
        (1234567.0, "fr", "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"),
        (0.0, "nl", "0"),
        (-0.25, "de", "-0,25"),
        (1e-9, "en", "1e-9"),
        (2.0004, "en", "2"),
    ],
)
def test_numbers_are_written_as_the_language_does(value: float, language: str, text: str) -> None:
    assert number(value, language) == text


def test_bytes_have_units() -> None:
    assert [amount(size, "de") for size in (0, 999, 2_412_544, 3 * 10**15)] == [
        "0\N{NO-BREAK SPACE}B",
        "999\N{NO-BREAK SPACE}B",
        "2,4\N{NO-BREAK SPACE}MB",
        "3\N{NARROW NO-BREAK SPACE}000\N{NO-BREAK SPACE}TB",
    ]
