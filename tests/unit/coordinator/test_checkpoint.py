from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agent.core.errors import OperatorError
from agent.trust.metrics import Moments
from provisioning.coordinator.checkpoint import Checkpoint, CheckpointStore, encode_checkpoint, parse_checkpoint

DIGEST = "ab" * 32
vectors = arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32, allow_nan=False))


def checkpoint(number: int, *, digest: str = DIGEST) -> Checkpoint:
    return Checkpoint(digest, number, np.arange(5, dtype=np.float32) + number)


def nothing_is_damaged(file: Path) -> None:
    raise AssertionError(file)


@given(vectors, st.integers(0, 10_000), st.dictionaries(st.text(), st.integers() | st.text(), max_size=3))
def test_a_checkpoint_comes_back_bit_for_bit(
    vector: np.ndarray[tuple[int], np.dtype[np.float32]], number: int, kept: dict[str, object]
) -> None:
    original = Checkpoint(
        DIGEST,
        number,
        vector,
        moments={"age": Moments(53.1, 9.0)},
        strategy={"m_t": vector[::-1], "v_t": vector.astype(np.float64)},
        history=({"round": 1, "auc": None},),
        aggregation=kept,
    )

    back = parse_checkpoint(encode_checkpoint(original))

    assert back.parameters.tobytes() == vector.tobytes()
    assert back.strategy["m_t"].tobytes() == vector[::-1].tobytes()
    assert back.strategy["v_t"].dtype == np.float64
    assert (back.study_digest, back.round, back.moments, back.history, back.aggregation) == (
        DIGEST,
        number,
        original.moments,
        original.history,
        kept,
    )


@given(st.data())
def test_any_altered_byte_is_found(data: st.DataObject) -> None:
    encoded = bytearray(encode_checkpoint(checkpoint(3)))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(OperatorError, match="damaged"):
        parse_checkpoint(bytes(encoded))


@given(st.integers(0, 200))
def test_a_checkpoint_that_was_cut_short_is_found(size: int) -> None:
    encoded = encode_checkpoint(checkpoint(3))

    with pytest.raises(OperatorError, match="damaged"):
        parse_checkpoint(encoded[: min(size, len(encoded) - 1)])


def test_a_checkpoint_of_a_later_version_is_refused_by_its_version() -> None:
    body = bytearray(encode_checkpoint(checkpoint(3))[:-32])
    body[4:8] = struct.pack(">I", 2)

    with pytest.raises(OperatorError, match="its version is 2"):
        parse_checkpoint(bytes(body) + hashlib.sha256(body).digest())


def test_the_newest_checkpoint_counts_and_old_ones_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for number in range(5):
        store.store(checkpoint(number))

    found = store.load_newest(DIGEST, on_damage=nothing_is_damaged)

    assert found is not None
    assert found.round == 4
    assert sorted(file.name for file in store.path.iterdir()) == ["round-000003.checkpoint", "round-000004.checkpoint"]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.store(checkpoint(1))
    store.store(checkpoint(2))
    newest = tmp_path / "round-000002.checkpoint"
    newest.write_bytes(newest.read_bytes()[:-40])
    (tmp_path / "round-000003.checkpoint.partial").write_bytes(b"a power cut in mid-write")
    damaged: list[Path] = []

    found = store.load_newest(DIGEST, on_damage=damaged.append)

    assert found is not None
    assert found.round == 1
    assert damaged == [newest]


def test_no_checkpoint_is_no_failure_but_only_damaged_ones_are(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.load_newest(DIGEST, on_damage=nothing_is_damaged) is None
    (tmp_path / "round-000001.checkpoint").write_bytes(b"")

    with pytest.raises(OperatorError, match="no checkpoint in the directory is whole"):
        store.load_newest(DIGEST, on_damage=lambda _: None)


def test_another_studys_checkpoint_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.store(checkpoint(1, digest="cd" * 32))

    with pytest.raises(OperatorError, match="another study"):
        store.load_newest(DIGEST, on_damage=nothing_is_damaged)
