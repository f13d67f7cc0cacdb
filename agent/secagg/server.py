"""The server's side: a session a run, a `ServerRound` an attempt; frames in, frames out, one sum at the end.

The server is trusted for nothing but liveness. What it checks, it checks to name whoever broke a round: signatures and
commitments of uploads as they come, shares when a seed does not fit its commitment, the check word of the sum at last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame, Stage
from agent.secagg import refusals, rules
from agent.secagg.attempt import (
    Attempt,
    Roster,
    Signer,
    abort_statement,
    agree_statement,
    coordinator_statement,
    open_attempt,
    sign_statement,
    survivors_digest,
)
from agent.secagg.codec import CohortSum
from agent.secagg.exchange import verify_signature
from agent.secagg.fields import Header
from agent.secagg.holder import sealed_digest
from agent.secagg.masking import check_word, sum_masked
from agent.secagg.messages import (
    AbortCertificate,
    AdvertiseRequest,
    AgreeReply,
    AgreeRequest,
    Answer,
    Bundle,
    MaskedInputReply,
    MaskedInputRequest,
    RelayedUpload,
    RevealRequest,
    parse_advertise_reply,
    parse_agree_reply,
    parse_masked_input_reply,
    parse_reveal_reply,
)
from agent.secagg.node_checks import verify_bundle, verify_upload
from agent.secagg.recovery import LostAttempt
from agent.secagg.round_secrets import masked_digest, seeds_digest
from agent.secagg.stages import SERVER_TRANSITIONS, ServerEvent, ServerState, advance
from agent.secagg.terms import Dropout, Terms
from agent.secagg.transcript import DIGEST_BYTES, NO_DIGEST, digest
from agent.secagg.unmasking import Revealed, Unmasking

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class RoundSum:
    """What a round released.

    Args:
        attempt: Which.
        survivors: Whose inputs are in the sum.
        total: The decoded sum.
        digest: Of the exact integers; the next round's `previous`.
        legs: 2 or 3.
        blamed: Who lied without stopping the round, and how.
    """

    attempt: Attempt
    survivors: tuple[str, ...]
    total: CohortSum
    digest: bytes
    legs: int
    blamed: tuple[PeerProtocolError, ...] = ()


class ServerSession:
    """Secure aggregation at the coordinator, for one run of a study.

    Args:
        terms: The study's.
        run: 16 bytes, fresh for each run.
        roster: Who speaks for whom, to name culprits; nodes do not rely on it.
        sign: Signs with the coordinator's key.
        workers: Threads of the mask engine.
    """

    def __init__(self, *, terms: Terms, run: bytes, roster: Roster, sign: Signer, workers: int = 1) -> None:
        self.terms = terms
        self.run = run
        self._roster = roster
        self._sign = sign
        self._workers = workers
        self._bundles: dict[str, Bundle] = {}
        self._keys: dict[str, ec.EllipticCurvePublicKey] = {}
        self.standings: dict[str, tuple[int, int]] = {}

    def advertise_request(self) -> Frame:
        """Leg 0's request, the same for every node; also for one that restarted."""
        return Frame(self.terms.study_id, Stage.ADVERTISE, header=AdvertiseRequest(self.run).header())

    def receive_bundle(self, frame: Frame) -> str:
        """Take a node's key; a later one of the same hospital replaces it. Returns the hospital.

        Raises:
            PeerProtocolError: It is malformed, of another run, or not signed by a node of a hospital of the study.
        """
        reply = parse_advertise_reply(frame.header, frame.payload)
        bundle = reply.bundle
        if reply.run != self.run:
            raise refusals.foreign_run()
        if bundle.site not in self.terms.sites:
            raise refusals.unknown_site(bundle.site)
        self._keys[bundle.site] = verify_bundle(self.terms, self._roster, self.run, bundle)
        self._bundles[bundle.site] = bundle
        if reply.standing is not None:
            self.standings[bundle.site] = reply.standing
        return bundle.site

    def forget_bundle(self, site: str) -> None:
        """Leave a hospital out until it advertises again."""
        self._bundles.pop(site, None)

    def lost_attempt(self, round_number: int, attempt: int) -> LostAttempt:
        """An attempt of an earlier run, with the hospitals that are ready as its cohort: see `standings`."""
        return LostAttempt(self.terms, round_number, attempt, {site: self._keys[site] for site in self.ready_sites()})

    def ready_sites(self) -> tuple[str, ...]:
        """The greatest cohort that nodes would accept now, sorted; maybe too small to begin."""
        ready = set(self._bundles)
        if self.terms.dropout is Dropout.WAIT:
            ready = {site for block in self.terms.whole_blocks if ready.issuperset(block) for site in block}
        return tuple(sorted(ready))

    def begin_round(
        self,
        round_number: int,
        model: bytes | memoryview,
        *,
        attempt: int = 1,
        previous: bytes = NO_DIGEST,
        configuration: bytes = b"",
        abort: AbortCertificate | None = None,
        cohort: Sequence[str] | None = None,
    ) -> ServerRound:
        """Open an attempt at a round.

        Args:
            round_number: 0 for moments, 1..rounds for training, rounds + 1 for the last evaluation.
            model: float32 little-endian, (m,); empty in round 0.
            attempt: From 1.
            previous: Digest of the sum before.
            configuration: Bound by the round; for the nodes' own callers.
            abort: Proof that the attempt before is dead.
            cohort: Sites; by default all that are ready.

        Raises:
            PeerProtocolError: Nodes would refuse the cohort.
        """
        sites = tuple(sorted(cohort if cohort is not None else self.ready_sites()))
        if not sites:
            raise refusals.cohort_too_small(0, self.terms.minimum_sites)
        rules.check_cohort(self.terms, sites, own=sites[0])
        bundles = tuple(self._bundles[site] for site in sites)
        opened = open_attempt(
            self.terms,
            run=self.run,
            round_number=round_number,
            attempt=attempt,
            bundles=bundles,
            model=model,
            previous=previous,
            configuration=configuration,
        )
        signature = sign_statement(self._sign, coordinator_statement(opened.context))
        request = MaskedInputRequest(self.run, bundles, previous, configuration, signature, abort, model)
        keys = {site: self._keys[site] for site in sites}
        return ServerRound(self.terms, opened, request, keys, workers=self._workers)

    def reopen(self, round_number: int, attempt: int, context: bytes, cohort: Sequence[str]) -> ServerRound:
        """Take up an attempt that an earlier process of this coordinator began, only to give it up.

        Args:
            round_number: Its round.
            attempt: Its number.
            context: Its context, as kept.
            cohort: Its sites; all of them have advertised anew.
        """
        nothing = bytes(4 * self.terms.model_length(round_number))
        fresh = self.begin_round(round_number, nothing, attempt=attempt, cohort=cohort)
        return fresh.for_abort(context)


