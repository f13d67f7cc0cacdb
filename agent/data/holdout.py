"""The stratified hold-out split, exactly as scikit-learn's `train_test_split(stratify=...)` makes it.

Published baselines state that function and a seed; the training worker must not spend a second and 100 MB on importing
the library for it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


def stratified_holdout(labels: npt.NDArray[np.bool_], *, share: float, seed: int) -> tuple[Indices, Indices]:
    """Split rows into a training and a held-out part, each with the classes' shares.

    Args:
        labels: Shape (rows,).
        share: Part to hold out, 0 < share < 1.
        seed: Of the shuffle.

    Returns:
        Row numbers to train on and row numbers held out, in shuffled order.

    Raises:
        ValueError: A class has fewer than two rows, or a part would have fewer rows than there are classes.
    """
    _, classes = np.unique(labels, return_inverse=True)
    counts = np.bincount(classes)
    held_out = math.ceil(share * len(labels))
    train = len(labels) - held_out
    if len(counts) == 0 or counts.min() < 2 or min(train, held_out) < len(counts):
        raise ValueError("too few rows of a class to split")
    rows_of_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    # The legacy generator, because that is the one behind every published split.
    random = np.random.RandomState(seed)
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
