"""Attacks on privacy budgets: spent twice, forgotten with an older disk, borrowed, bought with odd numbers."""

from __future__ import annotations

import copy
import math
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from tpm2_pytss.constants import ESYS_TR

from agent.audit.leaves import BudgetReserved, BudgetSettled, Leaf, LogOpened
from agent.audit.log import AuditLog, retire
from agent.audit.retired import retired_leaves
from agent.core.errors import HardwareError, OperatorError
from agent.governance.budget import BudgetBook, Counter
from agent.governance.ledger import Ledger
from agent.identity.tpm_counter import BUDGET_BASE_HANDLE, BUDGET_HANDLE, ReservationCounter
from agent.identity.tpm_device import TPMDevice
from agent.identity.tpm_objects import find
from agent.trust.study import Study
from agent.trust.terms import aggregation_terms, check_privacy
from tests.simulators.budgets import (
    DATASET,
    DELTA,
    PlayedBox,
    PlayedCounter,
    allowing,
    digest_of,
    hospital_study,
    record_study,
    unbounded_study,
)
from tests.simulators.clock import SetClock
from tests.simulators.swtpm import Swtpm, shared_maker

ONE = 0.3
"""Enough for one of `record_study`, and not for two."""
KEY = Ed25519PrivateKey.generate()


def refusal(book: BudgetBook, study: Study, number: int, **budgets: Any) -> str:  # noqa: ANN401 - any budget
    with pytest.raises(OperatorError) as refused:
        book.reserve(study, digest_of(number), DATASET, allowing(**budgets))
    return refused.value.code


def test_a_study_that_would_overspend() -> None:
    box = PlayedBox()
    book = box.start()
    book.reserve(record_study(), digest_of(1), DATASET, allowing(record=ONE))
    assert refusal(book, record_study(), 2, record=ONE) == "permit.budget"
    assert box.log.size == 1
    assert box.counter is not None
    assert box.counter.value == 1


def test_the_same_budget_reserved_by_many_studies_at_once() -> None:
    """Eight threads, budget for two."""
    box = PlayedBox()
    book, policy = box.start(), allowing(unbounded=12)
    outcomes: list[str] = []
    gate = threading.Barrier(8)

    def ask(number: int) -> None:
        gate.wait()
        try:
            book.reserve(unbounded_study(rounds=5), digest_of(number), DATASET, policy)
        except OperatorError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["permit.budget"] * 6
    assert book.ledger().unbounded(DATASET) == 12


def test_budget_spent_again_after_a_crash_before_it_was_settled() -> None:
    box = PlayedBox()
    policy = allowing(record=ONE)
    box.start().reserve(record_study(), digest_of(1), DATASET, policy)
    again = box.start()
    assert refusal(again, record_study(), 2, record=ONE) == "permit.budget"
    assert again.reserve(record_study(), digest_of(1), DATASET, policy) == 0
    assert box.log.size == 1


def test_a_study_settled_for_less_than_it_sent() -> None:
    """Receipts in the log speak, nobody's word: there is nothing to say to `settle`."""
    box = PlayedBox()
    book, study = box.start(), record_study(rounds=3)
    book.reserve(study, digest_of(1), DATASET, allowing(record=10))
    for number in (1, 2, 3):
        box.sent(digest_of(1), number)
    book.settle(study, digest_of(1), DATASET)
    assert isinstance(leaf := box.log.kept[-1], BudgetSettled)
    assert leaf.releases == 3


def test_a_reservation_of_one_data_set_used_for_another() -> None:
    box = PlayedBox()
    book, policy = box.start(), allowing(unbounded=6)
    book.reserve(unbounded_study(), digest_of(1), DATASET, policy)
    assert book.reserve(unbounded_study(), digest_of(1), "zurich", policy) == 1
    for number in (1, 2):
        box.sent(digest_of(1), number, dataset="zurich")
    assert (book.ledger().unbounded_spent(DATASET), book.ledger().unbounded_spent("zurich")) == (0, 2)


def test_a_reservation_of_one_study_used_for_another_version_of_it() -> None:
    book = PlayedBox().start()
    book.reserve(unbounded_study(), digest_of(1), DATASET, allowing(unbounded=6))
    assert not book.finding(unbounded_study(), digest_of(2), DATASET, allowing(unbounded=6)).passed


def test_one_units_budget_spent_by_the_other() -> None:
    book = PlayedBox().start()
    policy = allowing(record=ONE, hospital=2.0)
    book.reserve(record_study(), digest_of(1), DATASET, policy)
    assert book.finding(hospital_study(multiplier=12.0), digest_of(2), DATASET, policy).passed
    book.reserve(hospital_study(multiplier=12.0), digest_of(2), DATASET, policy)
    alone = PlayedBox().start()
    alone.reserve(hospital_study(multiplier=12.0), digest_of(2), DATASET, policy)
    for delta in (DELTA, 1e-7):
        ledger, other = book.ledger(), alone.ledger()
        assert ledger.committed(DATASET, "hospital", delta) == other.committed(DATASET, "hospital", delta)
    assert not book.finding(record_study(), digest_of(3), DATASET, policy).passed


