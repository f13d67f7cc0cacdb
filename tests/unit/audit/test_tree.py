"""The log's tree and proofs against published vectors.

Sources: transparency-dev/merkle, proof/verify_test.go, whose eight leaves and roots are those of Certificate
Transparency's first tests (RFC 6962 2.1, kept in RFC 9162 2.1); litewitness's own test of a witness.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from pymerkle import InmemoryTree

from agent.audit.tree import (
    EMPTY_ROOT,
    Hashes,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from agent.core.errors import PeerProtocolError

LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
G = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f"
FIRST, SECOND, FOURTH = ROOTS[0].hex(), ROOTS[1].hex(), ROOTS[3].hex()
INCLUSION = [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [D, E, FOURTH]), (3, 3, [SECOND]), (2, 5, [FIRST, B, D])]
"""Leaf from 1, size, path."""
CONSISTENCY = [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [F, E, FOURTH]), (2, 5, [B, D]), (6, 7, [F, G, FOURTH])]
"""Old size, new size, path."""
SOME = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")


def hashes(*texts: str) -> Hashes:
    return tuple(bytes.fromhex(text) for text in texts)


@pytest.fixture(scope="module")
def tree() -> InmemoryTree:
    return InmemoryTree.init_from_entries(LEAVES)


def test_roots_are_the_published_ones(tree: InmemoryTree) -> None:
    assert tree.get_root(0) == EMPTY_ROOT == root_of([])
    for size, root in enumerate(ROOTS, 1):
        assert tree.get_root(size) == root
        assert root_of([leaf_hash(leaf) for leaf in LEAVES[:size]]) == root


@pytest.mark.parametrize(("leaf", "size", "path"), INCLUSION)
def test_inclusion_proofs_are_the_published_ones(tree: InmemoryTree, leaf: int, size: int, path: list[str]) -> None:
    assert inclusion_path(tree, leaf - 1, size) == hashes(*path)
    verify_inclusion(hashes(*path), index=leaf - 1, size=size, leaf=leaf_hash(LEAVES[leaf - 1]), root=ROOTS[size - 1])


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(tree: InmemoryTree, old: int, new: int, path: list[str]) -> None:
    assert consistency_path(tree, old, new) == hashes(*path)
    verify_consistency(hashes(*path), old=old, new=new, old_root=ROOTS[old - 1], new_root=ROOTS[new - 1])


def spoilt(path: Hashes, *roots: bytes) -> Iterator[Hashes]:
    """Every way in which the published tests spoil a path."""
    yield from ((*path, b""), (b"", *path))
    for root in roots:
        yield from ((*path, root), (root, *path))
    if path:
        yield from (path[:-1], (), (path[0], SOME, *path[1:]), (path[0], *path))
    for place, value in enumerate(path):
        yield (*path[:place], bytes([value[0] ^ 16]) + value[1:], *path[place + 1 :])


@pytest.mark.parametrize(("leaf", "size", "path"), INCLUSION[1:])
def test_spoilt_inclusion_proofs_are_refused(leaf: int, size: int, path: list[str]) -> None:
    index, digest, root, whole = leaf - 1, leaf_hash(LEAVES[leaf - 1]), ROOTS[size - 1], hashes(*path)
    tries = [
        *((index, size, root, digest, other) for other in spoilt(whole, root)),
        *((other, size, root, digest, whole) for other in (index - 1, index + 1, index ^ 2)),
        *((index, other, root, digest, whole) for other in (size * 2, size // 2)),
        *((index, size, other, digest, whole) for other in (EMPTY_ROOT, SOME)),
        (index, size, root, b"WrongLeaf", whole),
    ]
    for place, of, against, said, proof in tries:
        with pytest.raises(PeerProtocolError):
            verify_inclusion(proof, index=place, size=of, leaf=said, root=against)


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCY[1:])
def test_spoilt_consistency_proofs_are_refused(old: int, new: int, path: list[str]) -> None:
    before, after, whole = ROOTS[old - 1], ROOTS[new - 1], hashes(*path)
    tries = [
        *((old, new, before, after, other) for other in spoilt(whole, before, after)),
        *((other, new, before, after, whole) for other in (old - 1, old + 1, old ^ 2)),
        *((old, other, before, after, whole) for other in (new * 2, new // 2)),
        (old, new, b"WrongRoot", after, whole),
        (old, new, before, b"WrongRoot", whole),
        (old, new, after, before, whole),
    ]
    for first, second, root, later, proof in tries:
        with pytest.raises(PeerProtocolError):
            verify_consistency(proof, old=first, new=second, old_root=root, new_root=later)


@pytest.mark.parametrize(
    ("old", "new", "before", "after", "path", "holds"),
    [
        (0, 0, EMPTY_ROOT, EMPTY_ROOT, (), True),
        (0, 1, EMPTY_ROOT, ROOTS[0], (), True),
        (1, 1, ROOTS[1], ROOTS[1], (), True),
        (0, 0, ROOTS[0], ROOTS[1], (), False),
        (1, 1, ROOTS[0], ROOTS[1], (), False),
        (1, 0, ROOTS[0], EMPTY_ROOT, (), False),
        (2, 1, ROOTS[1], ROOTS[0], (), False),
        (1, 2, ROOTS[0], ROOTS[1], (), False),
        (0, 0, EMPTY_ROOT, EMPTY_ROOT, (EMPTY_ROOT,), False),
        (0, 1, EMPTY_ROOT, EMPTY_ROOT, (EMPTY_ROOT,), False),
        (1, 1, EMPTY_ROOT, EMPTY_ROOT, (EMPTY_ROOT,), False),
    ],
)
def test_edges(old: int, new: int, before: bytes, after: bytes, path: Hashes, *, holds: bool) -> None:
    if holds:
        verify_consistency(path, old=old, new=new, old_root=before, new_root=after)
        return
    with pytest.raises(PeerProtocolError):
        verify_consistency(path, old=old, new=new, old_root=before, new_root=after)


@pytest.mark.parametrize(
    ("old", "new", "before", "after", "path"),
    [
        (1, 3, f"2a{0:062x}", "45c088d4d939e9971298811f227d1295eaad57bbafae55cd71c171e7de48c25d",
         (f"2a01{0:060x}", f"2a02{0:060x}")),
        (3, 5, "45c088d4d939e9971298811f227d1295eaad57bbafae55cd71c171e7de48c25d",
         "42bb57ad06420afa4882c4a63ac6a1ec77480b330b2f20dfc53a0caa5f564e36",
         (f"2a02{0:060x}", f"2a03{0:060x}", "c2088815d65f60dbfa594d4e96504ab169cb6084bf0c132ab7c521fd2e0eba41",
          f"2a04{0:060x}")),
    ],
)  # fmt: skip
def test_proofs_of_another_witnesss_tests_hold(
    old: int, new: int, before: str, after: str, path: tuple[str, ...]
) -> None:
    verify_consistency(hashes(*path), old=old, new=new, old_root=bytes.fromhex(before), new_root=bytes.fromhex(after))


def naive_root(digests: list[bytes]) -> bytes:
    """RFC 9162 2.1.1, word by word."""
    if len(digests) < 2:
        return digests[0] if digests else EMPTY_ROOT
    split = 1 << (len(digests) - 1).bit_length() - 1
    return node_hash(naive_root(digests[:split]), naive_root(digests[split:]))


def naive_path(old: int, digests: list[bytes], *, whole: bool = True) -> Hashes:
    """RFC 9162 2.1.4.1, SUBPROOF."""
    size = len(digests)
    if old == size:
        return () if whole else (naive_root(digests),)
    split = 1 << (size - 1).bit_length() - 1
    if old <= split:
        return (*naive_path(old, digests[:split], whole=whole), naive_root(digests[split:]))
    return (*naive_path(old - split, digests[split:], whole=False), naive_root(digests[:split]))


def test_any_two_sizes_prove_as_the_standard_defines() -> None:
    dice = random.Random(9162)
    entries = [dice.randbytes(8) for _ in range(70)]
    digests = [leaf_hash(entry) for entry in entries]
    tree = InmemoryTree.init_from_entries(entries)
    roots = [naive_root(digests[:size]) for size in range(71)]
    for new in range(1, 71):
        assert tree.get_root(new) == root_of(digests[:new]) == roots[new]
        for old in range(1, new + 1):
            path = consistency_path(tree, old, new)
            assert path == naive_path(old, digests[:new])
            verify_consistency(path, old=old, new=new, old_root=roots[old], new_root=roots[new])
            verify_inclusion(
                inclusion_path(tree, old - 1, new), index=old - 1, size=new, leaf=digests[old - 1], root=roots[new]
            )
