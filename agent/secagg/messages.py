"""The eight messages: strict parsers of frame headers, limits first, and their inverse.

Each message is a map of text keys to bytes, integers, texts and lists, plus one flat payload. A field too many, too
few, too long or of another type is refused; nothing is converted. Sites stand in the cohort's order: sorted by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.secagg import refusals
from agent.secagg.fields import (
    Header,
    check_empty,
    check_keys,
    take_bytes,
    take_fields,
    take_int,
    take_list,
    take_sorted,
    take_text,
)
from agent.secagg.terms import MAX_SITES
from agent.secagg.transcript import DIGEST_BYTES, KEY_BYTES

RUN_BYTES = 16
MAX_CERTIFICATE_BYTES = 8192
MAX_SIGNATURE_BYTES = 80
MAX_CONFIGURATION_BYTES = 1 << 16
ENTRY_BYTES = 2 * DIGEST_BYTES
"""Per holder: digest of the ciphertext, commitment to the shares."""
_MAX_SHARE_BYTES = MAX_SITES * KEY_BYTES + 16


@dataclass(frozen=True, slots=True)
class AdvertiseRequest:
    """Leg 0, to a node: the run that it is asked to join."""

    run: bytes

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        return {"run": self.run}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A node's key of one run, signed with its identity.

    Args:
        site: The hospital.
        key: X25519 public key, 32 bytes.
        certificate: What proves the node's identity to whoever holds the roster.
        signature: Over study, run, site, key and the certificate's digest.
    """

    site: str
    key: bytes
    certificate: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def fields(self) -> list[object]:
        """As an entry of a list."""
        return [self.site, self.key, self.certificate, self.signature]


@dataclass(frozen=True, slots=True)
class AdvertiseReply:
    """Leg 0, from a node.

    Args:
        run: As asked.
        bundle: Its key.
        standing: Round and attempt that it used last on its data set; a hint for a restarted coordinator.
    """

    run: bytes
    bundle: Bundle
    standing: tuple[int, int] | None = None

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        return {"run": self.run, "bundle": self.bundle.fields(), "standing": list(self.standing or ())}


@dataclass(frozen=True, slots=True)
class AbortCertificate:
    """Proof that an attempt is dead: at least T hospitals promised never to agree to it.

    Args:
        context: Of the attempt given up.
        signatures: By site.
    """

    context: bytes
    signatures: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class MaskedInputRequest:
    """Leg 1, to a node; the payload is the model, float32 little-endian.

    Args:
        run: Of leg 0.
        bundles: Of the whole cohort, sorted by site.
        previous: Digest of the sum before; zeros before the first.
        configuration: What the study leaves to earlier sums (moments of the data), opaque here, bound by the context.
        signature: The coordinator's, over the context.
        abort: From the second attempt of a round on: proof that the one before is dead.
        model: float32 little-endian, (m,) or empty.
    """

    run: bytes
    bundles: tuple[Bundle, ...]
    previous: bytes
    configuration: bytes
    signature: bytes = field(repr=False)
    abort: AbortCertificate | None
    model: bytes | memoryview = field(repr=False)

    @property
    def cohort(self) -> tuple[str, ...]:
        """Sites as listed."""
        return tuple(bundle.site for bundle in self.bundles)

    def header(self) -> dict[str, object]:
        """As a frame's header, without the model."""
        abort = [self.abort.context, *_signature_list(self.abort.signatures)] if self.abort else []
        return {
            "run": self.run,
            "bundles": [bundle.fields() for bundle in self.bundles],
            "previous": self.previous,
            "configuration": self.configuration,
            "signature": self.signature,
            "abort": abort,
        }


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """What a hospital signs about its upload.

    Args:
        site: The hospital.
        masked: Digest of the masked vector.
        commitment: To its self seed.
        entries: n * 64 bytes: for each holder the ciphertext's digest (zeros for itself) and the share commitment.
        seeds: Digest of the n * 32 bytes of seed commitments.
        signature: Over the context and all of this.
    """

    site: str
    masked: bytes
    commitment: bytes
    entries: bytes = field(repr=False)
    seeds: bytes
    signature: bytes = field(repr=False)

    def entry(self, index: int) -> tuple[bytes, bytes]:
        """Ciphertext digest and share commitment of the holder at `index` of the cohort."""
        entry = self.entries[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES]
        return entry[:DIGEST_BYTES], entry[DIGEST_BYTES:]

    def fields(self) -> list[object]:
        """As an entry of a list."""
        return [self.site, self.masked, self.commitment, self.entries, self.seeds, self.signature]


