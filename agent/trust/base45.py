"""Base45 (RFC 9285): bytes in the 45 characters that a QR code packs into 5.5 bits each."""

from __future__ import annotations

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}


def encode_base45(data: bytes) -> str:
    """Encode: two bytes become three characters, a last single one two."""
    parts = []
    for at in range(0, len(data), 2):
        pair = data[at : at + 2]
        number = int.from_bytes(pair, "big")
        for _ in range(len(pair) + 1):
            number, digit = divmod(number, 45)
            parts.append(_ALPHABET[digit])
    return "".join(parts)


def decode_base45(text: str) -> bytes:
    """Decode; the inverse of `encode_base45`.

    Raises:
        ValueError: A character of another alphabet, or a group that stands for no bytes.
    """
    parts = []
    for at in range(0, len(text), 3):
        group = text[at : at + 3]
        if len(group) == 1 or not _VALUES.keys() >= set(group):
            raise ValueError("not base45")
        number = sum(_VALUES[character] * 45**place for place, character in enumerate(group))
        if number >= 1 << 8 * (len(group) - 1):
            raise ValueError("not base45")
        parts.append(number.to_bytes(len(group) - 1, "big"))
    return b"".join(parts)
