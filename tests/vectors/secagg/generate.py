"""Writes the test vectors of secure aggregation: `python -m tests.vectors.secagg.generate`.

Everything random is drawn from seeded streams, so the files come out the same each time. Signatures do not enter any
digest, so they are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.secagg.attempt import Attempt, bundle_statement, open_attempt, survivors_digest, upload_statement
from agent.secagg.codec import Codec, IntegerSource, codec_for
from agent.secagg.exchange import RunKey, pair_seed, seed_commitment
from agent.secagg.holder import OpenedShares, open_held_shares, reveal_complete, reveal_partial
from agent.secagg.masking import Mask, check_word, sum_masked
from agent.secagg.messages import Bundle, MaskedInputReply, RelayedUpload, UploadHeader
from agent.secagg.round_secrets import RoundSecrets, mask_input
from agent.secagg.shamir import split_secret
from agent.secagg.terms import Dropout, Terms
from agent.secagg.transcript import NO_DIGEST, digest, frame_fields
from tests.simulators.cohort import SeededRandomness, certificate_of, make_key, make_terms

FOLDER = Path(__file__).parent
RUN = bytes(range(16))
MODEL_STEP = 0.125


def primitives() -> dict[str, object]:
    """Framing, secret sharing, key streams, refused keys."""
    fields = ("site-000", 7, b"\x00\xff", "", 2**64 - 1)
    secret, coefficients = bytes(range(32)), SeededRandomness("coefficients")(2 * 32)
    rows = split_secret(secret, threshold=3, shares=5, coefficients=coefficients)
    stream = np.zeros(6, np.uint64)
    sum_masked(stream, (), [Mask(bytes(range(32)))])
    words = np.arange(10, dtype=np.uint64)
    prime = 2**255 - 19
    refused = {"zero": 0, "one": 1, "minus one": prime - 1, "the prime": prime, "one again": prime + 1}
    refused["high bit"] = 9 + (1 << 255)
    return {
        "framing": {
            "label": "example",
            "fields": [field.hex() if isinstance(field, bytes) else field for field in fields],
            "types": [type(field).__name__ for field in fields],
            "framed": frame_fields("example", *fields).hex(),
            "digest": digest("example", *fields).hex(),
        },
        "shamir": {
            "published": {"secret": b"test\0".hex(), "shares": {"1": "b9fa07e185", "2": "f5409b4511"}},
            "secret": secret.hex(),
            "threshold": 3,
            "coefficients": coefficients.hex(),
            "shares": [row.tobytes().hex() for row in rows],
        },
        "key_stream": {"key": bytes(range(32)).hex(), "words": stream.tolist()},
        "check_word": {"key": bytes(32).hex(), "words": words.tolist(), "value": check_word(words, bytes(32))},
        "refused_x25519_keys": {name: value.to_bytes(32, "little").hex() for name, value in refused.items()},
    }


def codecs() -> list[dict[str, object]]:
    """Integers in lanes, for several cohorts; rounding is each hospital's own affair."""
    made = []
    for bits, cohort, length in ((8, 3, 11), (14, 4, 9), (16, 33, 7), (24, 100, 5)):
        codec = Codec(length, 2, cohort, bits, 0.5, 1000)
        source = np.random.default_rng(bits)
        integers = source.integers(-codec.limit, codec.limit + 1, length).astype(np.int32)
        words = np.full(
            codec.packed_words, sum(codec.offset << (k * codec.lane_bits) for k in range(codec.lanes)), "<u8"
        )
        codec._fill_lanes(words, _slices(integers))
        total = np.concatenate([words * np.uint64(2), np.array([500, 3, 70, 80, 0], np.uint64)])
        made.append(
            {
                "bits": bits,
                "cohort": cohort,
                "clip": codec.clip,
                "weight_cap": codec.weight_cap,
                "offset": codec.offset,
                "lane_bits": codec.lane_bits,
                "lanes": codec.lanes,
                "integers": integers.tolist(),
                "packed": words.tolist(),
                "effective_weights": {str(weight): codec.effective_weight(weight) for weight in (0, 1, 8, 500, 5000)},
                "sum_of_two": {
                    "weight": 500,
                    "mean": codec.decode(total, survivors=2).update.astype(np.float64).tolist(),
                },
            }
        )
    return made


def _slices(integers: npt.NDArray[np.int32]) -> IntegerSource:
    return lambda low, high: integers[low:high]


def a_round(sites: int, vanished: tuple[str, ...]) -> dict[str, object]:
    """One attempt at round 2, every value that both sides derive, and the unmasked sum."""
    dropout = Dropout.CONTINUE if vanished else Dropout.WAIT
    terms = make_terms(sites, parameters=10, words=2, dropout=dropout, accept_differencing=bool(vanished))
    keys = {site: RunKey(SeededRandomness((site, "x25519"))(32)) for site in terms.sites}
    bundles = tuple(Bundle(site, keys[site].public, certificate_of(make_key(site)), b"") for site in terms.sites)
    model = np.full(terms.parameters, MODEL_STEP, "<f4").tobytes()
    attempt = open_attempt(
        terms,
        run=RUN,
        round_number=2,
        attempt=1,
        bundles=bundles,
        model=model,
        previous=digest("example", "the sum before"),
        configuration=b"{}",
    )
    nodes = {site: node(terms, attempt, keys, site) for site in terms.sites}
    survivors = [site for site in attempt.cohort if site not in vanished]
    return {
        "terms": terms_of(terms),
        "run": RUN.hex(),
        "round": 2,
        "attempt": 1,
        "previous": digest("example", "the sum before").hex(),
        "configuration": b"{}".hex(),
        "model": model.hex(),
        "bundles": [
            {
                "site": bundle.site,
                "private_key": SeededRandomness((bundle.site, "x25519"))(32).hex(),
                "key": bundle.key.hex(),
                "certificate": bundle.certificate.hex(),
                "signed": frame_fields(*bundle_statement(terms, RUN, bundle)).hex(),
            }
            for bundle in bundles
        ],
        "threshold": attempt.threshold,
        "partial": attempt.partial,
        "layout": list(attempt.codec.layout),
        "bundles_digest": attempt.bundles.hex(),
        "model_digest": attempt.model.hex(),
        "context": attempt.context.hex(),
        "check_key": attempt.check_key.hex(),
        "nodes": {site: described for site, (_, __, described) in nodes.items()},
        "survivors": survivors,
        **ending(attempt, nodes, survivors),
    }


