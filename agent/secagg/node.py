"""The node's side: one session a (study, data set), frames in, frames out.

The session decides everything by itself: from the signed study, the roster that its hospital trusts, and its journal. A
method that raises has sent nothing and revealed nothing; the caller answers with one word of `agent.core.wire.Refusal`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.wire import Frame, Stage
from agent.secagg import node_checks as checks
from agent.secagg import refusals, rules
from agent.secagg.attempt import (
    Attempt,
    Randomness,
    Roster,
    Signer,
    Statement,
    abort_statement,
    agree_statement,
    bundle_statement,
    coordinator_statement,
    open_attempt,
    sign_statement,
    survivors_digest,
    upload_statement,
)
from agent.secagg.codec import Contribution
from agent.secagg.exchange import RunKey, verify_signature
from agent.secagg.holder import open_held_shares, reveal_complete, reveal_partial
from agent.secagg.journal import AcceptedModel, AttemptRecord, Journal
from agent.secagg.messages import (
    AdvertiseReply,
    AgreeReply,
    Answer,
    Bundle,
    RevealReply,
    UploadHeader,
    parse_advertise_request,
    parse_agree_request,
    parse_masked_input_request,
    parse_reveal_request,
)
from agent.secagg.round_secrets import RoundSecrets, mask_input
from agent.secagg.stages import NODE_TRANSITIONS, NodeEvent, NodeState, advance
from agent.secagg.terms import Terms
from agent.secagg.transcript import NO_DIGEST

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this node is.

    Args:
        site: Its hospital.
        certificate: What peers verify against their rosters.
        sign: Signs with the key of that certificate.
    """

    site: str
    certificate: bytes
    sign: Signer = field(repr=False)


@dataclass(frozen=True, slots=True)
class AcceptedRound:
    """A leg 1 request that passed every check.

    Args:
        attempt: What was accepted.
        model: Shape (m,), float32, a view of the request; empty in round 0.
        configuration: What the request adds to the study, for the caller to check.
        coordinator_signature: Over the attempt's context: evidence of which model was asked for.
    """

    attempt: Attempt
    model: Floats = field(repr=False)
    configuration: bytes
    coordinator_signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Upload:
    """A masked input, and what stays here.

    Args:
        frame: The answer.
        declined: Why nothing was contributed, or None; local knowledge, never sent.
    """

    frame: Frame
    declined: str | None = None