@dataclass(frozen=True, slots=True)
class MaskedInputReply:
    """Leg 1, from a node; the payload is the masked vector, uint64 little-endian.

    Args:
        context: The round's.
        upload: The signed header.
        seed_commitments: n * 32 bytes, zeros in its own place.
        shares: For each other hospital, in order, n * 32 + 16 bytes of ciphertext.
        masked: The vector.
    """

    context: bytes
    upload: UploadHeader
    seed_commitments: bytes = field(repr=False)
    shares: bytes = field(repr=False)
    masked: bytes | memoryview = field(repr=False)

    def header(self) -> dict[str, object]:
        """As a frame's header, without the vector."""
        return {
            "context": self.context,
            "upload": self.upload.fields(),
            "seed-commitments": self.seed_commitments,
            "shares": self.shares,
        }


@dataclass(frozen=True, slots=True)
class RelayedUpload:
    """A survivor's signed header, with the share that it sealed for the reader (empty for the reader's own)."""

    upload: UploadHeader
    share: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AgreeRequest:
    """Leg 2, to a node: agree to these survivors, or give the attempt up.

    Args:
        context: The round's; may be empty in a request to abort, if the server lost it.
        abort: Whether to give up.
        survivors: Sorted by site; empty in a request to abort.
    """

    context: bytes
    abort: bool
    survivors: tuple[RelayedUpload, ...] = ()

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        survivors = [[*relayed.upload.fields(), relayed.share] for relayed in self.survivors]
        return {"context": self.context, "abort": self.abort, "survivors": survivors}


class Answer(StrEnum):
    """What a node decided in leg 2."""

    COMPLETE = "complete"
    AGREED = "agreed"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Revelation:
    """Shares revealed, in the order of the survivors without those complained about.

    Args:
        complaints: Dealers whose shares were unusable.
        self_shares: 32 bytes a dealer: the share of b_i.
        rests: If the cohort is whole, 32 bytes a dealer: digest of all other slots.
        pair_shares: Else, for each dealer and each vanished hospital d: the share of the dealer's s_id, 32 bytes.
        slot_digests: Else, for each dealer: digests of the slots that stay hidden, 32 bytes each.
        own_seeds: Else, for each vanished hospital d: our own s_jd, 32 bytes.
    """

    complaints: tuple[str, ...]
    self_shares: bytes = field(repr=False)
    rests: bytes = field(repr=False, default=b"")
    pair_shares: bytes = field(repr=False, default=b"")
    slot_digests: bytes = field(repr=False, default=b"")
    own_seeds: bytes = field(repr=False, default=b"")

    def fields(self) -> list[object]:
        """As a list."""
        complaints = list(self.complaints)
        return [complaints, self.self_shares, self.rests, self.pair_shares, self.slot_digests, self.own_seeds]


@dataclass(frozen=True, slots=True)
class AgreeReply:
    """Leg 2, from a node.

    Args:
        context: Of the attempt decided on.
        site: Its own.
        answer: See `Answer`.
        signature: Over the survivors, or over the abort; empty where the shares themselves are the answer.
        revelation: Shares of self seeds, where the whole cohort survived.
    """

    context: bytes
    site: str
    answer: Answer
    signature: bytes = field(repr=False, default=b"")
    revelation: Revelation | None = None

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        return {
            "context": self.context,
            "site": self.site,
            "answer": self.answer.value,
            "signature": self.signature,
            "revelation": self.revelation.fields() if self.revelation else [],
        }


