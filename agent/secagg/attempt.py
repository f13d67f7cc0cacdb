"""What node and server derive alike: the context of one attempt at a round, and the statements signed in it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from agent.secagg.codec import Codec, codec_for
from agent.secagg.exchange import TAG_BYTES
from agent.secagg.messages import Bundle, UploadHeader
from agent.secagg.rules import agreement_threshold, may_sum_part
from agent.secagg.terms import Terms
from agent.secagg.transcript import KEY_BYTES, NO_DIGEST, Field, digest, digest_list, expand_key, frame_fields

Signer = Callable[[bytes], bytes]
"""Signs bytes: ECDSA over P-256 with SHA-256, DER."""
Randomness = Callable[[int], bytes]
"""So many uniform bytes from a cryptographically secure source."""
Statement = tuple[str, *tuple[Field, ...]]
"""A label and the fields under it."""

_BOUNDS = struct.Struct(">ddd")


class Roster(Protocol):
    """Which nodes speak for which hospital, as this party itself trusts it; never what the server relays."""

    def verify_certificate(self, site: str, certificate: bytes) -> ec.EllipticCurvePublicKey:
        """The P-256 key that speaks for `site`.

        Raises:
            PeerProtocolError: `certificate` is not that of a node of `site` (see `refusals.untrusted_certificate`).
        """
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one round; all of it is public.

    Args:
        round_number, attempt: Which.
        cohort: Sites, sorted.
        threshold: T.
        partial: Whether a part of the cohort may be summed, so that shares of pairwise seeds are dealt too.
        codec: Layout of its vectors.
        bundles: Digest of all keys.
        model: Digest of the model; zeros where the round has none.
        context: ctx, which binds all of the above, the study, the run, the sum before and the configuration.
    """

    round_number: int
    attempt: int
    cohort: tuple[str, ...]
    threshold: int
    partial: bool
    codec: Codec
    bundles: bytes
    model: bytes
    context: bytes

    def slots(self, dealer: str) -> tuple[str, ...]:
        """Whose seeds a dealer shares out, in order: b_i in its own place, s_ik in each other's, if they are needed."""
        return self.cohort if self.partial else (dealer,)

    @property
    def sealed_bytes(self) -> int:
        """Length of one sealed share."""
        return len(self.slots(self.cohort[0])) * KEY_BYTES + TAG_BYTES

    @property
    def check_key(self) -> bytes:
        """Key of the check word's coefficients; public within the round."""
        return expand_key(self.context, "check-word")


def open_attempt(
    terms: Terms,
    *,
    run: bytes,
    round_number: int,
    attempt: int,
    bundles: Sequence[Bundle],
    model: bytes | memoryview,
    previous: bytes,
    configuration: bytes,
) -> Attempt:
    """Derive an attempt from a leg 1 request whose cohort was checked."""
    cohort = tuple(bundle.site for bundle in bundles)
    threshold = agreement_threshold(len(cohort), terms.colluders)
    partial = may_sum_part(terms, cohort)
    codec = codec_for(terms, round_number=round_number, cohort=len(cohort), threshold=threshold)
    keys = bundles_digest(bundles)
    model_digest = digest("model", model) if len(model) else NO_DIGEST
    context = digest(
        "context",
        terms.study_digest,
        run,
        round_number,
        attempt,
        keys,
        model_digest,
        previous,
        digest("configuration", configuration),
        terms.colluders,
        terms.minimum_sites,
        threshold,
        int(partial),
        terms.dropout.value,
        _BOUNDS.pack(terms.clip, terms.max_step_l2, terms.max_step_linf),
        frame_fields("codec", *codec.layout),
    )
    return Attempt(round_number, attempt, cohort, threshold, partial, codec, keys, model_digest, context)


def bundles_digest(bundles: Sequence[Bundle]) -> bytes:
    """Digest of a cohort's keys and certificates, in the cohort's order."""
    return digest_list("bundles", (frame_fields(*_bundle_fields("bundle", bundle)) for bundle in bundles))


def bundle_statement(terms: Terms, run: bytes, bundle: Bundle) -> Statement:
    """What a node signs in leg 0."""
    return (*_bundle_fields("advertise", bundle), terms.study_digest, run)


def upload_statement(context: bytes, upload: UploadHeader) -> Statement:
    """What a node signs in leg 1."""
    entries = digest("entries", upload.entries)
    return ("upload", context, upload.site, upload.masked, upload.commitment, entries, upload.seeds)


def survivors_digest(context: bytes, uploads: Sequence[UploadHeader]) -> bytes:
    """H(U): the survivors in order, each with exactly what it uploaded."""
    return digest_list("survivors", (frame_fields(*upload_statement(context, upload)) for upload in uploads))


def agree_statement(context: bytes, site: str, survivors: bytes) -> Statement:
    """What a node signs in leg 2 over H(U)."""
    return ("agree", context, site, survivors)


def abort_statement(terms: Terms, site: str, round_number: int, attempt: int, context: bytes) -> Statement:
    """What a node signs when it gives an attempt up."""
    return ("abort", terms.study_digest, site, round_number, attempt, context)


def coordinator_statement(context: bytes) -> Statement:
    """What the coordinator signs: through the context, this model and the sum before it."""
    return ("coordinator", context)


def sign_statement(sign: Signer, statement: Statement) -> bytes:
    """A signature over the framed statement."""
    return sign(frame_fields(*statement))


def _bundle_fields(label: str, bundle: Bundle) -> Statement:
    return (label, bundle.site, bundle.key, digest("certificate", bundle.certificate))