class NodeSession:
    """Secure aggregation at one node, for one study on one data set; not thread-safe.

    Args:
        identity: Who we are.
        terms: The study's.
        roster: Whom this hospital trusts to speak for whom.
        coordinator: Public key of the study's coordinator.
        journal: Durable memory of this (study, data set).
        initial_model: Shape (m,), float32: the parameters of the study's own model file.
        randomness: Secure random bytes.
        permit_minimum: Smallest cohort and fewest survivors that the local permit accepts; it may raise the study's.
        workers: Threads of the mask engine.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        terms: Terms,
        roster: Roster,
        coordinator: ec.EllipticCurvePublicKey,
        journal: Journal,
        initial_model: Floats,
        randomness: Randomness,
        permit_minimum: int = 0,
        workers: int = 1,
    ) -> None:
        self._identity = identity
        self._terms = terms
        # What the round binds are the study's terms; what this node decides by may be stricter.
        self._own_terms = replace(terms, minimum_sites=max(terms.minimum_sites, permit_minimum))
        self._roster = roster
        self._coordinator = coordinator
        self._journal = journal
        self._initial_model = initial_model
        self._randomness = randomness
        self._workers = workers
        self._state = NodeState.FRESH
        self._run = b""
        self._key: RunKey | None = None
        self._bundle: Bundle | None = None
        self._accepted: AcceptedRound | None = None
        self._peers: dict[str, ec.EllipticCurvePublicKey] = {}
        self._peer_keys: dict[str, bytes] = {}
        self._secrets: RoundSecrets | None = None
        self._upload: UploadHeader | None = None

    def __repr__(self) -> str:
        return f"NodeSession(study={self._terms.study_id!r}, state={self._state.value!r})"

    @property
    def state(self) -> NodeState:
        """Where the session stands."""
        return self._state

    def advertise(self, frame: Frame) -> Frame:
        """Leg 0: make a key for the run and sign it. Secrets of an open round are dropped.

        Raises:
            PeerProtocolError: The request is malformed or names another study.
        """
        checks.check_frame(self._terms, frame, Stage.ADVERTISE)
        request = parse_advertise_request(frame.header, frame.payload)
        after = advance(NODE_TRANSITIONS, self._state, NodeEvent.ADVERTISE)
        self._drop_round()
        self._run, self._key = request.run, RunKey(self._randomness(32))
        unsigned = Bundle(self._identity.site, self._key.public, self._identity.certificate, b"")
        self._bundle = replace(unsigned, signature=self._sign(bundle_statement(self._terms, self._run, unsigned)))
        self._state = after
        record = self._journal.latest_attempt()
        standing = (record.round_number, record.attempt) if record else None
        return _reply(frame, AdvertiseReply(self._run, self._bundle, standing).header())

    def accept(self, frame: Frame) -> AcceptedRound:
        """Leg 1, first half: check everything that does not depend on data. Nothing is recorded or sent yet.

        Raises:
            PeerProtocolError: A rule is broken; see `refusals`.
        """
        checks.check_frame(self._terms, frame, Stage.MASKED_INPUT)
        request = parse_masked_input_request(frame.header, frame.payload)
        after = advance(NODE_TRANSITIONS, self._state, NodeEvent.ACCEPT)
        if request.run != self._run:
            raise refusals.foreign_run()
        rules.check_cohort(self._own_terms, request.cohort, own=self._identity.site)
        peers = checks.verify_bundles(self._terms, self._roster, self._run, request.bundles, own=self._bundle)
        checks.check_turn(self._terms, self._journal.latest_attempt(), frame, request, peers)
        before = self._journal.accepted_model() or AcceptedModel(1, self._initial_model)
        model = checks.check_model(self._terms, before, frame.round, request.model)
        attempt = open_attempt(
            self._terms,
            run=request.run,
            round_number=frame.round,
            attempt=frame.attempt,
            bundles=request.bundles,
            model=request.model,
            previous=request.previous,
            configuration=request.configuration,
        )
        known = self._journal.cohort_of_model(attempt.model)
        rules.check_model_cohort(known, attempt.cohort, attempt.model)
        if not verify_signature(self._coordinator, request.signature, *coordinator_statement(attempt.context)):
            raise refusals.coordinator_signature()
        self._drop_round()
        self._peers, self._peer_keys = peers, {bundle.site: bundle.key for bundle in request.bundles}
        self._accepted = AcceptedRound(attempt, model, request.configuration, request.signature)
        self._state = after
        return self._accepted

    def masked_input(self, contribution: Contribution | None) -> Upload:
        """Leg 1, second half: mask what was trained; or nothing, in exactly the same form, if that failed.

        A contribution that cannot be encoded counts as nothing: no failure that depends on data shows outside.

        Raises:
            PeerProtocolError: No round was accepted.
        """
        after = advance(NODE_TRANSITIONS, self._state, NodeEvent.UPLOAD)
        accepted, key = self._accepted, self._key
        if accepted is None or key is None:
            raise refusals.out_of_turn(self._state.value, NodeEvent.UPLOAD.value)
        attempt = accepted.attempt
        vector, declined = self._encode(attempt, contribution)
        secrets = RoundSecrets.derive(
            key,
            attempt,
            site=self._identity.site,
            peer_keys=self._peer_keys,
            study=self._terms.study_digest,
            self_seed=self._randomness(32),
        )
        reply = mask_input(vector, secrets, attempt, randomness=self._randomness, workers=self._workers)
        signature = self._sign(upload_statement(attempt.context, reply.upload))
        upload = replace(reply.upload, signature=signature)
        self._journal.record_attempt(
            AttemptRecord(attempt.round_number, attempt.attempt, attempt.context, attempt.cohort, attempt.model)
        )
        if len(accepted.model):
            self._journal.record_model(AcceptedModel(attempt.round_number, accepted.model))
        self._secrets, self._upload, self._state = secrets, upload, after
        reply = replace(reply, upload=upload)
        return Upload(self._frame(attempt, Stage.MASKED_INPUT, reply.header(), reply.masked), declined)

    def agree(self, frame: Frame) -> Frame:
        """Leg 2: lock the survivors and answer with shares or an agreement; or lock the abort and sign it.

        Raises:
            PeerProtocolError: A rule is broken; nothing was locked.
        """
        checks.check_frame(self._terms, frame, Stage.AGREE)
        request = parse_agree_request(frame.header, frame.payload)
        if request.abort:
            return self._abort(frame, request.context)
        secrets, attempt = self._open_round(frame, request.context, NodeState.UPLOADED)
        survivors = [relayed.upload for relayed in request.survivors]
        checks.check_survivors(attempt, request.survivors, self._peers, own=self._upload)
        verdict = rules.judge_survivors(self._own_terms, attempt.cohort, [upload.site for upload in survivors])
        if verdict is rules.Verdict.ABORT:
            return self._abort(frame, request.context)
        event = NodeEvent.COMPLETE if verdict is rules.Verdict.COMPLETE else NodeEvent.AGREE
        after = advance(NODE_TRANSITIONS, self._state, event)
        locked = survivors_digest(attempt.context, survivors)
        self._lock(locked)
        opened = open_held_shares(secrets, attempt, request.survivors)
        self._state = after
        if verdict is rules.Verdict.COMPLETE:
            reply = AgreeReply(attempt.context, secrets.site, Answer.COMPLETE, revelation=reveal_complete(opened))
            self._drop_round()
        else:
            secrets.hold(opened, survivors, locked)
            signature = self._sign(agree_statement(attempt.context, secrets.site, locked))
            reply = AgreeReply(attempt.context, secrets.site, Answer.AGREED, signature)
        return _reply(frame, reply.header())

    def reveal(self, frame: Frame) -> Frame:
        """Leg 3: once T hospitals agreed to the same survivors, reveal what unmasks their sum, and forget it.

        Raises:
            PeerProtocolError: A rule is broken; nothing was revealed.
        """
        checks.check_frame(self._terms, frame, Stage.REVEAL)
        request = parse_reveal_request(frame.header, frame.payload)
        self._refuse_second_reveal(request.context)
        secrets, attempt = self._open_round(frame, request.context, NodeState.AGREED)
        after = advance(NODE_TRANSITIONS, self._state, NodeEvent.REVEAL)
        checks.check_agreements(
            self._terms,
            attempt,
            request.agreements,
            self._peers,
            survivors=secrets.survivors,
            locked=secrets.locked,
        )
        revelation = reveal_partial(secrets, attempt)
        self._drop_round()
        self._state = after
        return _reply(frame, RevealReply(attempt.context, secrets.site, revelation).header())

    def _encode(self, attempt: Attempt, contribution: Contribution | None) -> tuple[npt.NDArray[np.uint64], str | None]:
        key, declined = self._randomness(32), None if contribution is not None else "nothing was trained"
        try:
            return attempt.codec.encode(contribution, key=key, check_key=attempt.check_key), declined
        except Exception as error:  # noqa: BLE001 - whatever fails because of data must look like any other upload
            declined = str(error) or type(error).__name__
        return attempt.codec.encode(None, key=self._randomness(32), check_key=attempt.check_key), declined

    def _open_round(self, frame: Frame, context: bytes, state: NodeState) -> tuple[RoundSecrets, Attempt]:
        """The open round's secrets, if the message belongs to it and comes in turn."""
        if self._secrets is None or self._accepted is None:
            raise refusals.out_of_turn(self._state.value, frame.stage.value)
        attempt = self._accepted.attempt
        if context != attempt.context or (frame.round, frame.attempt) != (attempt.round_number, attempt.attempt):
            raise refusals.foreign_context()
        if self._state is NodeState.AGREED and state is NodeState.UPLOADED:
            raise refusals.second_survivors()
        if self._state is not state:
            raise refusals.out_of_turn(self._state.value, frame.stage.value)
        return self._secrets, attempt

    def _refuse_second_reveal(self, context: bytes) -> None:
        record = self._journal.latest_attempt()
        gone = self._secrets is None or self._state is NodeState.READY
        if gone and record is not None and record.context == context and record.lock != rules.OPEN_LOCK:
            raise refusals.revealed_already()

    def _lock(self, wanted: bytes) -> None:
        record = self._journal.latest_attempt()
        if record is None:
            raise refusals.foreign_context()
        self._journal.record_attempt(replace(record, lock=rules.settle_lock(record.lock, wanted)))

    def _abort(self, frame: Frame, context: bytes) -> Frame:
        """Lock the abort of an attempt, also of one that this node never saw, and sign it."""
        turn = (frame.round, frame.attempt)
        if not self._terms.has_round(frame.round):
            raise refusals.unknown_round(frame.round)
        record = self._journal.latest_attempt()
        last = (record.round_number, record.attempt) if record else None
        rules.check_turn(last, turn, same_attempt=True)
        if record is None or record.round_number != frame.round:
            record = AttemptRecord(*turn, context, (), NO_DIGEST)
        elif last != turn:
            # An attempt that we never saw: nothing may be given up, and so tried again, once survivors were agreed to.
            rules.check_undecided(record.lock)
            record = AttemptRecord(*turn, context, record.sites, record.model)
        if context not in {b"", record.context} or not record.context:
            raise refusals.foreign_context()
        lock = rules.settle_lock(record.lock, rules.ABORT_LOCK)
        after = advance(NODE_TRANSITIONS, self._state, NodeEvent.ABORT)
        self._journal.record_attempt(replace(record, lock=lock))
        self._drop_round()
        self._state = after
        site = self._identity.site
        signature = self._sign(abort_statement(self._terms, site, *turn, record.context))
        return _reply(frame, AgreeReply(record.context, site, Answer.ABORTED, signature).header())

    def _drop_round(self) -> None:
        """Forget the open round's secrets."""
        self._accepted = self._secrets = self._upload = None
        self._peers, self._peer_keys = {}, {}

    def _sign(self, statement: Statement) -> bytes:
        return sign_statement(self._identity.sign, statement)

    def _frame(self, attempt: Attempt, stage: Stage, header: dict[str, object], payload: bytes | memoryview) -> Frame:
        return Frame(self._terms.study_id, stage, attempt.round_number, attempt.attempt, header, payload)


def _reply(request: Frame, header: dict[str, object]) -> Frame:
    return Frame(request.study, request.stage, request.round, request.attempt, header)