@pytest.mark.parametrize("epsilon", [-1.0, 0.0, math.nan, math.inf, 1e9])
def test_a_study_that_promises_an_odd_epsilon(epsilon: float) -> None:
    with pytest.raises(ValidationError):
        record_study(epsilon=epsilon)
    with pytest.raises((ValidationError, OperatorError)):
        hospital_study(epsilon=epsilon)


@pytest.mark.parametrize("multiplier", [-1.0, 0.0, math.nan, math.inf])
def test_a_study_whose_noise_is_odd(multiplier: float) -> None:
    with pytest.raises(ValidationError):
        record_study(multiplier=multiplier)


@pytest.mark.parametrize("study", [record_study, hospital_study])
@pytest.mark.parametrize("multiplier", [1e-9, 1e-160, 1e-200, 5e-324])
def test_noise_that_bounds_nothing(study: Callable[..., Study], multiplier: float) -> None:
    """Its curve is beyond every number that means anything, and must not wrap round to something small."""
    asked = study(multiplier=multiplier)
    finding = PlayedBox().start().finding(asked, digest_of(1), DATASET, allowing(record=100, hospital=100))
    assert not finding.passed
    with pytest.raises(OperatorError) as refused:
        check_privacy(aggregation_terms(asked, digest_of(1)))
    assert refused.value.code == "study.privacy_overspent"


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["epsilon", "slack"])
def test_a_leaf_with_an_odd_number(name: str, value: float) -> None:
    leaf = reserved()
    with pytest.raises(ValidationError):
        BudgetReserved.model_validate(leaf.model_dump() | {name: value})


def test_a_negative_cost_that_would_refill_the_budget() -> None:
    leaf = reserved()
    with pytest.raises(ValidationError):
        BudgetReserved.model_validate(leaf.model_dump() | {"curve": (-1.0, *leaf.curve[1:])})


def reserved() -> BudgetReserved:
    box = PlayedBox()
    box.start().reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    leaf = box.log.kept[0]
    assert isinstance(leaf, BudgetReserved)
    return leaf


def settled(**changes: Any) -> BudgetSettled:  # noqa: ANN401 - any field
    return BudgetSettled.model_validate({"at_s": 1, "reservation": 0, "epsilon": 0.1, "releases": 1} | changes)


@pytest.mark.parametrize(
    "forge",
    [
        lambda leaf: [leaf, settled(), settled()],
        lambda leaf: [leaf, settled(releases=6)],
        lambda leaf: [settled()],
        lambda leaf: [leaf, leaf],
        lambda leaf: [leaf, leaf.model_copy(update={"reservation": 1})],
        lambda leaf: [leaf.model_copy(update={"reservation": 1})],
        lambda leaf: [leaf.model_copy(update={"curve": ()})],
        lambda leaf: [leaf.model_copy(update={"curve": leaf.curve[:-1]})],
        lambda leaf: [leaf.model_copy(update={"curve": (0.0,) * len(leaf.curve)})],
        lambda leaf: [leaf.model_copy(update={"curve": leaf.curve[::-1]})],
    ],
    ids=["settled twice", "more than held", "never made", "twice", "counter stands", "skipped", *("bad curve",) * 4],
)
def test_a_history_that_contradicts_itself(forge: Any) -> None:  # noqa: ANN401 - a function of a leaf
    with pytest.raises(HardwareError) as refused:
        Ledger.replay(forge(reserved()))
    assert refused.value.code == "budget.contradiction"


def test_an_older_disk_put_back() -> None:
    """Even by one reservation: its leaf is written before the counter steps, so a counter ahead always tells."""
    box = PlayedBox()
    box.start().reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    before = copy.deepcopy(box.log)
    box.start().reserve(record_study(), digest_of(2), DATASET, allowing(record=10))
    box.log = before
    assert rolled_back(box)


def test_the_disk_wiped() -> None:
    box = PlayedBox()
    box.start().reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    box.log.kept.clear()
    assert rolled_back(box)


def test_another_boxes_disk_whose_log_is_ahead() -> None:
    box = PlayedBox()
    for number in (1, 2):
        box.start().reserve(record_study(), digest_of(number), DATASET, allowing(record=10))
    assert box.counter is not None
    box.counter.value = 0
    assert rolled_back(box)


def test_the_disk_put_back_under_a_running_agent() -> None:
    box = PlayedBox()
    book = box.start()
    assert box.counter is not None
    box.counter.value += 1
    with pytest.raises(HardwareError) as refused:
        book.reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    assert refused.value.code == "budget.rolled_back"
    assert box.log.size == 0


def rolled_back(box: PlayedBox) -> bool:
    with pytest.raises(HardwareError) as refused:
        box.start()
    return refused.value.code == "budget.rolled_back"


