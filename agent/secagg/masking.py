"""The mask engine: AES-256-CTR key streams added to flat arrays of 64-bit words, at the speed of the hardware.

All key streams of one 128 KiB chunk are added while the chunk sits in the core's cache; spans of chunks go to threads
(the cipher releases the interpreter lock). The counter gives each span its place in the stream (NIST SP 800-38A 6.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

CHUNK_WORDS = 1 << 14
_BLOCK_BYTES = 16
_WORD_BYTES = 8
_ZEROS = memoryview(bytes(CHUNK_WORDS * _WORD_BYTES))

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Mask:
    """One key stream to add to, or to subtract from, a vector modulo 2^64.

    Args:
        key: 32 bytes, the AES-256 key; never shown.
        subtract: Whether it is taken away.
    """

    key: bytes = field(repr=False)
    subtract: bool = False


class KeyStream:
    """AES-256-CTR output, from any even word on, into a buffer that is used again.

    Args:
        key: 32 bytes; a key is used for one stream only, so the counter starts at 0.
        start_word: Where in the stream to begin; even, since a cipher block holds two words.
        buffer: Shape (CHUNK_WORDS + 2,), uint64, to share between streams that take turns; by default its own.
    """

    __slots__ = ("_buffer", "_encryptor", "_view")

    def __init__(self, key: bytes, *, start_word: int = 0, buffer: Words | None = None) -> None:
        counter = (start_word * _WORD_BYTES // _BLOCK_BYTES).to_bytes(_BLOCK_BYTES, "big")
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
        # update_into wants room for one block more than it writes.
        self._buffer = np.empty(CHUNK_WORDS + 2, np.uint64) if buffer is None else buffer
        self._view = self._buffer.view(np.uint8).data

    def next_words(self, count: int) -> Words:
        """The next `count` words (at most `CHUNK_WORDS`); the array is overwritten by the next call."""
        self._encryptor.update_into(_ZEROS[: count * _WORD_BYTES], self._view)
        return self._buffer[:count]


def add_masks(target: Words, masks: Sequence[Mask], *, workers: int = 1) -> None:
    """Add every mask to `target` in place, modulo 2^64.

    Args:
        target: Shape (words,), uint64.
        masks: Key streams, each at least as long.
        workers: Threads, at least 1.
    """
    sum_masked(target, (), masks, workers=workers)


def sum_masked(
    target: Words, vectors: Sequence[bytes | memoryview], masks: Sequence[Mask], *, workers: int = 1
) -> None:
    """Add little-endian `vectors` and `masks` to `target` in place, modulo 2^64, each chunk once.

    Args:
        target: Shape (words,), uint64.
        vectors: Each of words * 8 bytes, at any alignment.
        masks: Key streams.
        workers: Threads, at least 1.
    """
    octets = [np.frombuffer(vector, np.uint8) for vector in vectors]
    spans = _split_spans(len(target), workers)
    if len(spans) <= 1:
        _sum_span(target, octets, masks, 0, len(target))
        return
    with ThreadPoolExecutor(len(spans)) as pool:
        for done in [pool.submit(_sum_span, target, octets, masks, start, stop) for start, stop in spans]:
            done.result()


def _split_spans(words: int, workers: int) -> list[tuple[int, int]]:
    """Cut `words` into at most `workers` spans of whole chunks."""
    chunks = -(-words // CHUNK_WORDS)
    per_worker = max(1, -(-chunks // max(1, workers))) * CHUNK_WORDS
    return [(start, min(start + per_worker, words)) for start in range(0, words, per_worker)]


def _sum_span(
    target: Words, octets: Sequence[npt.NDArray[np.uint8]], masks: Sequence[Mask], start: int, stop: int
) -> None:
    shared = np.empty(CHUNK_WORDS + 2, np.uint64)
    streams = [
        (np.subtract if mask.subtract else np.add, KeyStream(mask.key, start_word=start, buffer=shared))
        for mask in masks
    ]
    aligned = np.empty(CHUNK_WORDS, np.uint64)
    for low in range(start, stop, CHUNK_WORDS):
        high = min(low + CHUNK_WORDS, stop)
        part = target[low:high]
        for vector in octets:
            # A payload may start at any byte of its frame; adding is fast only on aligned words.
            aligned[: high - low].view(np.uint8)[:] = vector[low * _WORD_BYTES : high * _WORD_BYTES]
            np.add(part, aligned[: high - low], out=part)
        for operation, stream in streams:
            operation(part, stream.next_words(high - low), out=part)


def check_word(words: Words, key: bytes) -> int:
    """A linear function of `words` modulo 2^64, with odd coefficients drawn from `key`.

    It commutes with sums, so the cohort's check words sum to the check word of the cohort's sum; where they differ,
    some mask was not removed or some vector is not what its sender encoded. Odd coefficients are units modulo 2^64: an
    error in one word never cancels.

    Args:
        words: Shape (words,), uint64.
        key: 32 bytes, public within the round.
    """
    stream = KeyStream(key)
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for low in range(0, len(words), CHUNK_WORDS):
            part = words[low : low + CHUNK_WORDS]
            coefficients = stream.next_words(len(part))
            np.bitwise_or(coefficients, np.uint64(1), out=coefficients)
            total += np.dot(coefficients, part)
    return int(total)
