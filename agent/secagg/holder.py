"""A holder's shares of other hospitals' seeds: opened, checked against what the dealers signed, revealed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.secagg.dealing import HeldShares, cut_slots, share_commitment, slot_digest
from agent.secagg.exchange import open_share
from agent.secagg.messages import RelayedUpload, Revelation
from agent.secagg.rules import revealed_slots, vanished_sites
from agent.secagg.transcript import KEY_BYTES, NO_DIGEST

if TYPE_CHECKING:
    from agent.secagg.attempt import Attempt
    from agent.secagg.round_secrets import RoundSecrets

_SEALED_PREFIX = b"secur-e-health/secagg/1/sealed"


@dataclass(frozen=True, slots=True)
class OpenedShares:
    """What a holder found in the survivors' sealed shares.

    Args:
        held: Usable ones, in the survivors' order.
        complaints: Dealers whose shares do not open, or are not what the dealer signed.
    """

    held: tuple[HeldShares, ...] = field(repr=False)
    complaints: tuple[str, ...]


def sealed_digest(ciphertext: bytes) -> bytes:
    """What a dealer signs about a sealed share; round, dealer and holder follow from where it stands."""
    return hashlib.sha256(_SEALED_PREFIX + ciphertext).digest()


def is_share_unaltered(relayed: RelayedUpload, attempt: Attempt, *, holder: str) -> bool:
    """Whether a relayed share is the one that its dealer signed; our own comes without one."""
    dealer = relayed.upload.site
    expected, _ = relayed.upload.entry(attempt.cohort.index(holder))
    if dealer == holder:
        return not relayed.share and expected == NO_DIGEST
    return sealed_digest(relayed.share) == expected


def open_held_shares(secrets: RoundSecrets, attempt: Attempt, survivors: Sequence[RelayedUpload]) -> OpenedShares:
    """Open the survivors' shares; what cannot be used becomes a complaint, never an error."""
    held, complaints = [], []
    for relayed in survivors:
        shares = _open_one(secrets, attempt, relayed)
        if shares is None:
            complaints.append(relayed.upload.site)
        else:
            held.append(shares)
    return OpenedShares(tuple(held), tuple(complaints))


def reveal_complete(opened: OpenedShares) -> Revelation:
    """Shares of every self seed, where the whole cohort survived."""
    return Revelation(
        complaints=opened.complaints,
        self_shares=b"".join(held.self_share for held in opened.held),
        rests=b"".join(held.rest for held in opened.held),
    )


def reveal_partial(secrets: RoundSecrets, attempt: Attempt) -> Revelation:
    """Shares of the survivors' self seeds, and all that removes their masks with the vanished."""
    vanished = vanished_sites(attempt.cohort, secrets.survivors)
    pair_shares, hidden = [], []
    for held in secrets.opened.held:
        shown = revealed_slots(attempt.cohort, secrets.survivors, held.dealer)
        for site, share in held.slots.items():
            if site not in shown:
                hidden.append(slot_digest(share))
            elif site != held.dealer:
                pair_shares.append(share)
    return Revelation(
        complaints=secrets.opened.complaints,
        self_shares=b"".join(held.self_share for held in secrets.opened.held),
        pair_shares=b"".join(pair_shares),
        slot_digests=b"".join(hidden),
        own_seeds=b"".join(secrets.seeds[site] for site in vanished),
    )


def _open_one(secrets: RoundSecrets, attempt: Attempt, relayed: RelayedUpload) -> HeldShares | None:
    dealer, holder = relayed.upload.site, secrets.site
    if dealer == holder:
        return secrets.own_shares
    plaintext = open_share(secrets.roots[dealer], attempt.context, dealer, holder, relayed.share)
    slots = attempt.slots(dealer)
    if plaintext is None or len(plaintext) != len(slots) * KEY_BYTES:
        return None
    held = HeldShares(dealer, dict(zip(slots, cut_slots(plaintext), strict=True)))
    commitment = share_commitment(attempt.context, dealer, holder, held.self_share, held.rest)
    return held if commitment == relayed.upload.entry(attempt.cohort.index(holder))[1] else None
