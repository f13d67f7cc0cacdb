from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from agent.data.holdout import hold_out


@settings(max_examples=150, deadline=None)
@given(
    negative=st.integers(3, 120),
    positive=st.integers(3, 120),
    share=st.floats(0.2, 0.6),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
)
def test_the_split_is_scikit_learns(negative: int, positive: int, share: float, seed: int, order: object) -> None:
    labels = np.array([False] * negative + [True] * positive)
    order.shuffle(labels)  # type: ignore[attr-defined]  # hypothesis' Random
    train, held_out = hold_out(labels, share=share, seed=seed)
    rows = np.arange(len(labels))
    expected = train_test_split(rows, test_size=share, random_state=seed, stratify=labels)
    assert train.tolist() == expected[0].tolist()
    assert held_out.tolist() == expected[1].tolist()


@pytest.mark.parametrize("rare", [0, 1, 2])
def test_an_outcome_too_rare_to_stratify_leaves_a_plain_shuffle(rare: int) -> None:
    labels = np.array([True] * 45 + [False] * rare)
    train, held_out = hold_out(labels, share=0.34, seed=43)
    expected = train_test_split(np.arange(len(labels)), test_size=0.34, random_state=43)
    assert train.tolist() == expected[0].tolist()
    assert held_out.tolist() == expected[1].tolist()


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(ValueError, match="too few rows"):
        hold_out(np.array([True]), share=0.34, seed=43)
