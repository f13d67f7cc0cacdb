"""A line without a network: sites that answer by script, on a clock that only sleeping moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from agent.core.wire import Frame, encode_frame, parse_frame
from provisioning.coordinator.exchange import Attendance, Letter

Answer = Callable[[Frame], "Frame | Said | None"]
"""What a site does with a frame: answers, says something else, or stays silent."""


@dataclass(slots=True)
class SteppedClock:
    """Time that moves when somebody sleeps."""

    seconds: float = 1000.0
    begin: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Wall-clock time."""
        return self.begin + timedelta(seconds=self.seconds)

    def monotonic_s(self) -> float:
        """The same, as a number."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += max(seconds, 1e-3)


@dataclass(frozen=True, slots=True)
class Said:
    """A letter that is no frame: the fields of `Letter`, and after how many seconds it comes."""

    letter: Mapping[str, object] = field(default_factory=dict)
    after_s: float = 0.0
    frame: Frame | None = None


@dataclass(slots=True)
class ScriptedSite:
    """A site.

    Args:
        answer: What it does with a frame.
        node_id: Its node.
        away: Spans of time, in seconds on the clock, in which its node is gone; what it was asked before, it forgets.
    """

    answer: Answer
    node_id: int
    away: tuple[tuple[float, float], ...] = ()
    asked: list[Frame] = field(default_factory=list)

    def is_away(self, at_s: float) -> bool:
        """Whether its node is gone."""
        return any(begin <= at_s < end for begin, end in self.away)

    def session(self, at_s: float) -> str:
        """Changes whenever it comes back."""
        return str(sum(end <= at_s for _, end in self.away))


@dataclass(slots=True)
class ScriptedLine:
    """Implements `exchange.Line`."""

    clock: SteppedClock
    sites: dict[str, ScriptedSite]
    pushes: int = 0
    _letters: dict[str, tuple[float, str, Letter]] = field(default_factory=dict)
    _sent: dict[str, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, clock: SteppedClock, answers: Mapping[str, Answer]) -> ScriptedLine:
        """A line to sites that are always there."""
        return cls(clock, {site: ScriptedSite(answer, 100 + k) for k, (site, answer) in enumerate(answers.items())})

    def attendance(self) -> Mapping[str, Attendance]:
        """Who is there."""
        now_s = self.clock.seconds
        return {
            name: Attendance(site.node_id, site.session(now_s))
            for name, site in self.sites.items()
            if not site.is_away(now_s)
        }

    def push(self, frames: Mapping[int, Frame], *, ttl_s: float) -> tuple[Mapping[int, str], int]:
        """Hand frames over; each site answers at once, however late the answer arrives."""
        assert ttl_s > 0
        by_node = {site.node_id: (name, site) for name, site in self.sites.items()}
        message_ids, size = {}, 0
        for node_id, frame in frames.items():
            name, site = by_node[node_id]
            self.pushes += 1
            message_ids[node_id] = f"message-{self.pushes}"
            data = encode_frame(frame)
            size += len(data)
            received = parse_frame(data)
            site.asked.append(received)
            self._sent[message_ids[node_id]] = (name, self.clock.seconds)
            self._keep(message_ids[node_id], name, site.answer(received))
        return message_ids, size

    def collect(self, message_ids: Sequence[str], *, wait_s: float) -> list[Letter]:
        """What has come by now; a node that has gone since it was asked gives a lost letter instead."""
        letters = [letter for message_id in message_ids if (letter := self._due(message_id)) is not None]
        if not letters:
            self.clock.sleep(wait_s)
        return letters

    def _keep(self, message_id: str, name: str, answer: Frame | Said | None) -> None:
        if isinstance(answer, Frame):
            answer = Said(frame=answer)
        if answer is None:
            return
        fields: dict[str, object] = dict(answer.letter)
        if answer.frame is not None:
            data = encode_frame(answer.frame)
            fields |= {"frame": parse_frame(data), "size": len(data)}
        letter = Letter(message_id, **fields)  # type: ignore[arg-type]  # the script's own fields
        self._letters[message_id] = (self.clock.seconds + answer.after_s, name, letter)

    def _due(self, message_id: str) -> Letter | None:
        now_s = self.clock.seconds
        name, sent_s = self._sent[message_id]
        site = self.sites[name]
        due_s, _, letter = self._letters.get(message_id, (float("inf"), name, None))
        gone_s = min((begin for begin, _ in site.away if begin > sent_s), default=float("inf"))
        if letter is not None and due_s <= now_s and due_s < gone_s:
            del self._letters[message_id]
            return letter
        if gone_s <= now_s and site.is_away(now_s):
            return Letter(message_id, lost="the node reports no more")
        return None
