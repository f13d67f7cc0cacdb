"""The checks that a node makes before it answers; each raises what was broken and by whom, and none reads data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric import ec

from agent.core.wire import Frame, Stage
from agent.secagg import refusals, rules
from agent.secagg.attempt import (
    Attempt,
    Roster,
    abort_statement,
    agree_statement,
    bundle_statement,
    upload_statement,
)
from agent.secagg.exchange import check_public_key, verify_signature
from agent.secagg.holder import is_share_unaltered
from agent.secagg.journal import AcceptedModel, AttemptRecord
from agent.secagg.messages import ENTRY_BYTES, Bundle, MaskedInputRequest, RelayedUpload, UploadHeader
from agent.secagg.terms import Terms

PeerKeys = Mapping[str, ec.EllipticCurvePublicKey]


def check_frame(terms: Terms, frame: Frame, stage: Stage) -> None:
    """Check that a frame is of this study and stage.

    Raises:
        PeerProtocolError: It is not.
    """
    if frame.study != terms.study_id:
        raise refusals.foreign_study(frame.study)
    if frame.stage is not stage:
        raise refusals.out_of_turn(stage.value, frame.stage.value)


def verify_bundle(terms: Terms, roster: Roster, run: bytes, bundle: Bundle) -> ec.EllipticCurvePublicKey:
    """Check a bundle against the roster; returns the key that speaks for its hospital.

    Raises:
        PeerProtocolError: The X25519 key is weak, the roster does not hold its node, or the node did not sign it for
            this run.
    """
    check_public_key(bundle.key, site=bundle.site)
    key = roster.verify_certificate(bundle.site, bundle.certificate)
    if not verify_signature(key, bundle.signature, *bundle_statement(terms, run, bundle)):
        raise refusals.bad_bundle_signature(bundle.site)
    return key


def verify_bundles(
    terms: Terms, roster: Roster, run: bytes, bundles: Sequence[Bundle], *, own: Bundle | None
) -> dict[str, ec.EllipticCurvePublicKey]:
    """Check a cohort's bundles: each valid by itself, no key twice, our own as we signed it.

    Raises:
        PeerProtocolError: One is not.
    """
    seen: set[bytes] = set()
    peers = {}
    for bundle in bundles:
        if own is not None and bundle.site == own.site and bundle != own:
            raise refusals.own_bundle_changed()
        if bundle.key in seen:
            raise refusals.repeated_key(bundle.site)
        seen.add(bundle.key)
        peers[bundle.site] = verify_bundle(terms, roster, run, bundle)
    return peers


def check_turn(
    terms: Terms, record: AttemptRecord | None, frame: Frame, request: MaskedInputRequest, peers: PeerKeys
) -> None:
    """Check that the attempt is unused, and that a further one of a round comes with proof that the last is dead.

    Raises:
        PeerProtocolError: It was used, or the proof is missing, foreign, or for another cohort.
    """
    if not terms.has_round(frame.round):
        raise refusals.unknown_round(frame.round)
    last = (record.round_number, record.attempt) if record else None
    rules.check_turn(last, (frame.round, frame.attempt))
    if record is not None and record.round_number == frame.round:
        rules.check_undecided(record.lock)
    if frame.attempt > 1:
        _check_abort(terms, frame, request, peers)
        if record is not None and record.round_number == frame.round:
            _check_same_attempt(record, frame, request)


def _check_abort(terms: Terms, frame: Frame, request: MaskedInputRequest, peers: PeerKeys) -> None:
    if request.abort is None:
        raise refusals.abort_missing()
    for site, signature in request.abort.signatures.items():
        statement = abort_statement(terms, site, frame.round, frame.attempt - 1, request.abort.context)
        if site not in peers or not verify_signature(peers[site], signature, *statement):
            raise refusals.bad_abort(site)
    if not rules.has_quorum(request.abort.signatures, request.cohort, terms.colluders):
        raise refusals.abort_missing()


def _check_same_attempt(record: AttemptRecord, frame: Frame, request: MaskedInputRequest) -> None:
    if record.sites and record.sites != request.cohort:
        raise refusals.other_sites()
    is_the_one_before = record.attempt == frame.attempt - 1
    if is_the_one_before and request.abort is not None and record.context != request.abort.context:
        raise refusals.foreign_context()


def check_model(
    terms: Terms, before: AcceptedModel, round_number: int, payload: bytes | memoryview
) -> npt.NDArray[np.float32]:
    """Check the model of a request; returns a view of it, shape (m,) or (0,).

    Raises:
        PeerProtocolError: It has another length than the study's, or moved too far since `before`.
    """
    model = np.frombuffer(payload, np.dtype("<f4"))
    expected = terms.model_length(round_number)
    if len(model) != expected:
        raise refusals.model_length(len(model), expected)
    if expected:
        rules.check_step(terms, before.parameters, model, rounds=round_number - before.round_number)
    return model


def check_survivors(
    attempt: Attempt, survivors: Sequence[RelayedUpload], peers: PeerKeys, *, own: UploadHeader | None
) -> None:
    """Check that each survivor's upload is of this cohort and attempt, signed, and ours exactly as sent.

    Raises:
        PeerProtocolError: One is not.
    """
    sites = [relayed.upload.site for relayed in survivors]
    for site in sites:
        if site not in attempt.cohort:
            raise refusals.unknown_site(site)
    if own is None or own.site not in sites:
        raise refusals.own_upload_missing()
    if survivors[sites.index(own.site)].upload != own:
        raise refusals.own_upload_changed()
    for relayed in survivors:
        verify_upload(attempt, relayed.upload, peers)
        if not is_share_unaltered(relayed, attempt, holder=own.site):
            raise refusals.altered_share(relayed.upload.site)


def verify_upload(attempt: Attempt, upload: UploadHeader, peers: PeerKeys) -> None:
    """Check that an upload's header is its hospital's, for this attempt.

    Raises:
        PeerProtocolError: It is not.
    """
    sized = len(upload.entries) == len(attempt.cohort) * ENTRY_BYTES
    statement = upload_statement(attempt.context, upload)
    if not sized or not verify_signature(peers[upload.site], upload.signature, *statement):
        raise refusals.bad_upload_signature(upload.site)


def check_agreements(
    terms: Terms,
    attempt: Attempt,
    agreements: Sequence[tuple[str, bytes]],
    peers: PeerKeys,
    *,
    survivors: Collection[str],
    locked: bytes,
) -> None:
    """Check that T distinct survivors signed exactly the survivors that are locked here.

    Raises:
        PeerProtocolError: Too few did, one is listed twice, or a signature is not what it says.
    """
    seen: set[str] = set()
    for site, signature in agreements:
        if site in seen:
            raise refusals.duplicate_site(site)
        statement = agree_statement(attempt.context, site, locked)
        if site not in survivors or not verify_signature(peers[site], signature, *statement):
            raise refusals.bad_agreement(site)
        seen.add(site)
    if not rules.has_quorum(seen, attempt.cohort, terms.colluders):
        raise refusals.too_few_agreements(len(seen), attempt.threshold)
