"""Shares of one hospital's seeds for all hospitals of its cohort, with commitments that tell who lied.

A dealer i shares, for each holder j, one 32-byte slot per hospital k of the cohort, in the cohort's order: slot k is a
share of the pairwise seed s_ik, slot i a share of the self seed b_i. What j reveals later is checked against what i
signed: a wrong share convicts its holder, right shares that recover a wrong seed convict the dealer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.secagg.shamir import split_secret
from agent.secagg.transcript import KEY_BYTES, digest

_SLOT_PREFIX = b"secur-e-health/secagg/1/slot"


@dataclass(frozen=True, slots=True)
class HeldShares:
    """What one holder has of one dealer: a slot per hospital of the cohort.

    Args:
        dealer: Whose seeds they are shares of.
        slots: len(cohort) shares of 32 bytes, in the cohort's order; never shown.
    """

    dealer: str
    slots: tuple[bytes, ...] = field(repr=False)

    def self_share(self, cohort: Sequence[str]) -> bytes:
        """The share of b_i."""
        return self.slots[cohort.index(self.dealer)]

    def rest(self, cohort: Sequence[str]) -> bytes:
        """Digest that stands for all slots but the self seed's."""
        return rest_digest(slot_digest(share) for share in _without(self.slots, cohort.index(self.dealer)))


def deal_shares(
    seeds: Mapping[str, bytes], *, dealer: str, cohort: Sequence[str], threshold: int, coefficients: bytes
) -> tuple[HeldShares, ...]:
    """Share a dealer's seeds out.

    Args:
        seeds: For each hospital of the cohort the seed of its slot: b_i for the dealer, else s_ik.
        dealer: Our own site.
        cohort: All sites, sorted.
        threshold: T.
        coefficients: (T - 1) * n * 32 fresh uniform bytes.

    Returns:
        One entry per hospital, in the cohort's order.
    """
    secret = b"".join(seeds[site] for site in cohort)
    rows = split_secret(secret, threshold=threshold, shares=len(cohort), coefficients=coefficients)
    return tuple(HeldShares(dealer, cut_slots(row.tobytes())) for row in rows)


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


def _without(slots: tuple[bytes, ...], index: int) -> tuple[bytes, ...]:
    return slots[:index] + slots[index + 1 :]
