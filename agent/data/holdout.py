"""The hold-out split, exactly as scikit-learn's `train_test_split` makes it under FLamby's protocol.

Stratified by outcome where every outcome has more than two rows, else a plain shuffle (Ogier du Terrail et al., 2022,
fed_heart_disease). Published baselines state that function and a seed; the training worker must not spend a second and
100 MB on importing the library for it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


LEAST_TO_STRATIFY = 3
"""Rows that each outcome must have."""


def hold_out(labels: npt.NDArray[np.bool_], *, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split rows into a training and a held-out part.

    Args:
        labels: Shape (rows,).
        share: Part to hold out, 0 < share < 1; rounded up to whole rows.
        seed: Of the shuffle.

    Returns:
        Row numbers to train on and row numbers held out, in shuffled order.

    Raises:
        ValueError: A part would have no row.
    """
    held_out = math.ceil(share * len(labels))
    train = len(labels) - held_out
    if train < 1:
        raise ValueError("too few rows to hold some out")
    # The legacy generator, because that is the one behind every published split.
    random = np.random.RandomState(seed)
    positive = int(labels.sum())
    rarer = min(positive, len(labels) - positive)
    if rarer >= LEAST_TO_STRATIFY and min(train, held_out) >= 2:
        return _stratified(labels, train, held_out, random)
    shuffled = random.permutation(len(labels))
    return shuffled[held_out:], shuffled[:held_out]


def _stratified(
    labels: npt.NDArray[np.bool_], train: int, held_out: int, random: np.random.RandomState
) -> tuple[Indices, Indices]:
    """As `StratifiedShuffleSplit` does it: shares by class, a shuffle in each class, then one of each part."""
    rows_of_class = (np.flatnonzero(~labels), np.flatnonzero(labels))
    counts = np.array([len(rows) for rows in rows_of_class])
    train_counts = _proportional(counts, train, random)
    held_out_counts = _proportional(counts - train_counts, held_out, random)
    kept: list[int] = []
    held: list[int] = []
    for rows, first, second in zip(rows_of_class, train_counts, held_out_counts, strict=True):
        shuffled = rows[random.permutation(len(rows))]
        kept.extend(shuffled[:first])
        held.extend(shuffled[first : first + second])
    return random.permutation(np.array(kept, dtype=np.intp)), random.permutation(np.array(held, dtype=np.intp))


def _proportional(counts: npt.NDArray[np.intp], draws: int, random: np.random.RandomState) -> npt.NDArray[np.intp]:
    """How many of `draws` fall to each class: the mode of the multivariate hypergeometric distribution, nearly.

    Remainders are given out by size, ties by chance (sklearn.utils.extmath._approximate_mode).
    """
    ideal = counts / counts.sum() * draws
    floored = np.floor(ideal)
    lacking = int(draws - floored.sum())
    remainder = ideal - floored
    for value in np.sort(np.unique(remainder))[::-1]:
        if lacking <= 0:
            break
        (candidates,) = np.where(remainder == value)
        chosen = random.choice(candidates, size=min(len(candidates), lacking), replace=False)
        floored[chosen] += 1
        lacking -= len(chosen)
    result: npt.NDArray[np.intp] = floored.astype(np.intp)
    return result