def test_a_box_without_a_counter_says_that_it_sees_none_of_this() -> None:
    box = PlayedBox(counter=None)
    book = box.start()
    book.reserve(record_study(), digest_of(1), DATASET, allowing(record=10))
    assert not book.sealed
    assert isinstance(leaf := box.log.kept[0], BudgetReserved)
    assert leaf.counter == 0


@pytest.fixture
def tpm() -> Iterator[Swtpm]:
    with shared_maker().make() as tpm:
        yield tpm


def reserve_on(directory: Path, counter: Counter, number: int) -> list[Leaf]:
    with AuditLog.open(directory, KEY, "secur-e-health/c/s/n") as log:
        book = BudgetBook(log, counter, SetClock())
        book.check()
        book.reserve(unbounded_study(), digest_of(number), DATASET, allowing(unbounded=100))
        return list(log.leaves(0, log.size))


def test_an_older_disk_put_back_into_a_box_with_a_tpm(tpm: Swtpm, tmp_path: Path) -> None:
    counter = ReservationCounter(TPMDevice(tpm.tcti))
    assert counter.define() == 0
    disk, image = tmp_path / "disk", tmp_path / "image"
    reserve_on(disk, counter, 1)
    shutil.copytree(disk, image)
    assert [leaf.counter for leaf in reserve_on(disk, counter, 2) if isinstance(leaf, BudgetReserved)] == [1, 2]
    shutil.rmtree(disk)
    image.rename(disk)
    with pytest.raises(HardwareError) as refused:
        reserve_on(disk, counter, 3)
    assert refused.value.code == "budget.rolled_back"


def test_the_tpms_counter_made_anew_to_fit_an_older_disk(tpm: Swtpm, tmp_path: Path) -> None:
    device = TPMDevice(tpm.tcti)
    counter = ReservationCounter(device)
    counter.define()
    with pytest.raises(HardwareError):
        device.run(lambda esapi: esapi.nv_write(find(esapi, BUDGET_BASE_HANDLE), bytes(8)))
    reserve_on(tmp_path, counter, 1)
    device.run(lambda esapi: esapi.nv_undefine_space(find(esapi, BUDGET_HANDLE), ESYS_TR.OWNER))
    assert counter.define() > 1
    with pytest.raises(HardwareError) as refused:
        reserve_on(tmp_path, counter, 2)
    assert refused.value.code == "budget.rolled_back"


def test_a_power_cut_while_the_tpms_indices_were_made(tpm: Swtpm) -> None:
    device = TPMDevice(tpm.tcti)
    counter = ReservationCounter(device)
    counter.define()
    device.run(lambda esapi: esapi.nv_undefine_space(find(esapi, BUDGET_BASE_HANDLE), ESYS_TR.OWNER))
    assert counter.define() == 0
    assert (counter.increment(), counter.read(), counter.define()) == (1, 1, 1)


def enrolled_anew(directory: Path) -> AuditLog:
    """A new log that begins with the end of the one before."""
    previous = retire(directory)
    key = Ed25519PrivateKey.generate()
    log = AuditLog.open(directory, key, f"secur-e-health/c/s/{len(list(directory.glob('log.*.sqlite')))}")
    key_text = log.key.public_key.hex()
    log.append(LogOpened(at_s=1, consortium="0" * 64, site="s", node="n", key=key_text, previous=previous))
    return log


def book_of(directory: Path, log: AuditLog, counter: PlayedCounter) -> BudgetBook:
    book = BudgetBook(log, counter, SetClock(), retired_leaves(directory, log.leaf(0)))
    book.check()
    return book


def test_budget_refilled_by_enrolling_the_box_anew(tmp_path: Path) -> None:
    counter, policy = PlayedCounter(), allowing(unbounded=12)
    reserve_on(tmp_path, counter, 1)
    for number in (2, 3):
        with enrolled_anew(tmp_path) as log:
            book = book_of(tmp_path, log, counter)
            if number == 2:
                # The same study begins anew with the new enrolment's own record of rounds, and pays anew.
                assert book.reserve(unbounded_study(), digest_of(1), DATASET, policy) == log.size - 1
            assert book.ledger().unbounded(DATASET) == 12
            assert not book.finding(unbounded_study(), digest_of(3), DATASET, policy).passed


@pytest.mark.parametrize("spoil", ["removed", "emptied", "altered"])
def test_the_log_of_an_earlier_enrolment_made_away_with(spoil: str, tmp_path: Path) -> None:
    reserve_on(tmp_path, PlayedCounter(), 1)
    with enrolled_anew(tmp_path) as log:
        (old,) = tmp_path.glob("log.*.sqlite")
        if spoil == "removed":
            old.unlink()
        elif spoil == "emptied":
            old.write_bytes(b"")
        else:
            with closing(sqlite3.connect(old)) as database, database:
                database.execute("UPDATE leaf SET entry = replace(entry, '\"releases\":6', '\"releases\":0')")
        with pytest.raises(HardwareError) as refused:
            retired_leaves(tmp_path, log.leaf(0))
    assert refused.value.code == "audit.retired_lost"
