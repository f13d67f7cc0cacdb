"""Fingerprints that people compare: eight words, read out on the telephone or held against a sheet.

Eight words of BIP 39's English list are 88 bits: nobody finds a second consortium, or a second box, with the same ones.
"""

from __future__ import annotations

from typing import Final

from mnemonic import Mnemonic

from agent.attestation.binding import digest_of_fields

WORDS: Final = 8
_BITS_PER_WORD: Final = 11  # BIP 39: 2048 words


def consortium_words(root_digest: str) -> str:
    """A consortium's fingerprint.

    Args:
        root_digest: SHA-256 of its first root metadata, hex.
    """
    return _words(b"secur-e-health consortium fingerprint v1", bytes.fromhex(root_digest))


def box_words(ek_name: bytes, key_name: bytes, link_key: bytes) -> str:
    """A box's fingerprint, as the box shows it and its hospital compares it before it endorses the box.

    Args:
        ek_name: Name of the TPM's endorsement key; empty outside a TPM.
        key_name: Name of the node key, as evidence has it (`HardwareKey.evidence_names`).
        link_key: SubjectPublicKeyInfo (DER) of what it authenticates with at the SuperLink.
    """
    return _words(b"secur-e-health box fingerprint v1", ek_name, key_name, link_key)


def same_words(one: str, other: str) -> bool:
    """Whether two fingerprints are the same, however typed: commas, hyphens and capitals count nothing."""
    return _plain(one) == _plain(other)


def _words(label: bytes, *fields: bytes) -> str:
    number = int.from_bytes(digest_of_fields(label, *fields), "big") >> (256 - WORDS * _BITS_PER_WORD)
    words = Mnemonic("english").wordlist
    picks = [number >> (_BITS_PER_WORD * place) & (len(words) - 1) for place in reversed(range(WORDS))]
    return " ".join(words[pick] for pick in picks)


def _plain(text: str) -> list[str]:
    return "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
