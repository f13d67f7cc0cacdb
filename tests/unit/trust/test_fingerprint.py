"""Words that people compare."""

from __future__ import annotations

import hashlib

import pytest

from agent.trust.fingerprint import WORDS, box_words, consortium_words, same_words

ROOT = hashlib.sha256(b"root").hexdigest()


def test_a_consortium_has_eight_words_always_the_same() -> None:
    words = consortium_words(ROOT)
    assert len(words.split()) == WORDS
    assert words == consortium_words(ROOT)


def test_words_change_with_every_bit_that_they_are_of() -> None:
    seen = {box_words(b"ek", b"key", b"link"), box_words(b"ekk", b"ey", b"link"), box_words(b"", b"ekkey", b"link")}
    seen |= {box_words(b"ek", b"kez", b"link"), box_words(b"ek", b"keyl", b"ink"), box_words(b"ek", b"key", b"lini")}
    assert len(seen) == 6


def test_a_box_is_never_taken_for_a_consortium() -> None:
    assert box_words(b"", bytes.fromhex(ROOT), b"") != consortium_words(ROOT)


@pytest.mark.parametrize("typed", ["{}", " {}\n", "{upper}", "{commas}", "{hyphens}"])
def test_people_may_type_them_as_they_like(typed: str) -> None:
    words = consortium_words(ROOT)
    text = typed.format(words, upper=words.upper(), commas=words.replace(" ", ", "), hyphens=words.replace(" ", "-"))
    assert same_words(words, text)


def test_one_other_word_is_another_fingerprint() -> None:
    words = consortium_words(ROOT).split()
    assert not same_words(" ".join(words), " ".join(words[:-1]))
    assert not same_words(" ".join(words), " ".join(reversed(words)))
