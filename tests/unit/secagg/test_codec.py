from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.secagg.codec import Codec, Contribution, ContributionError, Rounder, codec_for
from agent.secagg.masking import CHUNK_WORDS, check_word
from agent.secagg.rules import agreement_threshold
from tests.simulators.cohort import SeededRandomness, make_terms

CHECK_KEY = bytes(32)
NO_WORDS = np.zeros(0, np.uint64)


def encode(codec: Codec, update: np.ndarray, weight: int, words: np.ndarray = NO_WORDS, seed: int = 0) -> np.ndarray:
    contribution = Contribution(update.astype(np.float32), weight, words)
    return codec.encode(contribution, key=SeededRandomness(seed)(32), check_key=CHECK_KEY)


@pytest.mark.parametrize(
    ("bits", "cohort", "lane_bits", "bytes_per_parameter"),
    [(14, 4, 16, 2.0), (14, 3, 16, 2.0), (16, 32, 21, 2.67), (14, 32, 19, 2.67), (14, 100, 21, 2.67), (24, 100, 31, 4)],
)
def test_lanes_hold_the_sum_and_cost_what_is_promised(
    bits: int, cohort: int, lane_bits: int, bytes_per_parameter: float
) -> None:
    codec = Codec(10_000, 0, cohort, bits, 1.0, 1000)
    assert codec.lane_bits == lane_bits
    assert codec.packed_words * 8 / codec.length == pytest.approx(bytes_per_parameter, abs=0.01)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 15, 16, 20, 24])
@pytest.mark.parametrize("cohort", [3, 4, 33, 100])
def test_a_cohort_saturated_at_either_clip_does_not_overflow(bits: int, cohort: int) -> None:
    codec = Codec(10, 0, cohort, bits, 0.5, 100)
    for sign in (-1, 1):
        one = encode(codec, np.full(10, sign * 1e6), 100)
        total = codec.decode(one * np.uint64(cohort), survivors=cohort)
        assert np.allclose(total.update, sign * 0.5, atol=1e-7)
        assert total.clipped == 10 * cohort
        assert total.weight == 100 * cohort


@given(st.floats(1e-6, 1e6), st.integers(8, 24), st.sampled_from([3, 65, 100]), st.booleans(), st.integers(0))
def test_no_clip_lets_float32_carry_a_lane_over(clip: float, bits: int, cohort: int, low: bool, seed: int) -> None:
    codec = Codec(600, 0, cohort, bits, clip, 1)
    one = encode(codec, np.full(600, -np.inf if low else np.inf).clip(-3e38, 3e38), 1, seed=seed)
    total = codec.decode(one * np.uint64(cohort), survivors=cohort)
    assert np.all(np.abs(total.update / clip) <= 1.0000011)
    assert np.all(np.abs(total.update / clip) >= 1 - 1.1 / codec.limit)


@given(
    st.integers(1, 60),
    st.integers(8, 24),
    st.integers(1, 6),
    st.integers(1, 1000),
    st.floats(1e-3, 1e3),
    st.integers(0),
)
def test_decoding_returns_each_coordinate_within_one_step(
    length: int, bits: int, survivors: int, weight: int, clip: float, seed: int
) -> None:
    codec = Codec(length, 0, 6, bits, clip, 1000)
    update = np.random.default_rng(seed).uniform(-clip, clip, length).astype(np.float32)
    one = encode(codec, update, weight, seed=seed)
    total = codec.decode(one * np.uint64(survivors), survivors=survivors)
    step = clip / codec.limit * 1000 / codec.effective_weight(weight)
    assert np.all(np.abs(total.update - update) <= step * 1.001 + 1e-6 * clip)


def test_rounding_is_unbiased() -> None:
    values = np.full(CHUNK_WORDS, 0.37, np.float32)
    rounder = Rounder(values, 1.0, 7.0, SeededRandomness(3)(32))
    drawn = np.concatenate([rounder(0, CHUNK_WORDS).astype(np.float64) for _ in range(30)])
    deviation = np.sqrt(0.59 * 0.41 / drawn.size)
    assert abs(drawn.mean() - 7 * 0.37) < 5 * deviation
    assert set(np.unique(drawn)) == {2, 3}


