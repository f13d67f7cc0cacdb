"""A node's secrets of one attempt, and the masked input that is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from agent.secagg.attempt import Attempt, Randomness
from agent.secagg.dealing import HeldShares, deal_shares, share_commitment
from agent.secagg.exchange import RunKey, pair_seed, seal_share, seed_commitment, self_commitment
from agent.secagg.holder import OpenedShares, sealed_digest
from agent.secagg.masking import Mask, add_masks
from agent.secagg.messages import MaskedInputReply, UploadHeader
from agent.secagg.transcript import KEY_BYTES, NO_DIGEST, digest

Words = npt.NDArray[np.uint64]


class RoundSecrets:
    """What unmasks this node's input, alone or with the others' shares; in memory only, without a representation.

    Args:
        site: Our own.
        roots: Pairwise roots by peer.
        seeds: By site of the cohort: b_i in our own place, else s_ij.
    """

    __slots__ = ("locked", "opened", "own_shares", "roots", "seeds", "site", "survivors")

    def __init__(self, site: str, roots: Mapping[str, bytes], seeds: Mapping[str, bytes]) -> None:
        self.site = site
        self.roots = roots
        self.seeds = seeds
        self.own_shares = HeldShares(site, {})
        self.opened = OpenedShares((), ())
        self.survivors: frozenset[str] = frozenset()
        self.locked = b""

    def __repr__(self) -> str:
        return "RoundSecrets(...)"

    @classmethod
    def derive(
        cls,
        key: RunKey,
        attempt: Attempt,
        *,
        site: str,
        peer_keys: Mapping[str, bytes],
        study: bytes,
        self_seed: bytes,
    ) -> RoundSecrets:
        """Derive roots and seeds of an attempt.

        Args:
            key: Ours, of this run.
            attempt: What was accepted.
            site: Our own.
            peer_keys: Checked X25519 public keys by site.
            study: The study's digest.
            self_seed: b_i, 32 fresh uniform bytes.

        Raises:
            PeerProtocolError: A key is of low order.
        """
        peers = [peer for peer in attempt.cohort if peer != site]
        roots = key.roots(site, {peer: peer_keys[peer] for peer in peers}, bundles=attempt.bundles, study=study)
        seeds = {peer: pair_seed(roots[peer], attempt.context, site, peer) for peer in peers}
        return cls(site, roots, {**seeds, site: self_seed})

    def masks(self) -> list[Mask]:
        """The self mask, and one mask a pair: added by the site that sorts first, subtracted by the other."""
        return [Mask(seed, subtract=peer < self.site) for peer, seed in self.seeds.items()]

    def hold(self, opened: OpenedShares, survivors: Sequence[UploadHeader], locked: bytes) -> None:
        """Keep what leg 3 may reveal, for exactly these survivors."""
        self.opened = opened
        self.survivors = frozenset(upload.site for upload in survivors)
        self.locked = locked


def mask_input(
    vector: Words, secrets: RoundSecrets, attempt: Attempt, *, randomness: Randomness, workers: int
) -> MaskedInputReply:
    """Mask an encoded vector in place, deal the seeds out, and describe both; the signature is still empty.

    Args:
        vector: Shape (total_words,), uint64; becomes the payload without a copy.
        secrets: Of the attempt.
        attempt: What was accepted.
        randomness: Secure random bytes.
        workers: Threads of the mask engine.
    """
    add_masks(vector, secrets.masks(), workers=workers)
    site, context, cohort = secrets.site, attempt.context, attempt.cohort
    seeds = {slot: secrets.seeds[slot] for slot in attempt.slots(site)}
    coefficients = randomness((attempt.threshold - 1) * len(seeds) * KEY_BYTES)
    dealt = deal_shares(seeds, dealer=site, holders=len(cohort), threshold=attempt.threshold, coefficients=coefficients)
    entries, sealed, commitments = [], [], []
    for holder, shares in zip(cohort, dealt, strict=True):
        commitment = share_commitment(context, site, holder, shares.self_share, shares.rest)
        if holder == site:
            secrets.own_shares = shares
            entries += [NO_DIGEST, commitment]
            commitments.append(NO_DIGEST)
            continue
        ciphertext = seal_share(secrets.roots[holder], context, site, holder, shares.plaintext)
        sealed.append(ciphertext)
        entries += [sealed_digest(ciphertext), commitment]
        commitments.append(seed_commitment(context, site, holder, secrets.seeds[holder]))
    payload = vector.view(np.uint8).data
    seed_commitments = b"".join(commitments)
    upload = UploadHeader(
        site=site,
        masked=masked_digest(context, payload),
        commitment=self_commitment(context, site, secrets.seeds[site]),
        entries=b"".join(entries),
        seeds=seeds_digest(seed_commitments),
        signature=b"",
    )
    return MaskedInputReply(context, upload, seed_commitments, b"".join(sealed), payload)


def masked_digest(context: bytes, payload: bytes | memoryview) -> bytes:
    """Stands for a masked vector in what its hospital signs."""
    return digest("masked", context, payload)


def seeds_digest(seed_commitments: bytes) -> bytes:
    """Stands for all seed commitments of one hospital in what it signs."""
    return digest("seed-commitments", seed_commitments)
