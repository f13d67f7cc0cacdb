"""The key that opens the SuperLink's door for a box.

Flower's node authentication signs a timestamp every few seconds, unattended, over plain bytes. A FIDO2 key signs no
plain bytes, and a card's slots 9A and 9C want a PIN each time; a box with such a key shows the SuperLink a key derived
from its vault instead. Who the box is says its session certificate alone: the door's key speaks for nobody.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity.key import HardwareKey
from agent.identity.vault import Vault

_PURPOSE: Final = "superlink key v1"
_SEED_BYTES: Final = 48
"""128 bits more than the curve's order has: the remainder is uniform to within 2^-128."""


def opens_by_itself(key: HardwareKey) -> bool:
    """Whether the box's own key can open the SuperLink's door: it signs anything, and nobody need be there."""
    return key.capabilities.signs and key.capabilities.unattended


def link_key(key: HardwareKey, vault: Vault) -> ec.EllipticCurvePrivateKey:
    """What signs at the SuperLink: the box's own key where it can, else one on P-256 from the vault, the same for each.

    Args:
        key: The box's.
        vault: The box's.

    Source: FIPS 186-5, A.2.1 (key pair generation with extra random bits).
    """
    if opens_by_itself(key):
        return key.signing_key
    curve = ec.SECP256R1()
    # Another one for the key that takes this one's place: the SuperLink keeps a node's first name for ever.
    seed = int.from_bytes(vault.key_for(f"{_PURPOSE} {key.key_id}", size=_SEED_BYTES), "big")
    return ec.derive_private_key(seed % (curve.group_order - 1) + 1, curve)