@pytest.mark.parametrize("length", [1, 5, 3 * CHUNK_WORDS + 17, 5 * CHUNK_WORDS])
def test_every_coordinate_comes_back_in_its_place(length: int) -> None:
    codec = Codec(length, 2, 4, 14, 1.0, 10)
    update = np.linspace(-1, 1, length)
    words = np.array([7, 2**56], np.uint64)
    one = encode(codec, update, 10, words)
    total = codec.decode(one, survivors=1)
    assert np.abs(total.update - update).max() <= 1.01 / codec.limit
    assert total.words.tolist() == [7, 2**56 - 1]
    assert check_word(one[:-1], CHECK_KEY) == one[-1]


def test_a_small_hospital_never_falls_below_one_step() -> None:
    codec = Codec(4, 0, 4, 8, 1.0, 100_000)
    assert codec.effective_weight(1) == -(-100_000 // 127)
    one = encode(codec, np.full(4, 1.0), 1)
    lanes = [(int(one[k]) & ((1 << codec.lane_bits) - 1)) - codec.offset for k in range(codec.packed_words)]
    assert 1 in lanes
    assert codec.decode(one, survivors=1).update == pytest.approx(1.0, rel=0.01)


def test_weights_are_capped_not_refused() -> None:
    codec = Codec(1, 0, 4, 14, 1.0, 50)
    assert codec.decode(encode(codec, np.ones(1), 10**9), survivors=1).weight == 50


def test_nothing_counts_as_zero_with_weight_zero() -> None:
    codec = Codec(100, 2, 4, 14, 1.0, 50)
    nothing = codec.encode(None, key=bytes(32), check_key=CHECK_KEY)
    some = encode(codec, np.full(100, 0.25), 20, np.array([3, 4], np.uint64))
    total = codec.decode(nothing + some, survivors=2)
    assert np.abs(total.update - 0.25).max() < 3 / codec.limit * 50 / 20
    assert (total.weight, total.words.tolist()) == (20, [3, 4])
    assert codec.decode(nothing, survivors=1).weight == 0
    assert not codec.decode(nothing, survivors=1).update.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, CHUNK_WORDS, 4 * CHUNK_WORDS - 1])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(bad: float, place: int) -> None:
    codec = Codec(4 * CHUNK_WORDS, 0, 4, 14, 1.0, 50)
    update = np.zeros(codec.length)
    update[place] = bad
    with pytest.raises(ContributionError, match="finite"):
        encode(codec, update, 1)


def test_wrong_shapes_are_found() -> None:
    codec = Codec(4, 1, 4, 14, 1.0, 50)
    with pytest.raises(ContributionError):
        encode(codec, np.zeros(5), 1, np.zeros(1, np.uint64))
    with pytest.raises(ContributionError):
        encode(codec, np.zeros(4), 1, np.zeros(2, np.uint64))
    with pytest.raises(ContributionError):
        codec.encode(
            Contribution(np.zeros(4), 1, np.zeros(1, np.uint64)),  # type: ignore[arg-type]
            key=bytes(32),
            check_key=CHECK_KEY,
        )


def test_the_codec_follows_from_the_study_and_the_round_alone() -> None:
    terms = make_terms(4)
    threshold = agreement_threshold(4, terms.colluders)
    train = codec_for(terms, round_number=1, cohort=4, threshold=threshold)
    moments = codec_for(terms, round_number=0, cohort=4, threshold=threshold)
    last = codec_for(terms, round_number=terms.rounds + 1, cohort=4, threshold=threshold)
    assert (train.length, train.word_count) == (terms.parameters, terms.words)
    assert (moments.length, moments.word_count) == (0, terms.moment_words)
    assert (last.length, last.word_count) == (0, terms.words)
