"""Evidence that a key is in its holder's hands now, for hardware whose certificates are bound to no moment."""

from __future__ import annotations

from agent.attestation.evidence import Evidence
from agent.statements.envelope import Proof
from agent.statements.roots import RootKey, verify_proof

POSSESSION_TYPE = "application/vnd.secur-e-health.possession.v1"
"""Payload type of the qualifying data, so that the signature can be taken for no statement."""


def verify_possession(evidence: Evidence, root: RootKey, qualifying_data: bytes) -> int:
    """Verify that the key signed `qualifying_data` for this very purpose.

    Args:
        evidence: With the part `possession`.
        root: The key that the evidence is about, with its terms.
        qualifying_data: (32,), made by the verifier for this evidence.

    Returns:
        The signature counter of a FIDO2 key; 0 for other kinds.

    Raises:
        PeerProtocolError: It did not.
    """
    signature = evidence.parts.get("possession", b"")
    return verify_proof(Proof(POSSESSION_TYPE, qualifying_data, root.key_id, signature), root)
