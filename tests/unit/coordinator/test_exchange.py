from __future__ import annotations

from dataclasses import replace

import pytest

from agent.core.errors import PeerProtocolError
from agent.core.wire import Frame, Refusal, Stage
from provisioning.coordinator.exchange import Arrival, Exchange, Faulty, Inquiry, Lost, Refused, Reply, Returned
from tests.simulators.scripted_line import Answer, Said, ScriptedLine, ScriptedSite, SteppedClock

ASKED = Frame("study", Stage.PLAIN, round=3, attempt=1, header={"kind": "train"}, payload=b"model")


def echo(frame: Frame) -> Frame:
    return replace(frame, payload=b"update")


def slow(seconds: float) -> Answer:
    return lambda frame: Said(frame=echo(frame), after_s=seconds)


def altered(**changes: object) -> Answer:
    return lambda frame: replace(frame, **changes)  # type: ignore[arg-type]  # the test's own fields


def saying(**letter: object) -> Answer:
    return lambda _: Said(letter)


def exchange_with(**answers: Answer) -> tuple[Exchange, ScriptedLine]:
    clock = SteppedClock()
    line = ScriptedLine.of(clock, answers)
    return Exchange(line, clock, clock.sleep), line


def ask(exchange: Exchange, *sites: str, within_s: float = 100.0, persist: bool = True) -> Inquiry:
    deadline_s = exchange.clock.monotonic_s() + within_s
    return exchange.ask(dict.fromkeys(sites, ASKED), deadline_s=deadline_s, persist=persist)


def test_answers_come_in_the_order_in_which_they_arrive() -> None:
    exchange, _ = exchange_with(a=slow(2), b=slow(1), c=echo)

    arrivals = list(ask(exchange, "a", "b", "c"))

    assert [arrival.site for arrival in arrivals] == ["c", "b", "a"]
    assert all(isinstance(arrival, Reply) and bytes(arrival.frame.payload) == b"update" for arrival in arrivals)


def test_polling_adds_at_most_a_tenth_to_what_an_answer_takes() -> None:
    exchange, _ = exchange_with(a=slow(4.0))
    begin_s = exchange.clock.monotonic_s()

    list(ask(exchange, "a"))

    assert exchange.clock.monotonic_s() - begin_s < 4.0 * 1.1 + 0.1


def test_what_is_still_silent_at_the_deadline_is_missing() -> None:
    exchange, _ = exchange_with(a=echo, b=lambda _: None)
    begin_s = exchange.clock.monotonic_s()
    inquiry = ask(exchange, "a", "b", within_s=30.0)

    assert [arrival.site for arrival in inquiry] == ["a"]
    assert inquiry.pending == {"b"}
    assert 30.0 <= exchange.clock.monotonic_s() - begin_s < 31.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (altered(round=2), "another round"),
        (altered(attempt=2), "another round or attempt"),
        (altered(study="other"), "another study"),
        (altered(stage=Stage.OPEN), "another study or stage"),
        (saying(fault=PeerProtocolError("x.y", "It is garbage.", next_step="None.")), "garbage"),
        (saying(), "no frame"),
    ],
)
def test_an_answer_to_something_else_is_faulty(answer: Answer, why: str) -> None:
    exchange, _ = exchange_with(a=answer)

    (arrival,) = ask(exchange, "a")

    assert isinstance(arrival, Faulty)
    assert why in arrival.error.sentence


@pytest.mark.parametrize("refusal", sorted(set(Refusal) - {Refusal.BUSY}))
def test_a_refusal_is_passed_on_by_its_one_word(refusal: Refusal) -> None:
    exchange, _ = exchange_with(a=saying(refusal=refusal))

    assert list(ask(exchange, "a")) == [Refused("a", refusal)]