@dataclass(frozen=True, slots=True)
class RevealRequest:
    """Leg 3, to a node: who agreed to the survivors.

    Args:
        context: The round's.
        agreements: Site and signature, as listed; doubles are the node's to refuse.
    """

    context: bytes
    agreements: tuple[tuple[str, bytes], ...]

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        return {"context": self.context, "agreements": [list(pair) for pair in self.agreements]}


@dataclass(frozen=True, slots=True)
class RevealReply:
    """Leg 3, from a node."""

    context: bytes
    site: str
    revelation: Revelation

    def header(self) -> dict[str, object]:
        """As a frame's header."""
        return {"context": self.context, "site": self.site, "revelation": self.revelation.fields()}


def parse_advertise_request(header: Header, payload: bytes | memoryview) -> AdvertiseRequest:
    """Parse leg 0's request.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "run")
    check_empty(payload)
    return AdvertiseRequest(take_bytes(header["run"], RUN_BYTES))


def parse_advertise_reply(header: Header, payload: bytes | memoryview) -> AdvertiseReply:
    """Parse leg 0's reply.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "run", "bundle", "standing")
    check_empty(payload)
    standing = [take_int(value) for value in take_list(header["standing"], 2)]
    if len(standing) not in {0, 2}:
        raise refusals.malformed("a standing that is not a round and an attempt")
    return AdvertiseReply(
        take_bytes(header["run"], RUN_BYTES),
        _parse_bundle(header["bundle"]),
        (standing[0], standing[1]) if standing else None,
    )


def parse_masked_input_request(header: Header, payload: bytes | memoryview) -> MaskedInputRequest:
    """Parse leg 1's request.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "run", "bundles", "previous", "configuration", "signature", "abort")
    if len(payload) % 4:
        raise refusals.malformed("a model that is not a list of float32")
    return MaskedInputRequest(
        run=take_bytes(header["run"], RUN_BYTES),
        bundles=take_sorted(header["bundles"], _parse_bundle, lambda bundle: bundle.site),
        previous=take_bytes(header["previous"], DIGEST_BYTES),
        configuration=take_bytes(header["configuration"], 0, MAX_CONFIGURATION_BYTES),
        signature=take_bytes(header["signature"], 1, MAX_SIGNATURE_BYTES),
        abort=_parse_abort(header["abort"]),
        model=payload,
    )


def parse_masked_input_reply(header: Header, payload: bytes | memoryview) -> MaskedInputReply:
    """Parse leg 1's reply.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "context", "upload", "seed-commitments", "shares")
    if len(payload) % 8:
        raise refusals.malformed("a masked vector that is not a list of uint64")
    return MaskedInputReply(
        context=take_bytes(header["context"], DIGEST_BYTES),
        upload=_parse_upload(take_list(header["upload"], 6)),
        seed_commitments=take_bytes(header["seed-commitments"], 0, MAX_SITES * DIGEST_BYTES),
        shares=take_bytes(header["shares"], 0, MAX_SITES * _MAX_SHARE_BYTES),
        masked=payload,
    )


def parse_agree_request(header: Header, payload: bytes | memoryview) -> AgreeRequest:
    """Parse leg 2's request.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "context", "abort", "survivors")
    check_empty(payload)
    abort = header["abort"]
    if not isinstance(abort, bool):
        raise refusals.malformed("an abort that is neither true nor false")
    context = take_bytes(header["context"], 0, DIGEST_BYTES)
    survivors = take_sorted(header["survivors"], _parse_relayed, lambda relayed: relayed.upload.site)
    if bool(survivors) is abort or not (len(context) == DIGEST_BYTES or (abort and not context)):
        raise refusals.malformed("neither survivors to agree to, nor an attempt to give up")
    return AgreeRequest(context, abort, survivors)


def parse_agree_reply(header: Header, payload: bytes | memoryview) -> AgreeReply:
    """Parse leg 2's reply.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "context", "site", "answer", "signature", "revelation")
    check_empty(payload)
    answer = header["answer"]
    if not isinstance(answer, str) or answer not in set(Answer):
        raise refusals.malformed("an unknown answer")
    complete = answer == Answer.COMPLETE
    if not complete:
        take_list(header["revelation"], 0)
    return AgreeReply(
        context=take_bytes(header["context"], DIGEST_BYTES),
        site=take_text(header["site"]),
        answer=Answer(answer),
        signature=take_bytes(header["signature"], 0 if complete else 1, 0 if complete else MAX_SIGNATURE_BYTES),
        revelation=_parse_revelation(header["revelation"]) if complete else None,
    )


