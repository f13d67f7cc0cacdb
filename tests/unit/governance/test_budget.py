"""The ledger's arithmetic, against dp-accounting's own accountants; and what stands in which account."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting import rdp as peer
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st

from agent.audit.leaves import BudgetReserved, BudgetSettled, encode_leaf, parse_leaf
from agent.core.errors import OperatorError
from agent.governance.ledger import GRACE_S, Ledger, cost_of
from agent.governance.policy import BudgetLimit, Policy
from agent.secagg.accounting import ORDERS, compute_epsilon, sampled_gaussian_divergence, spent_record_privacy
from agent.trust.terms import record_terms
from tests.simulators.budgets import (
    DATASET,
    DELTA,
    PlayedBox,
    allowing,
    digest_of,
    hospital_study,
    record_study,
    unbounded_study,
)

CURVES = st.lists(st.floats(0, 1e9), min_size=len(ORDERS), max_size=len(ORDERS))
"""Also ones that no noise has: how a curve becomes epsilon asks nothing of its shape."""


def accountant(*parts: tuple[float, float, int]) -> float:
    """Epsilon by dp-accounting of steps of (rate, multiplier), so many each."""
    account = RdpAccountant(orders=list(ORDERS))
    for rate, multiplier, steps in parts:
        account.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(multiplier)), steps)
    return float(account.get_epsilon(DELTA))


@pytest.mark.parametrize("rate", [0.001, 0.03, 0.5, 1.0])
@pytest.mark.parametrize("multiplier", [0.6, 1.1, 5.0])
def test_a_step_costs_what_dp_accounting_says(rate: float, multiplier: float) -> None:
    curve = [100 * sampled_gaussian_divergence(order, rate=rate, multiplier=multiplier) for order in ORDERS]
    assert compute_epsilon(curve, DELTA) == pytest.approx(accountant((rate, multiplier, 100)), rel=1e-6)


@given(CURVES, st.floats(0, 1) | st.floats(0, 1e-4))
def test_a_curve_becomes_the_epsilon_that_dp_accounting_says(curve: list[float], delta: float) -> None:
    expected, _ = peer.compute_epsilon(list(ORDERS), curve, delta)
    assert compute_epsilon(curve, delta) == expected


@pytest.mark.parametrize("divergence", [math.inf, math.nan])
def test_a_curve_that_bounds_nothing_at_one_order_bounds_nothing(divergence: float) -> None:
    assert compute_epsilon([1.0] * (len(ORDERS) - 1) + [divergence], DELTA) == math.inf


def test_where_nothing_of_delta_is_left_nothing_is_bounded() -> None:
    assert compute_epsilon([1.0] * len(ORDERS), -1e-9) == math.inf
    assert compute_epsilon([0.0] * len(ORDERS), -1e-9) == 0


def test_a_curve_of_other_orders_is_not_taken() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compute_epsilon([1.0] * (len(ORDERS) - 1), DELTA)


def test_a_whole_study_for_records_costs_what_dp_accounting_says() -> None:
    terms = record_terms(record_study(rounds=7, multiplier=1.3))
    assert terms is not None
    assert (terms.rate, terms.steps) == (0.01, 20)
    assert spent_record_privacy(terms, rounds=7).epsilon == pytest.approx(accountant((0.01, 1.3, 140)), rel=1e-6)


def test_a_large_study_for_hospitals_costs_hardly_more_than_gaussian_noise_would() -> None:
    book = PlayedBox().start()
    study, policy = hospital_study(rounds=50), allowing(hospital=20)
    book.reserve(study, digest_of(1), DATASET, policy)
    gaussian = accountant((1.0, 8.0, 50))
    assert gaussian <= book.ledger().committed(DATASET, "hospital", DELTA) <= 1.02 * gaussian


def test_studies_compose_as_curves_and_cost_less_than_their_epsilons_together() -> None:
    box = PlayedBox()
    book, policy = box.start(), allowing(record=10)
    singles = []
    for number, multiplier in enumerate((1.0, 2.0, 4.0)):
        study = record_study(multiplier=multiplier)
        book.reserve(study, digest_of(number), DATASET, policy)
        singles.append(accountant((0.01, multiplier, 100)))
    together = book.ledger().committed(DATASET, "record", DELTA)
    assert together == pytest.approx(accountant(*((0.01, multiplier, 100) for multiplier in (1.0, 2.0, 4.0))), rel=1e-6)
    assert max(singles) < together < sum(singles)


def test_a_study_that_costs_no_more_than_what_is_left_always_fits() -> None:
    for first, second in ((1.0, 30.0), (30.0, 1.0), (3.0, 3.0)):
        before = accountant((0.01, first, 100))
        limit = BudgetLimit(epsilon=before + accountant((0.01, second, 100)), delta=DELTA)
        book, policy = PlayedBox().start(), allowing(record=limit.epsilon)
        book.reserve(record_study(multiplier=first), digest_of(1), DATASET, policy)
        left = book.ledger().left(DATASET, "record", limit)
        assert left == pytest.approx(limit.epsilon - before)
        assert book.finding(record_study(multiplier=second), digest_of(2), DATASET, policy).passed


def test_the_sites_own_delta_is_what_counts() -> None:
    box = PlayedBox()
    policy = allowing(record=10, delta=1e-7)
    box.start().reserve(record_study(), digest_of(1), DATASET, policy)
    (view,) = box.start().views(policy)[:1]
    stricter = compute_epsilon([100 * sampled_gaussian_divergence(o, rate=0.01, multiplier=2.0) for o in ORDERS], 1e-7)
    assert view.reserved == pytest.approx(stricter)
    assert stricter > accountant((0.01, 2.0, 100))


def test_releases_that_did_not_happen_come_back() -> None:
    box = PlayedBox()
    book, policy, study = box.start(), allowing(record=10), record_study(rounds=5)
    book.reserve(study, digest_of(1), DATASET, policy)
    for number in (1, 2):
        box.sent(digest_of(1), number)
    view = book.views(policy)[0]
    assert view.spent == pytest.approx(accountant((0.01, 2.0, 40)))
    assert view.spent + view.reserved == pytest.approx(accountant((0.01, 2.0, 100)))
    book.settle(study, digest_of(1), DATASET)
    settled = box.log.kept[-1]
    assert isinstance(settled, BudgetSettled)
    assert settled.releases == 2
    assert settled.epsilon == pytest.approx(accountant((0.01, 2.0, 40)))
    after = book.views(policy)[0]
    assert after.spent == pytest.approx(view.spent)
    assert after.reserved == 0
    assert after.left == pytest.approx(10 - view.spent)


def test_an_attempt_that_is_made_again_costs_once_and_the_evaluation_nothing() -> None:
    box = PlayedBox()
    book, study = box.start(), record_study(rounds=2)
    book.reserve(study, digest_of(1), DATASET, allowing(record=10))
    for number, attempt in ((1, 1), (1, 2), (3, 1)):
        box.sent(digest_of(1), number, attempt=attempt)
    book.settle(study, digest_of(1), DATASET)
    assert isinstance(leaf := box.log.kept[-1], BudgetSettled)
    assert leaf.releases == 1


def test_what_leaves_after_settling_counts_all_the_same() -> None:
    box = PlayedBox()
    book, study = box.start(), record_study(rounds=3)
    book.reserve(study, digest_of(1), DATASET, allowing(record=10))
    box.sent(digest_of(1), 1)
    book.settle(study, digest_of(1), DATASET)
    box.sent(digest_of(1), 2)
    assert book.ledger().spent(DATASET, "record", DELTA) == pytest.approx(accountant((0.01, 2.0, 40)))


def test_a_study_that_goes_on_after_settling_pays_for_the_rest_only() -> None:
    box = PlayedBox()
    book, policy, study = box.start(), allowing(record=10), record_study(rounds=5)
    first = book.reserve(study, digest_of(1), DATASET, policy)
    assert book.reserve(study, digest_of(1), DATASET, policy) == first
    for number in (1, 2):
        box.sent(digest_of(1), number)
    book.settle(study, digest_of(1), DATASET)
    second = book.reserve(study, digest_of(1), DATASET, policy)
    assert isinstance(leaf := box.log.kept[second], BudgetReserved)
    assert leaf.releases == 3
    assert book.ledger().committed(DATASET, "record", DELTA) == pytest.approx(accountant((0.01, 2.0, 100)))


def test_a_study_without_a_bound_takes_releases_and_no_epsilon() -> None:
    box = PlayedBox()
    book, study = box.start(), unbounded_study(rounds=3)
    assert not book.finding(study, digest_of(1), DATASET, allowing(hospital=100, record=100)).passed
    assert not book.finding(study, digest_of(1), DATASET, allowing(unbounded=3)).passed
    policy = allowing(unbounded=4, hospital=1)
    book.reserve(study, digest_of(1), DATASET, policy)
    for number in (1, 2, 4):
        box.sent(digest_of(1), number)
    book.settle(study, digest_of(1), DATASET)
    (view,) = [view for view in book.views(policy) if view.dataset == DATASET]
    assert (view.releases, view.releases_allowed, view.spent, view.left) == (3, 4, 0, 1)
    assert not book.finding(unbounded_study(rounds=1), digest_of(2), DATASET, policy).passed
    assert book.finding(unbounded_study(rounds=1), digest_of(2), DATASET, allowing(unbounded=5)).passed


def test_a_round_of_moments_is_a_release_too() -> None:
    study = unbounded_study(rounds=3)
    federated = study.model_copy(update={"data": study.data.model_copy(update={"standardise": "federated"})})
    assert cost_of(federated, digest_of(1)).rounds == (0, 1, 2, 3, 4)
    assert cost_of(study, digest_of(1)).rounds == (1, 2, 3, 4)


def test_a_unit_without_a_budget_and_a_data_set_without_a_policy_refuse() -> None:
    book = PlayedBox().start()
    assert not book.finding(record_study(), digest_of(1), DATASET, allowing(hospital=100)).passed
    assert not book.finding(hospital_study(), digest_of(1), DATASET, allowing(record=100)).passed
    with pytest.raises(OperatorError) as refused:
        book.reserve(record_study(), digest_of(1), DATASET, Policy())
    assert refused.value.code == "permit.budget"


def test_a_data_set_that_has_no_budget_still_has_a_row() -> None:
    views = PlayedBox().start().views(allowing(unbounded=7))
    assert [(view.dataset, view.epsilon, view.releases_allowed) for view in views] == [
        (DATASET, 0, 7),
        ("zurich", 0, 7),
    ]


def test_an_empty_curve_costs_nothing_and_no_delta_costs_all() -> None:
    assert compute_epsilon([0.0] * len(ORDERS), DELTA) == 0
    assert compute_epsilon([1.0] * len(ORDERS), 0.0) == math.inf


def test_leaves_bring_the_ledger_back_to_the_last_digit() -> None:
    box = PlayedBox()
    book = box.start()
    book.reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    book.reserve(hospital_study(), digest_of(2), DATASET, allowing(hospital=10))
    again = Ledger.replay(parse_leaf(encode_leaf(leaf)) for leaf in box.log.kept)
    for unit in ("record", "hospital"):
        assert again.committed(DATASET, unit, DELTA) == book.ledger().committed(DATASET, unit, DELTA)


@pytest.mark.parametrize("ending", ["withdrawn", "expired"])
def test_what_an_ended_study_holds_comes_back_and_its_return_pays_anew(ending: str) -> None:
    box = PlayedBox()
    book, policy, study = box.start(), allowing(unbounded=8), unbounded_study(rounds=5)
    box.approved(digest_of(1), 1)
    book.reserve(study, digest_of(1), DATASET, policy)
    box.sent(digest_of(1), 1)
    assert not book.finding(study, digest_of(2), DATASET, policy).passed
    if ending == "withdrawn":
        box.withdrawn(digest_of(1), 1)
    else:
        box.clock.move(3600)
    # An answer that was permitted before may still wait for its receipt.
    assert not book.finding(study, digest_of(2), DATASET, policy).passed
    box.clock.move(GRACE_S)
    assert book.finding(study, digest_of(2), DATASET, policy).passed
    assert book.views(policy)[0].releases == 1
    size = box.log.size
    book.reserve(study, digest_of(2), DATASET, policy)
    assert [leaf.kind for leaf in box.log.kept[size:]] == ["budget-settled", "budget-reserved"]
    box.approved(digest_of(1), 2)
    assert not book.finding(study, digest_of(1), DATASET, policy).passed
    assert book.finding(study, digest_of(1), DATASET, allowing(unbounded=12)).passed


def test_one_of_two_approvals_withdrawn_ends_nothing() -> None:
    box = PlayedBox()
    book, policy = box.start(), allowing(unbounded=8)
    for sequence in (1, 2):
        box.approved(digest_of(1), sequence)
    book.reserve(unbounded_study(), digest_of(1), DATASET, policy)
    box.withdrawn(digest_of(1), 2)
    box.start()
    assert not any(isinstance(leaf, BudgetSettled) for leaf in box.log.kept)


def test_a_study_that_ended_while_the_box_was_off_is_settled_at_its_start() -> None:
    box = PlayedBox()
    box.approved(digest_of(1), 1)
    box.start().reserve(unbounded_study(), digest_of(1), DATASET, allowing(unbounded=8))
    box.clock.move(3600 + GRACE_S)
    box.start()
    assert isinstance(leaf := box.log.kept[-1], BudgetSettled)
    assert leaf.releases == 0
