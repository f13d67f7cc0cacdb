from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519

from agent.core.errors import PeerProtocolError
from agent.secagg.exchange import (
    RunKey,
    check_public_key,
    open_share,
    pair_seed,
    seal_share,
    seed_commitment,
    verify_signature,
)
from agent.secagg.transcript import frame_fields
from tests.simulators.cohort import make_key, make_signer

CONTEXT = b"c" * 32


def roots(key: RunKey, peer: str, peer_key: bytes, site: str, bundles: bytes = b"b" * 32) -> bytes:
    return key.roots(site, {peer: peer_key}, bundles=bundles, study=b"s" * 32)[peer]


def test_both_ends_derive_one_root_and_one_seed() -> None:
    left, right = RunKey(b"l" * 32), RunKey(b"r" * 32)
    ours, theirs = roots(left, "b", right.public, "a"), roots(right, "a", left.public, "b")
    assert ours == theirs
    assert pair_seed(ours, CONTEXT, "a", "b") == pair_seed(theirs, CONTEXT, "b", "a")
    assert seed_commitment(CONTEXT, "a", "b", ours) == seed_commitment(CONTEXT, "b", "a", ours)


def test_roots_depend_on_every_bundle_and_seeds_on_the_context() -> None:
    left, right = RunKey(b"l" * 32), RunKey(b"r" * 32)
    first, second = roots(left, "b", right.public, "a"), roots(left, "b", right.public, "a", b"x" * 32)
    assert first != second
    assert pair_seed(first, CONTEXT, "a", "b") != pair_seed(first, b"d" * 32, "a", "b")


def test_roots_are_kept_while_the_bundles_stay() -> None:
    left, right = RunKey(b"l" * 32), RunKey(b"r" * 32)
    known = left.roots("a", {"b": right.public}, bundles=b"b" * 32, study=b"s" * 32)
    assert left.roots("a", {"b": right.public}, bundles=b"b" * 32, study=b"s" * 32) is known


def test_a_sealed_share_opens_for_its_reader_round_and_direction_only() -> None:
    root = b"k" * 32
    sealed = seal_share(root, CONTEXT, "a", "b", b"share")
    assert open_share(root, CONTEXT, "a", "b", sealed) == b"share"
    for wrong in (
        (b"l" * 32, CONTEXT, "a", "b", sealed),
        (root, b"d" * 32, "a", "b", sealed),
        (root, CONTEXT, "b", "a", sealed),
        (root, CONTEXT, "a", "c", sealed),
        (root, CONTEXT, "a", "b", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (root, CONTEXT, "a", "b", b""),
    ):
        assert open_share(*wrong) is None


def test_generated_keys_are_accepted() -> None:
    for seed in range(20):
        check_public_key(RunKey(bytes([seed]) * 32).public, site="a")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(PeerProtocolError):
        check_public_key(b"\x09" * length, site="a")


def test_every_refused_point_is_one_whose_exchange_would_tell_nothing() -> None:
    """What is on the list has order 1, 2, 4 or 8: the library itself refuses the all-zero result."""
    from agent.secagg.exchange import _LOW_ORDER  # noqa: PLC0415 - the list itself is under test

    private = x25519.X25519PrivateKey.from_private_bytes(b"p" * 32)
    for value in _LOW_ORDER:
        with pytest.raises(ValueError, match=r"\w"):
            private.exchange(x25519.X25519PublicKey.from_public_bytes(value.to_bytes(32, "little")))


def test_signatures_cover_label_and_fields() -> None:
    key = make_key("a")
    signature = make_signer(key)(frame_fields("agree", b"x", "y", 3))
    assert verify_signature(key.public_key(), signature, "agree", b"x", "y", 3)
    for statement in (("abort", b"x", "y", 3), ("agree", b"xy", "", 3), ("agree", b"x", "y", 4), ("agree", b"x", "y")):
        assert not verify_signature(key.public_key(), signature, *statement)
    assert not verify_signature(key.public_key(), b"junk", "agree", b"x", "y", 3)
    assert not verify_signature(make_key("b").public_key(), signature, "agree", b"x", "y", 3)
