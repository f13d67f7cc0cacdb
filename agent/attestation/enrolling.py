"""What box, registrar and hospital must name alike when a box enrols."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

ENROLMENT_LABEL: Final = "enrolment v1"
"""Label of the exchange (`agent.attestation.binding`) in which the registrar asks."""
ENDORSEMENT_LABEL: Final = "endorsement v1"
"""Label of the exchange in which the hospital's own tool asks."""
_PROOF_LABEL: Final = b"secur-e-health token proof v1"


def token_proof(site_secret: bytes, qualifying_data: bytes, link_key: bytes) -> bytes:
    """What shows the hospital's tool that whoever answers its exchange holds the token itself: (32,).

    Args:
        site_secret: (32,), derived from the token; the registrar never learns it.
        qualifying_data: (32,), of the hospital's own exchange.
        link_key: SubjectPublicKeyInfo (DER) of what the box authenticates with at the SuperLink: no evidence is about
            it, and who carries the proof must not put another in its place.
    """
    return hmac.digest(site_secret, _PROOF_LABEL + qualifying_data + link_key, hashlib.sha256)
