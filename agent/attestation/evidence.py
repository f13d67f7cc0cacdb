"""What a key's holder shows to prove that the key lives in hardware; RATS (RFC 9334) calls it evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.statements.roots import KeyKind


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence as it travels; each kind of key has its own parts.

    Args:
        kind: What holds the private key.
        public_key: SubjectPublicKeyInfo (DER) of the key that the evidence is about.
        parts: Named byte strings, e.g. `ek_certificate`, `certify_info`; empty where the key can show nothing.
    """

    kind: KeyKind
    public_key: bytes
    parts: Mapping[str, bytes]