def parse_reveal_request(header: Header, payload: bytes | memoryview) -> RevealRequest:
    """Parse leg 3's request.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "context", "agreements")
    check_empty(payload)
    agreements = take_list(header["agreements"], MAX_SITES)
    return RevealRequest(
        take_bytes(header["context"], DIGEST_BYTES), tuple(_parse_signature_pair(pair) for pair in agreements)
    )


def parse_reveal_reply(header: Header, payload: bytes | memoryview) -> RevealReply:
    """Parse leg 3's reply.

    Raises:
        PeerProtocolError: It is malformed.
    """
    check_keys(header, "context", "site", "revelation")
    check_empty(payload)
    return RevealReply(
        take_bytes(header["context"], DIGEST_BYTES),
        take_text(header["site"]),
        _parse_revelation(header["revelation"]),
    )


def _parse_bundle(value: object) -> Bundle:
    site, key, certificate, signature = take_fields(value, 4)
    return Bundle(
        take_text(site),
        take_bytes(key, KEY_BYTES),
        take_bytes(certificate, 1, MAX_CERTIFICATE_BYTES),
        take_bytes(signature, 1, MAX_SIGNATURE_BYTES),
    )


def _parse_upload(value: list[object]) -> UploadHeader:
    site, masked, commitment, entries, seeds, signature = take_fields(value, 6)
    return UploadHeader(
        take_text(site),
        take_bytes(masked, DIGEST_BYTES),
        take_bytes(commitment, DIGEST_BYTES),
        take_bytes(entries, ENTRY_BYTES, MAX_SITES * ENTRY_BYTES),
        take_bytes(seeds, DIGEST_BYTES),
        take_bytes(signature, 1, MAX_SIGNATURE_BYTES),
    )


def _parse_relayed(value: object) -> RelayedUpload:
    fields = take_fields(value, 7)
    return RelayedUpload(_parse_upload(fields[:6]), take_bytes(fields[6], 0, _MAX_SHARE_BYTES))


def _parse_abort(value: object) -> AbortCertificate | None:
    items = take_list(value, MAX_SITES + 1)
    if not items:
        return None
    pairs = [_parse_signature_pair(pair) for pair in items[1:]]
    signatures = dict(pairs)
    if len(signatures) != len(pairs):
        raise refusals.malformed("an abort with a site named twice")
    return AbortCertificate(take_bytes(items[0], DIGEST_BYTES), signatures)


def _parse_signature_pair(value: object) -> tuple[str, bytes]:
    site, signature = take_fields(value, 2)
    return take_text(site), take_bytes(signature, 1, MAX_SIGNATURE_BYTES)


def _parse_revelation(value: object) -> Revelation:
    complaints, *parts = take_fields(value, 6)
    largest = MAX_SITES * MAX_SITES * DIGEST_BYTES
    blobs = [take_bytes(part, 0, largest) for part in parts]
    if any(len(blob) % DIGEST_BYTES for blob in blobs):
        raise refusals.malformed("shares that are not 32 bytes each")
    return Revelation(tuple(take_text(site) for site in take_list(complaints, MAX_SITES)), *blobs)


def _signature_list(signatures: Mapping[str, bytes]) -> list[list[object]]:
    return [[site, signatures[site]] for site in sorted(signatures)]