class ServerRound:
    """One attempt at a round.

    Leg 1: `masked_input_request`, `receive_masked_input`. Leg 2: `agree_requests`, `receive_agreement`. Leg 3, if
    `needs_reveal`: `reveal_request`, `receive_reveal`. Then `finish`. Or, before anyone agreed: `abort_request`,
    `receive_agreement`, `abort_certificate`, and the next attempt with that certificate.

    A `receive_` that raises has changed nothing: the hospital it names counts as silent.
    """

    def __init__(
        self,
        terms: Terms,
        attempt: Attempt,
        request: MaskedInputRequest,
        keys: Mapping[str, ec.EllipticCurvePublicKey],
        *,
        workers: int = 1,
    ) -> None:
        self.attempt = attempt
        self._terms = terms
        self._request = request
        self._keys = keys
        self._workers = workers
        self._state = ServerState.COLLECTING
        self._uploads: dict[str, MaskedInputReply] = {}
        self._agreements: dict[str, bytes] = {}
        self._aborts: dict[str, bytes] = {}
        self._revealed: dict[str, Revealed] = {}
        self._locked = b""

    def for_abort(self, context: bytes) -> ServerRound:
        """The same attempt under the context that nodes know it by; nothing but its abort can be asked for."""
        known = replace(self.attempt, context=context)
        return ServerRound(self._terms, known, self._request, self._keys, workers=self._workers)

    @property
    def state(self) -> ServerState:
        """Where the attempt stands."""
        return self._state

    @property
    def uploaded(self) -> tuple[str, ...]:
        """Who uploaded, sorted."""
        return tuple(sorted(self._uploads))

    @property
    def verdict(self) -> rules.Verdict:
        """What nodes would make of the uploads so far."""
        return rules.judge_survivors(self._terms, self.attempt.cohort, self.uploaded)

    @property
    def needs_reveal(self) -> bool:
        """Whether leg 3 is needed: some hospital vanished and enough agreed to go on without it."""
        return self._state is ServerState.AGREEING and len(self._uploads) < len(self.attempt.cohort)

    def masked_input_request(self) -> Frame:
        """Leg 1's request, the same for the whole cohort."""
        return self._frame(Stage.MASKED_INPUT, self._request.header(), self._request.model)

    def receive_masked_input(self, site: str, frame: Frame) -> None:
        """Take a masked input.

        Args:
            site: Who sent it, as the transport knows.
            frame: The reply.

        Raises:
            PeerProtocolError: It breaks a rule; it is not counted.
        """
        after = advance(SERVER_TRANSITIONS, self._state, ServerEvent.UPLOAD)
        reply = parse_masked_input_reply(frame.header, frame.payload)
        upload = reply.upload
        if reply.context != self.attempt.context or upload.site != site or site not in self.attempt.cohort:
            raise refusals.foreign_context(site)
        if site in self._uploads:
            raise refusals.duplicate_site(site)
        verify_upload(self.attempt, upload, self._keys)
        self._check_upload_body(site, reply)
        self._uploads[site] = reply
        self._state = after

    def agree_requests(self) -> dict[str, Frame]:
        """Close leg 1; leg 2's request for each survivor.

        Raises:
            PeerProtocolError: The uploads may not be summed (`abort_request` is the way on), or two hospitals disagree
                on their common seed.
        """
        survivors = self.uploaded
        if self.verdict is rules.Verdict.ABORT:
            enough = rules.fewest_survivors(self._terms, self.attempt.cohort)
            raise refusals.too_few_survivors(len(survivors), enough)
        self._compare_seeds(survivors)
        self._state = advance(SERVER_TRANSITIONS, self._state, ServerEvent.ASK_AGREE)
        uploads = [self._uploads[site].upload for site in survivors]
        self._locked = survivors_digest(self.attempt.context, uploads)
        return {site: self._frame(Stage.AGREE, self._agree_request(site).header()) for site in survivors}

    def abort_request(self) -> Frame:
        """Give the attempt up; the request is the same for every hospital of the cohort, also for a restarted one."""
        self._state = advance(SERVER_TRANSITIONS, self._state, ServerEvent.ASK_ABORT)
        return self._frame(Stage.AGREE, AgreeRequest(self.attempt.context, abort=True).header())

    def receive_agreement(self, site: str, frame: Frame) -> None:
        """Take an answer of leg 2: shares, an agreement, or an abort.

        Raises:
            PeerProtocolError: It breaks a rule; it is not counted.
        """
        reply = parse_agree_reply(frame.header, frame.payload)
        if reply.context != self.attempt.context or reply.site != site or site not in self.attempt.cohort:
            raise refusals.foreign_context(site)
        if reply.answer is Answer.ABORTED:
            self._receive_abort(site, reply.signature)
            return
        after = advance(SERVER_TRANSITIONS, self._state, ServerEvent.AGREEMENT)
        if site not in self._uploads:
            raise refusals.foreign_context(site)
        self._receive_survivors_answer(site, reply)
        self._state = after

    def abort_certificate(self) -> AbortCertificate | None:
        """Proof that this attempt is dead, once T hospitals gave it up."""
        if not rules.has_quorum(self._aborts, self.attempt.cohort, self._terms.colluders):
            return None
        if self._state is not ServerState.ABORTED:
            self._state = advance(SERVER_TRANSITIONS, self._state, ServerEvent.CERTIFY)
        return AbortCertificate(self.attempt.context, dict(self._aborts))

    def reveal_request(self) -> Frame:
        """Leg 3's request, the same for every survivor.

        Raises:
            PeerProtocolError: Too few agreed.
        """
        if not rules.has_quorum(self._agreements, self.attempt.cohort, self._terms.colluders):
            raise refusals.too_few_agreements(len(self._agreements), self.attempt.threshold)
        self._state = advance(SERVER_TRANSITIONS, self._state, ServerEvent.ASK_REVEAL)
        agreements = tuple(sorted(self._agreements.items()))
        return self._frame(Stage.REVEAL, RevealRequest(self.attempt.context, agreements).header())

    def receive_reveal(self, site: str, frame: Frame) -> None:
        """Take an answer of leg 3.

        Raises:
            PeerProtocolError: It breaks a rule; it is not counted.
        """
        after = advance(SERVER_TRANSITIONS, self._state, ServerEvent.REVELATION)
        reply = parse_reveal_reply(frame.header, frame.payload)
        if reply.context != self.attempt.context or reply.site != site or site not in self._uploads:
            raise refusals.foreign_context(site)
        self._revealed[site] = Revealed(site, reply.revelation, self.attempt, self.uploaded)
        self._state = after

    def finish(self) -> RoundSum:
        """Unmask and decode the sum; the uploads are let go.

        Raises:
            PeerProtocolError: Too few shares arrived, or somebody lied: the error names whom, if that can be known.
        """
        if self.needs_reveal:
            raise refusals.out_of_turn(self._state.value, ServerEvent.FINISH.value)
        after = advance(SERVER_TRANSITIONS, self._state, ServerEvent.FINISH)
        legs = 2 if self._state is ServerState.AGREEING else 3
        survivors = self.uploaded
        unmasking = Unmasking(
            self.attempt,
            {site: self._uploads[site] for site in survivors},
            self._revealed,
            colluders=self._terms.colluders,
        )
        total = np.zeros(self.attempt.codec.total_words, np.uint64)
        vectors = [self._uploads[site].masked for site in survivors]
        sum_masked(total, vectors, unmasking.masks(), workers=self._workers)
        self._check_sum(total)
        self._state = after
        self._uploads.clear()
        return RoundSum(
            self.attempt,
            survivors,
            self.attempt.codec.decode(total, survivors=len(survivors)),
            digest("sum", self.attempt.context, total.view(np.uint8).data),
            legs,
            tuple(unmasking.blamed),
        )

    def _check_upload_body(self, site: str, reply: MaskedInputReply) -> None:
        """Lengths fit the round; sealed shares and seed commitments are the ones that the header signs."""
        cohort, upload = self.attempt.cohort, reply.upload
        size = self.attempt.sealed_bytes
        sized = (
            len(reply.masked) == self.attempt.codec.total_words * 8
            and len(reply.shares) == size * (len(cohort) - 1)
            and len(reply.seed_commitments) == DIGEST_BYTES * len(cohort)
        )
        if not sized or seeds_digest(reply.seed_commitments) != upload.seeds:
            raise refusals.bad_upload_signature(site)
        dealer = cohort.index(site)
        for holder in range(len(cohort)):
            sealed = _sealed_share(reply, size, dealer=dealer, holder=holder)
            if holder != dealer and sealed_digest(sealed) != upload.entry(holder)[0]:
                raise refusals.bad_upload_signature(site)

    def _compare_seeds(self, survivors: Sequence[str]) -> None:
        """Both ends of every pair of survivors committed to the same seed: else their masks do not cancel."""
        places = [(site, self.attempt.cohort.index(site) * DIGEST_BYTES) for site in survivors]
        for number, (first, first_at) in enumerate(places):
            ours = self._uploads[first].seed_commitments
            for second, second_at in places[number + 1 :]:
                theirs = self._uploads[second].seed_commitments
                if ours[second_at : second_at + DIGEST_BYTES] != theirs[first_at : first_at + DIGEST_BYTES]:
                    raise refusals.seed_mismatch(first, second)

    def _agree_request(self, holder: str) -> AgreeRequest:
        cohort = self.attempt.cohort
        size, reader = self.attempt.sealed_bytes, cohort.index(holder)
        relayed = tuple(
            RelayedUpload(reply.upload, _sealed_share(reply, size, dealer=dealer, holder=reader))
            for dealer, site in enumerate(cohort)
            if (reply := self._uploads.get(site)) is not None
        )
        return AgreeRequest(self.attempt.context, abort=False, survivors=relayed)

    def _receive_survivors_answer(self, site: str, reply: AgreeReply) -> None:
        complete = len(self._uploads) == len(self.attempt.cohort)
        if complete is not (reply.answer is Answer.COMPLETE):
            raise refusals.foreign_context(site)
        if reply.revelation is not None:
            self._revealed[site] = Revealed(site, reply.revelation, self.attempt, self.uploaded)
        elif verify_signature(
            self._keys[site], reply.signature, *agree_statement(self.attempt.context, site, self._locked)
        ):
            self._agreements[site] = reply.signature
        else:
            raise refusals.bad_agreement(site)

    def _receive_abort(self, site: str, signature: bytes) -> None:
        after = advance(SERVER_TRANSITIONS, self._state, ServerEvent.ABORT)
        attempt = self.attempt
        statement = abort_statement(self._terms, site, attempt.round_number, attempt.attempt, attempt.context)
        if not verify_signature(self._keys[site], signature, *statement):
            raise refusals.bad_abort(site)
        self._aborts[site] = signature
        self._state = after

    def _check_sum(self, total: Words) -> None:
        """The check word holds; if not, a vector other than the signed one names its sender, else nobody can be."""
        if check_word(total[:-1], self.attempt.check_key) == int(total[-1]):
            return
        for site, reply in self._uploads.items():
            if masked_digest(self.attempt.context, reply.masked) != reply.upload.masked:
                raise refusals.masked_digest(site)
        raise refusals.bad_check_word()

    def _frame(self, stage: Stage, header: Header, payload: bytes | memoryview = b"") -> Frame:
        return Frame(self._terms.study_id, stage, self.attempt.round_number, self.attempt.attempt, header, payload)


def _sealed_share(reply: MaskedInputReply, size: int, *, dealer: int, holder: int) -> bytes:
    """The share that a dealer sealed for a holder, out of the run of them in its upload; empty for its own."""
    place = holder - (holder > dealer)
    return reply.shares[place * size : (place + 1) * size] if holder != dealer else b""
