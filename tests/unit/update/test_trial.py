"""When a release on trial is kept, and when it is given up."""

from __future__ import annotations

import pytest

from agent.update.trial import Health, Judgement, Limits, Verdict, Watch, judge, parse_health

LIMITS = Limits(ready_s=20, well_s=60, deadline_s=900)
BEFORE = ("agent", "key", "self_test", "superlink")
START_S = 1000


def health(**checks: bool | None) -> Health:
    return Health("1.5.0", 7, {"agent": True, "key": True, "superlink": True, "self_test": True} | checks)


def judged(
    said: Health | None, elapsed_s: int, watch: Watch | None = None, needs: tuple[str, ...] = BEFORE
) -> Judgement:
    return judge(said, watch or Watch(START_S), now_s=START_S + elapsed_s, needs=needs, limits=LIMITS)


def test_well_for_long_enough_is_committed() -> None:
    first = judged(health(), 5)
    assert first.verdict is Verdict.WAIT
    assert judged(health(), 5 + LIMITS.well_s - 1, first.watch).verdict is Verdict.WAIT
    assert judged(health(), 5 + LIMITS.well_s, first.watch).verdict is Verdict.COMMIT


def test_a_break_starts_the_time_anew() -> None:
    first = judged(health(), 5)
    broken = judged(health(superlink=False), 30, first.watch)
    again = judged(health(), 40, broken.watch)
    assert judged(health(), 5 + LIMITS.well_s, again.watch).verdict is Verdict.WAIT
    assert judged(health(), 40 + LIMITS.well_s, again.watch).verdict is Verdict.COMMIT


def test_another_process_starts_the_time_anew() -> None:
    first = judged(health(), 5)
    restarted = Health("1.5.0", 8, health().checks)
    assert judged(restarted, 5 + LIMITS.well_s, first.watch).verdict is Verdict.WAIT


@pytest.mark.parametrize("said", [None, health(agent=False), health(agent=None)])
def test_not_ready_in_time_is_given_up(said: Health | None) -> None:
    assert judged(said, LIMITS.ready_s - 1).verdict is Verdict.WAIT
    assert judged(said, LIMITS.ready_s).verdict is Verdict.FAIL


def test_a_failed_self_test_is_given_up_at_once() -> None:
    assert judged(health(self_test=False), 1).verdict is Verdict.FAIL


def test_a_key_that_the_old_release_could_use_must_work() -> None:
    assert judged(health(key=False), LIMITS.ready_s - 1).verdict is Verdict.WAIT
    assert judged(health(key=False), LIMITS.ready_s).verdict is Verdict.FAIL


@pytest.mark.parametrize("name", ["key", "superlink", "self_test"])
def test_what_the_old_release_did_not_pass_is_not_asked(name: str) -> None:
    needs = tuple(one for one in BEFORE if one != name)
    first = judged(health(**{name: None}), 0, needs=needs)
    assert judged(health(**{name: None}), LIMITS.well_s, first.watch, needs).verdict is Verdict.COMMIT


@pytest.mark.parametrize("name", ["key", "superlink", "self_test"])
def test_what_stays_unknown_is_given_up_at_the_deadline(name: str) -> None:
    assert judged(health(**{name: None}), LIMITS.deadline_s - 1).verdict is Verdict.WAIT
    assert judged(health(**{name: None}), LIMITS.deadline_s).verdict is Verdict.FAIL


def test_an_outage_that_ends_just_before_the_deadline_counts_as_well_only_after_its_time() -> None:
    late = judged(health(), LIMITS.deadline_s - 1)
    assert judged(health(), LIMITS.deadline_s, late.watch).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"[" * 9000, b" " * 20000, b'{"version": "1", "pid": 1, "checks": {"key": "yes"}}'],
)
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is|a check|Expecting"):
        parse_health(data)
