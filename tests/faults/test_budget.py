"""Power that goes at every moment of a reservation and of settling it: nothing is spent twice, nothing is lost."""

from __future__ import annotations

import pytest

from agent.audit.leaves import BudgetReserved, BudgetSettled
from agent.governance.budget import BudgetBook
from tests.simulators.budgets import DATASET, PlayedBox, allowing, digest_of, unbounded_study
from tests.simulators.power import Moments, PowerCutError

POLICY = allowing(unbounded=12)
NEVER = Moments(None, PowerCutError)


def reserve(book: BudgetBook) -> int:
    return book.reserve(unbounded_study(), digest_of(1), DATASET, POLICY)


def settle(book: BudgetBook) -> None:
    book.settle(unbounded_study(), digest_of(1), DATASET)


def moments_of(box: PlayedBox, *, settling: bool) -> int:
    book, counted = box.start(), Moments(None, PowerCutError)
    if settling:
        reserve(book)
    box.power(counted)
    settle(book) if settling else reserve(book)
    return counted.count


@pytest.mark.parametrize("at", range(moments_of(PlayedBox(), settling=False)))
def test_power_cut_while_reserving(at: int) -> None:
    box = PlayedBox()
    book = box.start()
    box.power(Moments(at, PowerCutError))
    with pytest.raises(PowerCutError):
        reserve(book)
    box.power(NEVER)
    again = box.start()
    assert again.ledger().unbounded(DATASET) == (0 if at == 0 else 6)
    reserve(again)
    assert [leaf.counter for leaf in box.log.kept if isinstance(leaf, BudgetReserved)] == [1]
    assert box.counter is not None
    assert box.counter.value == 1
    assert again.ledger().unbounded(DATASET) == 6
    box.start()


@pytest.mark.parametrize("at", range(moments_of(PlayedBox(), settling=True)))
def test_power_cut_while_settling(at: int) -> None:
    box = PlayedBox()
    book = box.start()
    reserve(book)
    box.sent(digest_of(1), 1)
    box.power(Moments(at, PowerCutError))
    with pytest.raises(PowerCutError):
        settle(book)
    box.power(NEVER)
    again = box.start()
    assert again.ledger().unbounded(DATASET) == (6 if at == 0 else 1)
    settle(again)
    assert again.ledger().unbounded(DATASET) == 1
    assert sum(isinstance(leaf, BudgetSettled) for leaf in box.log.kept) == 1


def test_a_box_that_loses_power_at_each_start_completes_the_counter_once() -> None:
    box = PlayedBox()
    book = box.start()
    box.power(Moments(2, PowerCutError))
    with pytest.raises(PowerCutError):
        reserve(book)
    for at in (0, 0, 1):
        box.power(Moments(at, PowerCutError))
        with pytest.raises(PowerCutError):
            box.start()
    box.power(NEVER)
    box.start()
    assert box.counter is not None
    assert box.counter.value == 1
