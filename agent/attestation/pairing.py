"""What a box without a camera shows, and a technician types on a telephone: a short code over box and registrar.

The registrar commits to its nonce before it learns the box's, so neither of them, nor anybody between them, can look
for nonces that give a wished-for code: 40 bits, one attempt, five minutes.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from agent.attestation.binding import digest_of_fields

NONCE_BYTES: Final = 32
CODE_BYTES: Final = 5
_CODE_LABEL: Final = b"secur-e-health pairing code v1"
_COMMITMENT_LABEL: Final = b"secur-e-health pairing commitment v1"
_CONFUSED: Final = str.maketrans("018", "OIB")  # none of the three is in the alphabet (RFC 4648 6)


def commitment(registrar_nonce: bytes) -> bytes:
    """What the registrar says of its nonce beforehand: (32,)."""
    return hashlib.sha256(_COMMITMENT_LABEL + registrar_nonce).digest()


def pairing_code(ek_name: bytes, key_name: bytes, link_key: bytes, *, registrar_nonce: bytes, box_nonce: bytes) -> str:
    """The code: eight letters and digits.

    Args:
        ek_name: Name of the TPM's endorsement key; empty outside a TPM.
        key_name: Name of the box's key, as evidence has it.
        link_key: SubjectPublicKeyInfo (DER) of what the box authenticates with at the SuperLink.
        registrar_nonce: (32,), committed to first.
        box_nonce: (32,).
    """
    digest = digest_of_fields(_CODE_LABEL, ek_name, key_name, link_key, registrar_nonce, box_nonce)
    return base64.b32encode(digest[:CODE_BYTES]).decode("ascii")


def plain_code(typed: str) -> str:
    """A code as typed, in the one form in which codes are compared."""
    return "".join(letter for letter in typed.upper().translate(_CONFUSED) if letter.isalnum())
