"""Seeds recovered from what hospitals revealed, and the name of whoever lied.

Honest runs take the short way: T shares, one interpolation, one comparison with the dealer's commitment. Only where
that fails is every share compared with what its dealer signed about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from agent.core.errors import PeerProtocolError
from agent.secagg import refusals
from agent.secagg.attempt import Attempt
from agent.secagg.dealing import cut_slots, rest_digest, share_commitment, slot_digest
from agent.secagg.exchange import seed_commitment, self_commitment
from agent.secagg.masking import Mask
from agent.secagg.messages import MaskedInputReply, Revelation
from agent.secagg.rules import vanished_sites
from agent.secagg.shamir import combine_shares
from agent.secagg.transcript import DIGEST_BYTES, KEY_BYTES


class Revealed:
    """One hospital's revelation: lengths checked, shares found where they stand, none copied before it is needed.

    Args:
        site: Who revealed.
        revelation: As parsed.
        attempt: Its attempt.
        survivors: Sites of U, sorted.

    Raises:
        PeerProtocolError: Its lengths or names do not fit the survivors.
    """

    __slots__ = ("_attempt", "_places", "_revelation", "_survivors", "_vanished", "complaints", "site")

    def __init__(self, site: str, revelation: Revelation, attempt: Attempt, survivors: Sequence[str]) -> None:
        self.site = site
        self.complaints = revelation.complaints
        self._revelation = revelation
        self._attempt = attempt
        self._survivors = survivors
        dealers = [dealer for dealer in survivors if dealer not in revelation.complaints]
        if len(dealers) + len(revelation.complaints) != len(survivors) or site in revelation.complaints:
            raise refusals.malformed(f"complaints of {site} about hospitals that did not deal")
        self._places = {dealer: place for place, dealer in enumerate(dealers)}
        vanished = vanished_sites(attempt.cohort, survivors)
        self._vanished = {other: place for place, other in enumerate(vanished)}
        self._check_lengths()

    def __contains__(self, dealer: str) -> bool:
        return dealer in self._places

    def self_share(self, dealer: str) -> bytes:
        """This hospital's share of the dealer's b_i."""
        return _slot(self._revelation.self_shares, self._places[dealer])

    def pair_share(self, dealer: str, gone: str) -> bytes:
        """This hospital's share of the dealer's seed with a vanished hospital."""
        place = self._places[dealer] * len(self._vanished) + self._vanished[gone]
        return _slot(self._revelation.pair_shares, place)

    def own_seed(self, gone: str) -> bytes:
        """This hospital's own seed with a vanished one."""
        return _slot(self._revelation.own_seeds, self._vanished[gone])

    def commitment(self, dealer: str) -> bytes:
        """What the dealer must have signed, if these shares are what it dealt."""
        place = self._places[dealer]
        rest = _slot(self._revelation.rests, place) if not self._vanished else self._rest(dealer)
        return share_commitment(self._attempt.context, dealer, self.site, self.self_share(dealer), rest)

    def _rest(self, dealer: str) -> bytes:
        others = [site for site in self._survivors if site != dealer]
        first = self._places[dealer] * len(others)
        hidden = {site: _slot(self._revelation.slot_digests, first + place) for place, site in enumerate(others)}
        return rest_digest(
            hidden[site] if site in hidden else slot_digest(self.pair_share(dealer, site))
            for site in self._attempt.cohort
            if site != dealer
        )

    def _check_lengths(self) -> None:
        revelation, dealers, vanished = self._revelation, len(self._places), len(self._vanished)
        sizes = {
            "self shares": (revelation.self_shares, dealers),
            "rests": (revelation.rests, 0 if vanished else dealers),
            "pair shares": (revelation.pair_shares, dealers * vanished),
            "slot digests": (revelation.slot_digests, dealers * (len(self._survivors) - 1) if vanished else 0),
            "own seeds": (revelation.own_seeds, vanished),
        }
        for name, (blob, count) in sizes.items():
            if len(blob) != count * KEY_BYTES:
                raise refusals.malformed(f"{name} of {self.site} that do not fit the survivors")


def _slot(blob: bytes, place: int) -> bytes:
    return blob[place * KEY_BYTES : (place + 1) * KEY_BYTES]


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
            for gone in vanished_sites(self._attempt.cohort, self._uploads):
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
                self._index[holder] + 1: b"".join(self._revealed[holder].self_share(dealer) for dealer in dealers)
                for holder in holders
            }
            seeds.update(zip(dealers, cut_slots(combine_shares(joined)), strict=True))
        return {dealer: self._checked_self_seed(dealer, seed) for dealer, seed in seeds.items()}

    def _checked_self_seed(self, dealer: str, seed: bytes) -> bytes:
        commitment = self._uploads[dealer].upload.commitment

        def is_right(candidate: bytes) -> bool:
            return self_commitment(self._attempt.context, dealer, candidate) == commitment

        return seed if is_right(seed) else self._recover(dealer, lambda revealed: revealed.self_share(dealer), is_right)

    def _pair_seed(self, site: str, gone: str) -> bytes:
        """s_id of a survivor and a vanished hospital: from the survivor itself, else from slices."""
        start = self._index[gone] * DIGEST_BYTES
        commitment = self._uploads[site].seed_commitments[start : start + DIGEST_BYTES]

        def is_right(candidate: bytes) -> bool:
            return seed_commitment(self._attempt.context, site, gone, candidate) == commitment

        own = self._revealed.get(site)
        if own is not None:
            seed = own.own_seed(gone)
            if is_right(seed):
                return seed
            self.blamed.append(refusals.bad_seed(site, gone))
        return self._recover(site, lambda revealed: revealed.pair_share(site, gone), is_right)

    def _recover(self, dealer: str, share: Callable[[Revealed], bytes], is_right: Callable[[bytes], bool]) -> bytes:
        """Recover one seed; if it is wrong, convict holders by the dealer's commitments, or else the dealer."""
        for again in (False, True):
            shares = {self._index[holder] + 1: share(self._revealed[holder]) for holder in self._holders(dealer)}
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
            if dealer in revealed and revealed.commitment(dealer) != upload.entry(self._index[holder])[1]
        ]
        for holder in liars:
            self.blamed.append(refusals.bad_share(holder, dealer))
            del self._revealed[holder]
        return bool(liars)

    def _holders(self, dealer: str) -> tuple[str, ...]:
        """The first T hospitals that revealed shares of a dealer."""
        holders = [holder for holder, revealed in self._revealed.items() if dealer in revealed]
        if len(holders) < self._attempt.threshold:
            raise self._shortage(dealer, len(holders))
        return tuple(holders[: self._attempt.threshold])

    def _shortage(self, dealer: str, found: int) -> PeerProtocolError:
        """Why too few shares are left: a liar if one was caught, else silence."""
        return self.blamed[0] if self.blamed else refusals.too_few_shares(dealer, found, self._attempt.threshold)
