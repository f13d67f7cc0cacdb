"""Updates as packed integers that can be summed under masks, and back.

One hospital's vector of 64-bit words:

    packed coordinates (W words) | weight | clipped | metric words (k) | check word

A coordinate u becomes v = clip(u) * weight / weight_cap, then an integer z in -Q..Q with Q = 2^(q-1) - 1, by
stochastic rounding of v * Q / clip (less 2^-20 of it). The lane holds z + offset, so a sum over any part of the cohort
fits its lane. Coordinate k sits in word k mod W, lane k div W (bit lane * lane_bits). The weighting is part of the
codec: the weight that counts, and that the weight word carries, never falls below weight_cap / Q, so a full-range
coordinate of the smallest hospital still moves the sum by one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.secagg.masking import CHUNK_WORDS, KeyStream, Words, check_word
from agent.secagg.noise import Noise, noise_for
from agent.secagg.terms import Terms

WORD_BITS = 64
WORD_CAP = (1 << 56) - 1
"""Greatest metric word of one hospital: the sum over 100 hospitals stays below 2^63."""
TAIL_WORDS = 3
"""Weight, count of clipped coordinates, check word."""

Floats = npt.NDArray[np.float32]
IntegerSource = Callable[[int, int], npt.NDArray[Any]]
"""Yields the integers z of coordinates start..stop; called once for each, in the order of the words."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one hospital adds to a round.

    Args:
        update: Shape (m,), float32; empty where the round has no vector.
        weight: Local training rows.
        words: Shape (k,), uint64 metric words.
    """

    update: Floats = field(repr=False)
    weight: int
    words: Words = field(repr=False)


@dataclass(frozen=True, slots=True)
class CohortSum:
    """What a cohort's sum says; nothing in it belongs to one hospital.

    Args:
        update: Shape (m,), float32: the weighted mean of the updates.
        weight: Sum of the weights that counted.
        clipped: How many coordinates were clipped, over all hospitals.
        words: Shape (k,), uint64 sums.
    """

    update: Floats
    weight: int
    clipped: int
    words: Words


class ContributionError(ValueError):
    """A contribution that cannot be encoded; the cause never leaves this box."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Layout of one round's vectors, a function of the study's terms, the round and the cohort's size.

    Args:
        length: m of this round.
        word_count: k of this round.
        cohort: n.
        bits: q.
        clip: Bound on a coordinate.
        weight_cap: Bound on a weight.
        noise: Shared-out noise; then weights count 1 each, and metric words are withheld.
    """

    length: int
    word_count: int
    cohort: int
    bits: int
    clip: float
    weight_cap: int
    noise: Noise | None = None

    @property
    def limit(self) -> int:
        """Q, the greatest magnitude of a quantised coordinate."""
        return quantisation_limit(self.bits)

    @property
    def offset(self) -> int:
        """Added to each integer so that lanes hold none below 0."""
        return self.limit + (self.noise.bound if self.noise else 0)

    @property
    def lane_bits(self) -> int:
        """b: what a whole cohort's greatest lane sum needs."""
        return (2 * self.offset * self.cohort).bit_length()

    @property
    def lanes(self) -> int:
        """Coordinates a word."""
        return WORD_BITS // self.lane_bits

    @property
    def packed_words(self) -> int:
        """W, rounded up to whole cipher blocks of two words."""
        words = -(-self.length // self.lanes)
        return words + words % 2

    @property
    def total_words(self) -> int:
        """Length of a hospital's whole vector."""
        return self.packed_words + self.word_count + TAIL_WORDS

    @property
    def layout(self) -> tuple[int, ...]:
        """All that fixes the encoding, for the round's context."""
        noise = (self.noise.bound, *self.noise.layout) if self.noise else ()
        shape = (
            self.length,
            self.word_count,
            self.cohort,
            self.bits,
            self.weight_cap,
            self.lane_bits,
            self.packed_words,
        )
        return (*shape, *noise)

    def effective_weight(self, weight: int) -> int:
        """The weight that counts: capped, never below one quantisation step's worth; 1 for all under noise."""
        if self.noise:
            return 1
        floor = -(-self.weight_cap // self.limit)
        return min(max(weight, floor), self.weight_cap) if weight > 0 else 0

    def encode(self, contribution: Contribution | None, *, key: bytes, check_key: bytes) -> Words:
        """Encode one hospital's contribution.

        Args:
            contribution: None for nothing: a zero update of weight 0, with noise where the study has noise.
            key: 32 fresh uniform bytes, for rounding and noise.
            check_key: 32 bytes, public within the round.

        Returns:
            Shape (total_words,), uint64.

        Raises:
            ContributionError: It has the wrong shape, or a number that is not finite.
        """
        if contribution is not None:
            _check_words(contribution, self.word_count)
        out = np.empty(self.total_words, np.uint64)
        out[self.packed_words :] = 0
        clipped = self._pack(out[: self.packed_words], contribution, key)
        tail = out[self.packed_words :]
        if self.noise:
            tail[0] = 1
        elif contribution is not None:
            tail[0] = self.effective_weight(contribution.weight)
            tail[1] = clipped
            np.minimum(contribution.words, np.uint64(WORD_CAP), out=tail[2:-1])
        tail[-1] = check_word(out[:-1], check_key)
        return out

    def decode(self, total: Words, *, survivors: int) -> CohortSum:
        """Decode the sum over `survivors` hospitals, shape (total_words,), uint64."""
        tail = total[self.packed_words :]
        weight = int(tail[0])
        scale = self._scale_of_mean(weight, survivors)
        update = np.empty(self.length, np.float32)
        mask = np.uint64((1 << self.lane_bits) - 1)
        for lane in range(self.lanes):
            part = update[lane * self.packed_words : (lane + 1) * self.packed_words]
            for low in range(0, len(part), CHUNK_WORDS):
                piece = part[low : low + CHUNK_WORDS]
                words = total[low : low + len(piece)] >> np.uint64(lane * self.lane_bits)
                integers = (words & mask).view(np.int64) - survivors * self.offset
                np.multiply(integers, scale, out=piece, casting="unsafe")
        return CohortSum(update, weight, int(tail[1]), tail[2:-1].copy())

    def _scale_of_mean(self, weight: int, survivors: int) -> float:
        step = 1.0 / unit_scale(self.bits, self.clip)
        if self.noise:
            return step / survivors
        return step * self.weight_cap / weight if weight else 0.0

    def _pack(self, out: Words, contribution: Contribution | None, key: bytes) -> int:
        # Every lane starts at the offset; integers, shifted, are added modulo 2^64 and never borrow across lanes.
        out[:] = sum(self.offset << (lane * self.lane_bits) for lane in range(self.lanes))
        if not self.length:
            return 0
        if self.noise:
            integers = self.noise.integers(
                self._bounded_update(contribution), unit_scale(self.bits, self.clip), key=key
            )
            self._fill_lanes(out, lambda low, high: integers[low:high])
            return 0
        if contribution is None:
            return 0
        weight = self.effective_weight(contribution.weight)
        rounder = Rounder(
            self._checked_update(contribution),
            self.clip,
            unit_scale(self.bits, self.clip) * weight / self.weight_cap,
            key,
        )
        self._fill_lanes(out, rounder)
        return rounder.clipped

    def _checked_update(self, contribution: Contribution) -> Floats:
        update = contribution.update
        if update.dtype != np.float32 or update.shape != (self.length,):
            raise ContributionError("the update has the wrong shape")
        return update

    def _bounded_update(self, contribution: Contribution | None) -> Floats:
        if contribution is None:
            return np.zeros(self.length, np.float32)
        update = self._checked_update(contribution)
        if not np.isfinite(update).all():
            raise ContributionError("the update is not finite")
        return np.clip(update, -self.clip, self.clip)

    def _fill_lanes(self, out: Words, source: IntegerSource) -> None:
        """Add every integer to its lane, one cache-sized run of words at a time."""
        wide = np.empty(CHUNK_WORDS, np.int64)
        for low in range(0, self.packed_words, CHUNK_WORDS):
            high = min(low + CHUNK_WORDS, self.packed_words)
            for lane in range(self.lanes):
                start = lane * self.packed_words + low
                count = min(lane * self.packed_words + high, self.length) - start
                if count <= 0:
                    break
                part = wide[:count]
                np.copyto(part, source(start, start + count))
                np.left_shift(part, lane * self.lane_bits, out=part)
                words = out[low : low + count]
                np.add(words, part.view(np.uint64), out=words)


class Rounder:
    """Clips, scales and stochastically rounds runs of an update: unbiased up to 2^-11 of a step.

    Fixed point with 16 fractional bits: floor(v * 2^16 + r) >> 16 with r uniform in 0..2^16 - 1 from AES-256-CTR.

    Args:
        update: Shape (m,), float32.
        clip: Bound on a coordinate.
        scale: Integer steps a unit.
        key: 32 fresh uniform bytes.
    """

    __slots__ = ("_clip", "_fixed", "_float", "_real", "_scale", "_stream", "_update", "clipped")

    def __init__(self, update: Floats, clip: float, scale: float, key: bytes) -> None:
        self._update = update
        self._clip = np.float32(clip)
        self._scale = scale * (1 << 16)
        self._stream = KeyStream(key)
        # Beyond 31 bits of fixed point the narrow types would overflow.
        narrow = clip * self._scale < (1 << 30)
        self._float = np.empty(CHUNK_WORDS, np.float32)
        self._real = self._float if narrow else np.empty(CHUNK_WORDS, np.float64)
        self._fixed = np.empty(CHUNK_WORDS, np.int32 if narrow else np.int64)
        self.clipped = 0

    def __call__(self, low: int, high: int) -> npt.NDArray[Any]:
        """Integers of coordinates low..high, at most `CHUNK_WORDS`; overwritten by the next call."""
        count = high - low
        real, fixed = self._real[:count], self._fixed[:count]
        np.multiply(self._bounded(low, high), self._scale, out=real, casting="same_kind")
        np.copyto(fixed, real, casting="unsafe")
        dither = self._stream.next_words(-(-count // 4)).view(np.uint16)[:count]
        np.add(fixed, dither, out=fixed)
        np.right_shift(fixed, 16, out=fixed)
        return fixed

    def _bounded(self, low: int, high: int) -> Floats:
        """The run itself where the clip does not touch it (NaN fails both comparisons), else a clipped copy."""
        source, bounded = self._update[low:high], self._float[: high - low]
        if source.max() <= self._clip and source.min() >= -self._clip:
            return source
        if not np.isfinite(source).all():
            raise ContributionError("the update is not finite")
        np.clip(source, -self._clip, self._clip, out=bounded)
        self.clipped += int(np.count_nonzero(bounded != source))
        return bounded


def quantisation_limit(bits: int) -> int:
    """Q = 2^(q-1) - 1, the greatest magnitude of a quantised coordinate."""
    return (1 << (bits - 1)) - 1


def unit_scale(bits: int, clip: float) -> float:
    """Integer steps a unit: a hair less than Q / clip, lest rounding of float32 carry a coordinate beyond Q."""
    return quantisation_limit(bits) / clip * (1.0 - 2.0**-20)


def codec_for(terms: Terms, *, round_number: int, cohort: int, threshold: int) -> Codec:
    """The codec of a round: a function of the study's terms, the round's number and the cohort's size alone."""
    length = terms.vector_length(round_number)
    return Codec(
        length=length,
        word_count=terms.word_count(round_number),
        cohort=cohort,
        bits=terms.bits,
        clip=terms.clip,
        weight_cap=terms.weight_cap,
        noise=noise_for(
            terms.privacy, length=length, scale=unit_scale(terms.bits, terms.clip), honest=threshold - terms.colluders
        ),
    )


def _check_words(contribution: Contribution, count: int) -> None:
    if contribution.words.dtype != np.uint64 or contribution.words.shape != (count,):
        raise ContributionError("the metric words have the wrong shape")
    if not math.isfinite(contribution.weight):
        raise ContributionError("the weight is not finite")
