"""The protocol's promise, checked in every reachable state of small cohorts; and a broken rule breaks it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import MappingProxyType

import pytest

from agent.secagg import rules, stages
from agent.secagg.rules import Verdict
from agent.secagg.stages import NodeEvent, NodeState
from agent.secagg.terms import Dropout, Terms
from tests.attacks.secagg.model import Knowledge, Model, State
from tests.simulators.cohort import make_terms

Patch = pytest.MonkeyPatch


def small_terms(sites: int, colluders: int, dropout: Dropout = Dropout.CONTINUE) -> Terms:
    return make_terms(
        sites, colluders=colluders, minimum_sites=colluders + 2, dropout=dropout, accept_differencing=True
    )


def first_violation(model: Model) -> str | None:
    return next((found for state in model.search() if (found := model.violation(state))), None)


@pytest.mark.parametrize("dropout", list(Dropout))
@pytest.mark.parametrize(
    ("sites", "colluders", "attempts", "variants", "least_states"),
    [
        (3, 1, 2, "ab", 867),
        (4, 1, 1, "ab", 380),
        (4, 2, 2, "ab", 867),
        (5, 1, 1, "a", 300),
        (5, 2, 1, "ab", 380),
        (5, 3, 2, "a", 141),
    ],
)
def test_no_reachable_state_unmasks_a_hospital_or_gives_two_sums(
    sites: int, colluders: int, attempts: int, variants: str, least_states: int, dropout: Dropout
) -> None:
    model = Model(small_terms(sites, colluders, dropout), attempts=attempts, variants=variants)
    states = 0
    for state in model.search():
        assert model.violation(state) is None
        states += 1
    assert states >= least_states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "colluders", "attempts", "variants", "dropout"),
    [
        (4, 1, 2, "ab", Dropout.WAIT),
        (4, 1, 2, "a", Dropout.CONTINUE),
        (5, 1, 1, "ab", Dropout.CONTINUE),
        (5, 1, 2, "a", Dropout.WAIT),
        (5, 2, 2, "a", Dropout.CONTINUE),
        (6, 2, 1, "a", Dropout.CONTINUE),
    ],
)
def test_nor_in_larger_cohorts(sites: int, colluders: int, attempts: int, variants: str, dropout: Dropout) -> None:
    model = Model(small_terms(sites, colluders, dropout), attempts=attempts, variants=variants)
    assert first_violation(model) is None


def test_the_model_reaches_every_sum_that_it_should() -> None:
    model = Model(small_terms(4, 1))
    sums = {frozenset(found) for state in model.search() for found in _sums(model, state)}
    a, b, c = model.honest
    # The whole cohort, and each part of T = 3 sites that holds the colluder or drops it.
    assert sums == {frozenset({a, b, c}), frozenset({a, b}), frozenset({a, c}), frozenset({b, c})}


def _sums(model: Model, state: State) -> set[frozenset[str]]:
    return Knowledge(model, state, (1, "a")).sums()


def break_threshold(patch: Patch) -> None:
    """A majority of the cohort, as if nobody colluded."""
    patch.setattr(rules, "agreement_threshold", lambda cohort, _: cohort // 2 + 1)


def loosen_table(patch: Patch) -> None:
    """The table lets a node agree twice."""
    again = {(NodeState.AGREED, NodeEvent.AGREE): NodeState.AGREED}
    patch.setattr(stages, "NODE_TRANSITIONS", MappingProxyType({**stages.NODE_TRANSITIONS, **again}))


def break_lock(patch: Patch) -> None:
    """A node changes its mind about the survivors, or gives up what it agreed to."""
    patch.setattr(rules, "settle_lock", lambda _, wanted: wanted)
    loosen_table(patch)


def break_quorum(patch: Patch) -> None:
    """One signature too few is enough."""

    def lenient(signers: Collection[str], cohort: Collection[str], colluders: int) -> bool:
        return len(set(signers) & set(cohort)) >= rules.agreement_threshold(len(cohort), colluders) - 1

    patch.setattr(rules, "has_quorum", lenient)


def break_slots(patch: Patch) -> None:
    """A holder shows every slot of a dealer, as stock protocols can be made to."""
    patch.setattr(rules, "revealed_slots", lambda cohort, _, __: tuple(cohort))


def break_survivors(patch: Patch) -> None:
    """Survivors may be as few as the colluders and one hospital."""
    real = rules.judge_survivors

    def lenient(terms: Terms, cohort: Collection[str], survivors: Collection[str]) -> Verdict:
        verdict = real(terms, cohort, survivors)
        few = len(survivors) == terms.colluders + 1
        return Verdict.AGREE if few else verdict

    patch.setattr(rules, "judge_survivors", lenient)
    patch.setattr(rules, "has_quorum", lambda signers, _, colluders: len(signers) > colluders)
    patch.setattr(rules, "agreement_threshold", lambda _, colluders: colluders + 1)


def break_abort_proof(patch: Patch) -> None:
    """A further attempt needs no proof that the last one is dead."""
    patch.setattr(Model, "_check_certificate", lambda *_: None)


BREAKS: list[tuple[Callable[[Patch], None], int, int, int, str, Dropout]] = [
    (break_threshold, 5, 2, 1, "a", Dropout.CONTINUE),
    (break_lock, 4, 1, 1, "a", Dropout.CONTINUE),
    (break_quorum, 4, 1, 1, "a", Dropout.CONTINUE),
    (break_slots, 4, 1, 1, "a", Dropout.CONTINUE),
    (break_survivors, 4, 1, 1, "a", Dropout.CONTINUE),
    (break_abort_proof, 4, 1, 2, "a", Dropout.CONTINUE),
]


@pytest.mark.parametrize(
    ("break_rule", "sites", "colluders", "attempts", "variants", "dropout"),
    BREAKS,
    ids=[entry[0].__name__ for entry in BREAKS],
)
def test_a_broken_rule_is_found(
    break_rule: Callable[[Patch], None],
    sites: int,
    colluders: int,
    attempts: int,
    variants: str,
    dropout: Dropout,
    monkeypatch: Patch,
) -> None:
    terms = small_terms(sites, colluders, dropout)
    break_rule(monkeypatch)
    assert first_violation(Model(terms, attempts=attempts, variants=variants)) is not None


@pytest.mark.parametrize("loosen", ["table", "lock"])
def test_table_and_lock_each_suffice_alone(loosen: str, monkeypatch: Patch) -> None:
    if loosen == "table":
        loosen_table(monkeypatch)
    else:
        monkeypatch.setattr(rules, "settle_lock", lambda _, wanted: wanted)
    assert first_violation(Model(small_terms(4, 1))) is None


def test_colluders_beyond_those_assumed_do_break_it() -> None:
    """The bound is tight: with one colluder more than the study assumes, two sums come out."""
    model = Model(small_terms(4, 1))
    model.honest, model.colluders = model.cohort[:2], frozenset(model.cohort[2:])
    assert first_violation(model) is not None


def test_continue_lets_sums_differ_between_rounds_and_wait_does_not() -> None:
    """Within one attempt either gives one sum; but only `wait` gives the same one in every round."""
    for dropout, expected in ((Dropout.CONTINUE, 4), (Dropout.WAIT, 1)):
        model = Model(small_terms(4, 1, dropout))
        assert len({frozenset(found) for state in model.search() for found in _sums(model, state)}) == expected
