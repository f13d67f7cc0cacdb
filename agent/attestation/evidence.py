"""What a key's holder shows to prove that the key lives in hardware; RATS (RFC 9334) calls it evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cbor2

from agent.attestation.reader import malformed
from agent.core.cbor import decode_plain
from agent.statements.roots import KeyKind

MAX_EVIDENCE_BYTES = 2 << 20
_MAX_PARTS = 32


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

    def part(self, name: str) -> bytes:
        """One part.

        Raises:
            PeerProtocolError: It is missing.
        """
        if name not in self.parts:
            raise malformed(f"no {name.replace('_', ' ')}")
        return self.parts[name]


def encode_evidence(evidence: Evidence) -> bytes:
    """Evidence as CBOR; the inverse of `parse_evidence`."""
    fields = {"kind": evidence.kind.value, "public_key": evidence.public_key, "parts": dict(evidence.parts)}
    return cbor2.dumps(fields, canonical=True)


def parse_evidence(data: bytes) -> Evidence:
    """Parse evidence from its CBOR; nothing in it is verified yet.

    Raises:
        PeerProtocolError: The bytes are none, or exceed our limits.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise malformed("more bytes than evidence may have")
    try:
        value = decode_plain(data, max_depth=3, text_keys=True)
    except ValueError as error:
        raise malformed("a form that is not CBOR") from error
    if not isinstance(value, dict) or set(value) != {"kind", "public_key", "parts"}:
        raise malformed("other fields than evidence has")
    return _evidence_from(value)


def _evidence_from(value: dict[str, object]) -> Evidence:
    kind, public_key, parts = value["kind"], value["public_key"], value["parts"]
    if (
        not isinstance(kind, str)
        or kind not in set(KeyKind)
        or not isinstance(public_key, bytes)
        or not isinstance(parts, dict)
    ):
        raise malformed("fields of another type than evidence has")
    if len(parts) > _MAX_PARTS or not all(isinstance(k, str) and isinstance(v, bytes) for k, v in parts.items()):
        raise malformed("parts that are not named byte strings")
    return Evidence(KeyKind(kind), public_key, MappingProxyType(parts))