def test_a_busy_site_is_asked_again_until_it_answers() -> None:
    said: list[Frame | Said] = [Said({"refusal": Refusal.BUSY}), Said({"refusal": Refusal.BUSY}), echo(ASKED)]
    exchange, line = exchange_with(a=lambda _: said.pop(0))

    (arrival,) = ask(exchange, "a", persist=False)

    assert isinstance(arrival, Reply)
    assert len(line.sites["a"].asked) == 3


def away_line(answer: Answer, *away: tuple[float, float]) -> tuple[Exchange, ScriptedLine]:
    clock = SteppedClock(seconds=0.0)
    line = ScriptedLine(clock, {"a": ScriptedSite(answer, 100, away)})
    return Exchange(line, clock, clock.sleep), line


def test_a_site_that_vanishes_in_mid_work_is_asked_again_when_it_is_back() -> None:
    exchange, line = away_line(slow(10.0), (5.0, 60.0))

    arrivals = list(ask(exchange, "a"))

    assert [type(arrival) for arrival in arrivals] == [Lost, Returned, Reply]
    assert len(line.sites["a"].asked) == 2
    assert 70.0 <= line.clock.seconds < 75.0


def test_a_site_that_is_not_there_yet_is_asked_when_it_comes() -> None:
    exchange, line = away_line(echo, (0.0, 20.0))

    arrivals = list(ask(exchange, "a"))

    assert [type(arrival) for arrival in arrivals] == [Lost, Returned, Reply]
    assert 20.0 <= line.clock.seconds < 23.0


def test_without_patience_a_lost_site_is_given_up_at_once() -> None:
    exchange, line = away_line(slow(10.0), (5.0, 60.0))
    inquiry = ask(exchange, "a", persist=False)

    assert [type(arrival) for arrival in inquiry] == [Lost]
    assert not inquiry.pending
    assert line.clock.seconds < 7.0


def test_a_node_that_restarted_between_two_polls_has_forgotten_and_is_asked_again() -> None:
    # Too short a gap for the SuperLink to notice: only the new session tells.
    exchange, line = away_line(slow(10.0), (5.0, 5.0 + 1e-6))

    arrivals = list(ask(exchange, "a"))

    assert [type(arrival) for arrival in arrivals] == [Reply]
    assert len(line.sites["a"].asked) == 2


def test_an_answer_that_comes_twice_counts_once() -> None:
    said: list[Said] = [Said(frame=echo(ASKED), after_s=20.0), Said(frame=echo(ASKED), after_s=1.0)]
    clock = SteppedClock(seconds=0.0)
    line = ScriptedLine(clock, {"a": ScriptedSite(lambda _: said.pop(0), 100), "b": ScriptedSite(slow(40), 101)})
    exchange = Exchange(line, clock, clock.sleep)
    inquiry = ask(exchange, "a", "b")
    arrivals: list[Arrival] = []
    for arrival in inquiry:
        arrivals.append(arrival)
        if arrival.site == "a" and len(arrivals) == 1:
            inquiry.repeat("a")

    assert [arrival.site for arrival in arrivals] == ["a", "a", "b"]


def test_frames_are_counted_in_both_directions() -> None:
    exchange, _ = exchange_with(a=echo, b=echo)

    list(ask(exchange, "a", "b"))

    one_way = exchange.traffic.down // 2
    assert exchange.traffic.down == 2 * one_way
    assert exchange.traffic.up == 2 * (one_way + len(b"update") - len(b"model"))


def test_a_dropped_site_is_waited_for_no_longer() -> None:
    exchange, _ = exchange_with(a=lambda _: None, b=echo)
    inquiry = ask(exchange, "a", "b")
    for arrival in inquiry:
        assert arrival.site == "b"
        inquiry.drop("a")

    assert not inquiry.pending


def test_nothing_asked_is_nothing_to_wait_for() -> None:
    exchange, line = exchange_with(a=echo)
    begin_s = exchange.clock.monotonic_s()

    assert list(ask(exchange)) == []
    assert line.pushes == 0
    assert exchange.clock.monotonic_s() == begin_s
