"""What evidence is bound to: one hash over the whole exchange, so that a proof relayed into another one fails."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exchange:
    """One asking for evidence. Both sides know it; neither takes it from the other unchecked.

    Args:
        label: What the evidence is for, with a version: `enrolment v1`, `endorsement v1`.
        asker_key: Key id (hex) of who asks: the registrar, or the site's endorsing tool.
        consortium: Digest (hex) of the pinned trust root.
        token: Id of the enrolment token; empty where none is used.
        site: The hospital.
        nonce: (32,), the asker's, fresh.
    """

    label: str
    asker_key: str
    consortium: str
    token: str
    site: str
    nonce: bytes

    def qualifying_data(self, ek_name: bytes, key_name: bytes) -> bytes:
        """What every attestation in this exchange carries: SHA-256, (32,).

        Args:
            ek_name: Name of the endorsement key; empty for keys outside a TPM.
            key_name: Name of the node key (a TPM's name for it, or else its key id).
        """
        return digest_of_fields(
            b"secur-e-health evidence binding v1",
            self.label.encode(),
            self.asker_key.encode(),
            self.consortium.encode(),
            self.token.encode(),
            self.site.encode(),
            ek_name,
            key_name,
            self.nonce,
        )


def digest_of_fields(label: bytes, *fields: bytes) -> bytes:
    """SHA-256 over several fields: (32,).

    Args:
        label: What the digest is for, with a version.
        fields: Its contents, of any length.
    """
    # Lengths before contents, so that no byte can move from one field to the next.
    return hashlib.sha256(b"".join(struct.pack(">I", len(field)) + field for field in (label, *fields))).digest()
