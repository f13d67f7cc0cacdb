from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from agent.secagg.masking import CHUNK_WORDS, KeyStream, Mask, add_masks, check_word, sum_masked
from tests.simulators.cohort import SeededRandomness

SIZES = [1, 2, 5, CHUNK_WORDS - 1, CHUNK_WORDS, CHUNK_WORDS + 1, 3 * CHUNK_WORDS + 6]


def reference_stream(key: bytes, words: int) -> np.ndarray:
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(words * 8)), "<u8")


def test_the_key_stream_is_nist_sp_800_38a_ctr() -> None:
    # SP 800-38A F.5.5 with the counter replaced by ours: the first block is AES-256 of the zero block.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(bytes(16))
    assert KeyStream(key).next_words(2).tobytes() == block


@pytest.mark.parametrize("words", SIZES)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_masks_are_added_and_subtracted_modulo_2_64(words: int, workers: int) -> None:
    keys = [bytes([index]) * 32 for index in range(3)]
    target = np.arange(words, dtype=np.uint64)
    add_masks(target, [Mask(keys[0]), Mask(keys[1], subtract=True), Mask(keys[2])], workers=workers)
    streams = [reference_stream(key, words) for key in keys]
    expected = np.arange(words, dtype=np.uint64) + streams[0] - streams[1] + streams[2]
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_vectors_are_summed_at_any_alignment(offset: int) -> None:
    words = CHUNK_WORDS + 7
    raw = SeededRandomness(offset)(words * 8)
    target = np.ones(words, np.uint64)
    sum_masked(target, [memoryview(b"x" * offset + raw)[offset:], raw], [Mask(bytes(32))])
    expected = np.ones(words, np.uint64) + 2 * np.frombuffer(raw, "<u8") + reference_stream(bytes(32), words)
    assert np.array_equal(target, expected)


def test_flipping_any_of_the_256_seed_bits_changes_the_mask() -> None:
    seed = SeededRandomness("seed")(32)
    streams = {KeyStream(seed).next_words(4).tobytes()}
    for bit in range(256):
        flipped = (int.from_bytes(seed, "big") ^ (1 << bit)).to_bytes(32, "big")
        streams.add(KeyStream(flipped).next_words(4).tobytes())
    assert len(streams) == 257


def test_a_mask_does_not_show_its_key() -> None:
    assert "17" not in repr(Mask(b"\x11" * 32))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30), st.data())
def test_the_check_word_commutes_with_sums(values: list[int], data: st.DataObject) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32))
    others = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(values), max_size=len(values)))
    first, second = np.array(values, np.uint64), np.array(others, np.uint64)
    assert check_word(first + second, key) == (check_word(first, key) + check_word(second, key)) % 2**64


@given(st.integers(0, 29), st.integers(1, 2**64 - 1))
def test_an_error_in_one_word_never_passes_the_check_word(place: int, error: int) -> None:
    words = np.arange(30, dtype=np.uint64)
    wrong = words.copy()
    wrong[place : place + 1] += np.uint64(error)
    assert check_word(words, bytes(32)) != check_word(wrong, bytes(32))
