"""Seeds recovered from what hospitals revealed, and the name of whoever lied.

Honest runs take the short way: T shares, one interpolation, one comparison with the dealer's commitment. Only where
that fails is every share compared with what its dealer signed about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.core.errors import PeerProtocolError
from agent.secagg import refusals
from agent.secagg.attempt import Attempt
from agent.secagg.dealing import cut_slots, rest_digest, share_commitment, slot_digest
from agent.secagg.exchange import seed_commitment, self_commitment
from agent.secagg.masking import Mask
from agent.secagg.messages import MaskedInputReply, Revelation
from agent.secagg.shamir import combine_shares
from agent.secagg.transcript import DIGEST_BYTES, KEY_BYTES


@dataclass(frozen=True, slots=True)
class RevealedRow:
    """What one holder revealed of one dealer.

    Args:
        self_share: Share of b_i.
        pair_shares: By vanished hospital d, the share of s_id.
        hidden: Digests of the slots not revealed, by site; in a whole cohort None, and `rest` stands for them.
        rest: Their digest, in a whole cohort.
    """

    self_share: bytes = field(repr=False)
    pair_shares: Mapping[str, bytes] = field(repr=False)
    hidden: Mapping[str, bytes] | None
    rest: bytes

    def commitment(self, attempt: Attempt, dealer: str, holder: str) -> bytes:
        """What the dealer must have signed, if this row is what it dealt."""
        rest = self.rest
        if self.hidden is not None:
            others = (site for site in attempt.cohort if site != dealer)
            rest = rest_digest(
                self.hidden[site] if site in self.hidden else slot_digest(self.pair_shares[site]) for site in others
            )
        return share_commitment(attempt.context, dealer, holder, self.self_share, rest)


@dataclass(frozen=True, slots=True)
class Revealed:
    """One hospital's revelation, cut into rows.

    Args:
        rows: By dealer.
        complaints: Dealers whose shares it could not use.
        own_seeds: By vanished hospital d, its own s_jd.
    """

    rows: Mapping[str, RevealedRow] = field(repr=False)
    complaints: tuple[str, ...]
    own_seeds: Mapping[str, bytes] = field(repr=False)


def cut_revelation(revelation: Revelation, attempt: Attempt, survivors: Sequence[str], *, site: str) -> Revealed:
    """Cut a revelation into rows by dealer.

    Args:
        revelation: As parsed.
        attempt: Its attempt.
        survivors: Sites of U, sorted.
        site: Who sent it.

    Raises:
        PeerProtocolError: Its lengths or names do not fit the survivors.
    """
    dealers = [dealer for dealer in survivors if dealer not in revelation.complaints]
    if len(dealers) + len(revelation.complaints) != len(survivors) or site in revelation.complaints:
        raise refusals.malformed(f"complaints of {site} about hospitals that did not deal")
    vanished = [other for other in attempt.cohort if other not in survivors]
    hidden = len(survivors) - 1 if vanished else 0
    sizes = {
        "self shares": (revelation.self_shares, len(dealers)),
        "rests": (revelation.rests, 0 if vanished else len(dealers)),
        "pair shares": (revelation.pair_shares, len(dealers) * len(vanished)),
        "slot digests": (revelation.slot_digests, len(dealers) * hidden),
        "own seeds": (revelation.own_seeds, len(vanished)),
    }
    for name, (blob, count) in sizes.items():
        if len(blob) != count * KEY_BYTES:
            raise refusals.malformed(f"{name} of {site} that do not fit the survivors")
    return Revealed(
        _cut_rows(revelation, dealers, survivors, vanished),
        revelation.complaints,
        dict(zip(vanished, cut_slots(revelation.own_seeds), strict=True)),
    )


def _cut_rows(
    revelation: Revelation, dealers: Sequence[str], survivors: Sequence[str], vanished: Sequence[str]
) -> dict[str, RevealedRow]:
    pair_bytes, hidden_bytes = len(vanished) * KEY_BYTES, (len(survivors) - 1) * DIGEST_BYTES
    rows = {}
    for index, dealer in enumerate(dealers):
        pairs = cut_slots(revelation.pair_shares[index * pair_bytes : (index + 1) * pair_bytes])
        digests = cut_slots(revelation.slot_digests[index * hidden_bytes : (index + 1) * hidden_bytes])
        others = [site for site in survivors if site != dealer]
        rows[dealer] = RevealedRow(
            self_share=revelation.self_shares[index * KEY_BYTES : (index + 1) * KEY_BYTES],
            pair_shares=dict(zip(vanished, pairs, strict=True)),
            hidden=dict(zip(others, digests, strict=True)) if vanished else None,
            rest=revelation.rests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES],
        )
    return rows


class Unmasking:
    """Recovers the seeds of a sum over survivors.

    Args:
        attempt: Which attempt.
        uploads: By survivor.
        revealed: By hospital that answered.
        colluders: c.
    """

    def __init__(
        self,
        attempt: Attempt,
        uploads: Mapping[str, MaskedInputReply],
        revealed: Mapping[str, Revealed],
        *,
        colluders: int,
    ) -> None:
        self._attempt = attempt
        self._uploads = uploads
        self._revealed = dict(revealed)
        self._colluders = colluders
        self._index = {site: index for index, site in enumerate(attempt.cohort)}
        self.blamed: list[PeerProtocolError] = []

    def masks(self) -> list[Mask]:
        """The masks that must be added to the sum of the uploads to leave the sum of the inputs.

        Raises:
            PeerProtocolError: Too few shares arrived, or a dealer lied.
        """
        self._judge_complaints()
        masks = [Mask(seed, subtract=True) for seed in self._self_seeds().values()]
        for site in self._uploads:
            for gone in self._attempt.cohort:
                if gone not in self._uploads:
                    # The survivor added this mask where it sorts first, and subtracted it otherwise.
                    masks.append(Mask(self._pair_seed(site, gone), subtract=site < gone))
        return masks

    def _judge_complaints(self) -> None:
        """More complaints than can collude convict a dealer; fewer leave two suspects and cost only a share."""
        complaints: dict[str, int] = defaultdict(int)
        for revealed in self._revealed.values():
            for dealer in revealed.complaints:
                complaints[dealer] += 1
        for dealer, count in complaints.items():
            if count > self._colluders:
                raise refusals.bad_dealer(dealer, count)

    def _self_seeds(self) -> dict[str, bytes]:
        """b_i of every survivor; dealers whose shares have the same holders are interpolated at once."""
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for dealer in self._uploads:
            groups[self._holders(dealer)].append(dealer)
        seeds: dict[str, bytes] = {}
        for holders, dealers in groups.items():
            joined = {
                self._index[holder] + 1: b"".join(self._revealed[holder].rows[dealer].self_share for dealer in dealers)
                for holder in holders
            }
            seeds.update(zip(dealers, cut_slots(combine_shares(joined)), strict=True))
        return {dealer: self._checked_self_seed(dealer, seed) for dealer, seed in seeds.items()}

    def _checked_self_seed(self, dealer: str, seed: bytes) -> bytes:
        commitment = self._uploads[dealer].upload.commitment

        def is_right(candidate: bytes) -> bool:
            return self_commitment(self._attempt.context, dealer, candidate) == commitment

        return seed if is_right(seed) else self._recover(dealer, lambda row: row.self_share, is_right)

    def _pair_seed(self, site: str, gone: str) -> bytes:
        """s_id of a survivor and a vanished hospital: from the survivor itself, else from slices."""
        start = self._index[gone] * DIGEST_BYTES
        commitment = self._uploads[site].seed_commitments[start : start + DIGEST_BYTES]

        def is_right(candidate: bytes) -> bool:
            return seed_commitment(self._attempt.context, site, gone, candidate) == commitment

        own = self._revealed.get(site)
        if own is not None:
            if is_right(own.own_seeds[gone]):
                return own.own_seeds[gone]
            self.blamed.append(refusals.bad_seed(site, gone))
        return self._recover(site, lambda row: row.pair_shares[gone], is_right)

    def _recover(self, dealer: str, share: Callable[[RevealedRow], bytes], is_right: Callable[[bytes], bool]) -> bytes:
        """Recover one seed; if it is wrong, convict holders by the dealer's commitments, or else the dealer."""
        for again in (False, True):
            shares = {
                self._index[holder] + 1: share(self._revealed[holder].rows[dealer]) for holder in self._holders(dealer)
            }
            seed = combine_shares(shares)
            if is_right(seed):
                return seed
            if again or not self._convict_holders(dealer):
                break
        raise refusals.bad_commitment(dealer)

    def _convict_holders(self, dealer: str) -> bool:
        """Set aside every holder whose row is not what the dealer signed; whether there was one."""
        upload = self._uploads[dealer].upload
        liars = [
            holder
            for holder, revealed in self._revealed.items()
            if dealer in revealed.rows
            and revealed.rows[dealer].commitment(self._attempt, dealer, holder) != upload.entry(self._index[holder])[1]
        ]
        for holder in liars:
            self.blamed.append(refusals.bad_share(holder, dealer))
            del self._revealed[holder]
        return bool(liars)

    def _holders(self, dealer: str) -> tuple[str, ...]:
        """The first T hospitals that revealed shares of a dealer."""
        holders = [holder for holder, revealed in self._revealed.items() if dealer in revealed.rows]
        if len(holders) < self._attempt.threshold:
            raise self._shortage(dealer, len(holders))
        return tuple(holders[: self._attempt.threshold])

    def _shortage(self, dealer: str, found: int) -> PeerProtocolError:
        """Why too few shares are left: a liar if one was caught, else silence."""
        return self.blamed[0] if self.blamed else refusals.too_few_shares(dealer, found, self._attempt.threshold)