Node = tuple[RoundSecrets, MaskedInputReply, dict[str, object]]


def node(terms: Terms, attempt: Attempt, keys: dict[str, RunKey], site: str) -> Node:
    """One hospital's leg 1."""
    peers = {other: key.public for other, key in keys.items() if other != site}
    secrets = RoundSecrets.derive(
        keys[site],
        attempt,
        site=site,
        peer_keys=peers,
        study=terms.study_digest,
        self_seed=SeededRandomness((site, "self seed"))(32),
    )
    vector = attempt.codec.encode(None, key=bytes(32), check_key=attempt.check_key)
    index = attempt.cohort.index(site)
    tail = vector[attempt.codec.packed_words :]
    tail[:-1] = [100 + index, index, 1000 * index, 2**40 + index]
    tail[-1] = check_word(vector[:-1], attempt.check_key)
    clear = vector.tolist()
    coefficients = SeededRandomness((site, "coefficients"))
    reply = mask_input(vector, secrets, attempt, randomness=coefficients, workers=1)
    drawn = SeededRandomness((site, "coefficients"))((attempt.threshold - 1) * len(attempt.slots(site)) * 32)
    return secrets, reply, {
        "self_seed": secrets.seeds[site].hex(),
        "roots": {peer: root.hex() for peer, root in secrets.roots.items()},
        "seeds": {
            peer: pair_seed(root, attempt.context, site, peer).hex() for peer, root in secrets.roots.items()
        },
        "seed_commitments": {
            peer: seed_commitment(attempt.context, site, peer, secrets.seeds[peer]).hex() for peer in secrets.roots
        },
        "coefficients": drawn.hex(),
        "vector": clear,
        "masked": vector.tolist(),
        "masked_digest": reply.upload.masked.hex(),
        "commitment": reply.upload.commitment.hex(),
        "entries": reply.upload.entries.hex(),
        "seeds_digest": reply.upload.seeds.hex(),
        "sealed_shares": reply.shares.hex(),
        "signed": frame_fields(*upload_statement(attempt.context, reply.upload)).hex(),
    }  # fmt: skip


def ending(attempt: Attempt, nodes: dict[str, Node], survivors: list[str]) -> dict[str, object]:
    """Legs 2 and 3, and the sum."""
    uploads = [nodes[site][1].upload for site in survivors]
    locked = survivors_digest(attempt.context, uploads)
    revelations = {}
    for site in survivors:
        secrets = nodes[site][0]
        opened = open_held_shares(secrets, attempt, [_relayed(attempt, nodes[dealer][1], site) for dealer in survivors])
        revelations[site] = _revealed(attempt, secrets, opened, uploads, locked)
    total = np.sum([np.array(nodes[site][2]["vector"], np.uint64) for site in survivors], axis=0, dtype=np.uint64)
    return {
        "survivors_digest": locked.hex(),
        "revelations": revelations,
        "sum": total.tolist(),
        "sum_digest": digest("sum", attempt.context, total.view(np.uint8).data).hex(),
    }


def _relayed(attempt: Attempt, reply: MaskedInputReply, holder: str) -> RelayedUpload:
    dealer, size = reply.upload.site, attempt.sealed_bytes
    place = attempt.cohort.index(holder) - (holder > dealer)
    share = b"" if dealer == holder else reply.shares[place * size : (place + 1) * size]
    return RelayedUpload(reply.upload, share)


def _revealed(
    attempt: Attempt, secrets: RoundSecrets, opened: OpenedShares, uploads: list[UploadHeader], locked: bytes
) -> list[object]:
    if len(uploads) == len(attempt.cohort):
        revelation = reveal_complete(opened)
    else:
        secrets.hold(opened, uploads, locked)
        revelation = reveal_partial(secrets, attempt)
    return [field.hex() if isinstance(field, bytes) else field for field in revelation.fields()]


def terms_of(terms: Terms) -> dict[str, object]:
    """The terms as a reader in any language needs them."""
    return {
        "study_digest": terms.study_digest.hex(),
        "sites": list(terms.sites),
        "colluders": terms.colluders,
        "minimum_sites": terms.minimum_sites,
        "parameters": terms.parameters,
        "words": terms.words,
        "clip": terms.clip,
        "bits": terms.bits,
        "weight_cap": terms.weight_cap,
        "dropout": terms.dropout.value,
        "max_step_l2": terms.max_step_l2,
        "max_step_linf": terms.max_step_linf,
    }


def build() -> dict[str, object]:
    """Every file's content by name."""
    assert codec_for(make_terms(4), round_number=1, cohort=4, threshold=3).lane_bits == 16
    assert len(NO_DIGEST) == 32
    return {
        "primitives.json": primitives(),
        "codec.json": codecs(),
        "round-3-whole.json": a_round(3, ()),
        "round-5-partial.json": a_round(5, ("site-003",)),
    }


def main() -> None:
    """Write the files beside this module."""
    for name, content in build().items():
        (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
