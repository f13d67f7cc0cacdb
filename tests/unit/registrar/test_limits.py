"""How much one name may ask for."""

from __future__ import annotations

import contextlib

import pytest

from agent.core.errors import NetworkError
from provisioning.registrar import limits
from provisioning.registrar.limits import ByteBudget, Rate, RateLimiter, address_name
from tests.simulators.clock import SetClock


def taken(limiter: RateLimiter, name: str, tries: int) -> int:
    done = 0
    for _ in range(tries):
        with contextlib.suppress(NetworkError):
            limiter.take(name)
            done += 1
    return done


def test_a_burst_and_then_so_many_a_second() -> None:
    clock = SetClock()
    limiter = RateLimiter(Rate(burst=5, per_s=2), clock)
    assert taken(limiter, "a", 10) == 5
    assert taken(limiter, "b", 10) == 5
    clock.move(1)
    assert taken(limiter, "a", 10) == 2
    clock.move(3600)
    assert taken(limiter, "a", 10) == 5


def test_however_many_come_little_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KNOWN", 10)
    limiter = RateLimiter(Rate(burst=1, per_s=0), SetClock())
    for number in range(1000):
        limiter.take(str(number))
    assert len(limiter._buckets) == 10
    assert taken(limiter, "999", 1) == 0


def test_bytes_are_held_by_address_and_in_all_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_HELD_FROM_ADDRESS_BYTES", 10)
    monkeypatch.setattr(limits, "MAX_HELD_BYTES", 15)
    budget = ByteBudget()
    with budget.share("a") as one, budget.share("a") as two, budget.share("b") as other:
        one.take(6)
        with pytest.raises(NetworkError):
            two.take(5)
        two.take(4)
        with pytest.raises(NetworkError):
            other.take(6)
        other.take(5)
    with budget.share("a") as again:
        again.take(10)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_what_counts_as_one_address(host: str, name: str) -> None:
    assert address_name(host) == name
