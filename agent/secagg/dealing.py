"""Shares of one hospital's seeds for all hospitals of its cohort, with commitments that tell who lied.

A dealer i shares, for each holder j, 32-byte slots: slot i is a share of its self seed b_i; where a part of the cohort
may be summed, slot k is a share of the pairwise seed s_ik, in the cohort's order. What j reveals later is checked
against what i signed: a wrong share convicts its holder, right shares of a wrong seed convict the dealer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.secagg.shamir import split_secret
from agent.secagg.transcript import KEY_BYTES, digest

_SLOT_PREFIX = b"secur-e-health/secagg/1/slot"


@dataclass(frozen=True, slots=True)
class HeldShares:
    """What one holder has of one dealer.

    Args:
        dealer: Whose seeds they are shares of.
        slots: By site, in the cohort's order, a share of 32 bytes; never shown.
    """

    dealer: str
    slots: Mapping[str, bytes] = field(repr=False)

    @property
    def self_share(self) -> bytes:
        """The share of b_i."""
        return self.slots[self.dealer]

    @property
    def rest(self) -> bytes:
        """Digest that stands for all slots but the self seed's."""
        return rest_digest(slot_digest(share) for site, share in self.slots.items() if site != self.dealer)

    @property
    def plaintext(self) -> bytes:
        """All slots, as they are sealed."""
        return b"".join(self.slots.values())


def deal_shares(
    seeds: Mapping[str, bytes], *, dealer: str, holders: int, threshold: int, coefficients: bytes
) -> tuple[HeldShares, ...]:
    """Share a dealer's seeds out.

    Args:
        seeds: By site, in the cohort's order, the seed of its slot: b_i for the dealer, else s_ik.
        dealer: Our own site.
        holders: n.
        threshold: T.
        coefficients: (T - 1) * len(seeds) * 32 fresh uniform bytes.

    Returns:
        One entry per hospital, in the cohort's order.
    """
    secret = b"".join(seeds.values())
    rows = split_secret(secret, threshold=threshold, shares=holders, coefficients=coefficients)
    return tuple(HeldShares(dealer, dict(zip(seeds, cut_slots(row.tobytes()), strict=True))) for row in rows)


def cut_slots(plaintext: bytes) -> tuple[bytes, ...]:
    """Cut a run of slots into its 32-byte shares."""
    return tuple(plaintext[start : start + KEY_BYTES] for start in range(0, len(plaintext), KEY_BYTES))


def slot_digest(share: bytes) -> bytes:
    """Stands for one slot that stays hidden; its place in the list is its meaning."""
    return hashlib.sha256(_SLOT_PREFIX + share).digest()


def rest_digest(slot_digests: Iterable[bytes]) -> bytes:
    """Stands for the slots of all pairwise seeds, in the cohort's order."""
    return digest("slots", b"".join(slot_digests))


def share_commitment(context: bytes, dealer: str, holder: str, self_share: bytes, rest: bytes) -> bytes:
    """What the dealer signs about a holder's shares: the share of b_i, and the digest of the rest."""
    return digest("share-commitment", context, dealer, holder, self_share, rest)
