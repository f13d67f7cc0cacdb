"""Proofs of the log's Merkle tree, in the form of the standard: made from the library's, verified clause by clause.

The tree, its roots and its inclusion paths are pymerkle's. Its consistency proofs are of its own form, which no
other witness reads, so they are put together here from an inclusion path.

Source: RFC 9162 2.1 (the same trees and proofs as RFC 6962).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pymerkle import BaseMerkleTree

from agent.core.errors import PeerProtocolError

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""Root of a tree without leaves (RFC 9162 2.1.1)."""

Hashes = tuple[bytes, ...]
"""A path: (32,) each."""


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf: (32,)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: (32,)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over leaves' hashes (RFC 9162 2.1.2): (32,)."""
    if not hashes:
        return EMPTY_ROOT
    stack: list[bytes] = []
    for index, value in enumerate(hashes):
        stack.append(value)
        # As many whole subtrees end at this leaf as its index has trailing ones.
        for _ in range((~index & (index + 1)).bit_length() - 1):
            right = stack.pop()
            stack.append(node_hash(stack.pop(), right))
    while len(stack) > 1:
        right = stack.pop()
        stack.append(node_hash(stack.pop(), right))
    return stack[0]


def inclusion_path(tree: BaseMerkleTree, index: int, size: int) -> Hashes:
    """The inclusion proof of a leaf (RFC 9162 2.1.3.1).

    Args:
        tree: The library's tree, of at least `size` leaves.
        index: From 0.
        size: Of the tree that the proof is for.
    """
    # The library counts from 1, and puts the leaf's own hash first.
    return tuple(tree.prove_inclusion(index + 1, size).path[1:])


def consistency_path(tree: BaseMerkleTree, old: int, new: int) -> Hashes:
    """The consistency proof between two sizes (RFC 9162 2.1.4.1).

    Args:
        tree: The library's tree, of at least `new` leaves.
        old: At least 1.
        new: At least `old`.
    """
    if old == new:
        return ()
    leaf, *path = tree.prove_inclusion(old, new).path
    # The old tree's last leaf closes a whole subtree of 2^inner leaves: with its siblings on the left so far, that
    # subtree's root is where the proof begins; where the subtree is the whole old tree, the verifier has it already.
    inner = (old & -old).bit_length() - 1
    for left in path[:inner]:
        leaf = node_hash(left, leaf)
    return (*(() if old & (old - 1) == 0 else (leaf,)), *path[inner:])


def verify_inclusion(path: Sequence[bytes], *, index: int, size: int, leaf: bytes, root: bytes) -> None:
    """Verify that a leaf stands at its place in a tree (RFC 9162 2.1.3.2).

    Args:
        path: The proof.
        index: From 0.
        size: Of the tree.
        leaf: Its hash: (32,).
        root: Of the tree: (32,).

    Raises:
        PeerProtocolError: It does not (`audit.bad_proof`).
    """
    # Step 1.
    if not 0 <= index < size:
        raise _bad_proof()
    # Steps 2 and 3.
    fn, sn, value = index, size - 1, leaf
    # Step 4.
    for sibling in path:
        if sn == 0:
            raise _bad_proof()
        if fn & 1 or fn == sn:
            value = node_hash(sibling, value)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            value = node_hash(value, sibling)
        fn, sn = fn >> 1, sn >> 1
    # Step 5.
    if sn or value != root:
        raise _bad_proof()


def verify_consistency(path: Sequence[bytes], *, old: int, new: int, old_root: bytes, new_root: bytes) -> None:
    """Verify that one tree continues another (RFC 9162 2.1.4.2).

    Args:
        path: The proof; empty where `old` is 0 or the sizes are the same.
        old: Size of the tree before.
        new: Size of the tree now.
        old_root: (32,).
        new_root: (32,).

    Raises:
        PeerProtocolError: It does not (`audit.bad_proof`).
    """
    if old in {0, new}:
        # Every tree continues the empty one; a tree continues itself.
        if path or old_root != (new_root if old == new else EMPTY_ROOT):
            raise _bad_proof()
        return
    # Step 1.
    if not 0 < old < new or not path:
        raise _bad_proof()
    # Step 2.
    hashes = [*(() if old & (old - 1) else (old_root,)), *path]
    # Steps 3 and 4.
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    # Step 5.
    fr = sr = hashes[0]
    # Step 6.
    for value in hashes[1:]:
        if sn == 0:
            raise _bad_proof()
        if fn & 1 or fn == sn:
            fr, sr = node_hash(value, fr), node_hash(value, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, value)
        fn, sn = fn >> 1, sn >> 1
    # Step 7.
    if sn or fr != old_root or sr != new_root:
        raise _bad_proof()


def _bad_proof() -> PeerProtocolError:
    return PeerProtocolError(
        "audit.bad_proof",
        "A proof of an audit log does not hold: the log is not the one before with more entries.",
        next_step="Take it as a sign that entries were altered or removed; keep both checkpoints.",
    )
