"""Asking a cohort: frames out to sites, answers back as they come, over whatever carries messages.

Sites are asked, not nodes: one node speaks for a site at a time. What an answer may be is decided here once, so that
every kind of aggregation meets the same few cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.core.clock import Clock
from agent.core.errors import NetworkError, PeerProtocolError
from agent.core.wire import Frame, Refusal

FAST_POLL_S = 0.02
SLOW_POLL_S = 0.5
POLL_SHARE = 0.1
"""The wait between polls is this share of the time since something last came, within the two bounds above."""
ATTENDANCE_INTERVAL_S = 1.0
"""How often the SuperLink is asked who is there, while a site is silent or lost."""
BUSY_RETRY_S = 0.5
MESSAGE_SLACK_S = 60.0
"""How much longer than the deadline a message stays valid at the SuperLink."""


@dataclass(frozen=True, slots=True)
class Attendance:
    """A node that the SuperLink calls online.

    Args:
        node_id: Its id there.
        session: Changes whenever the node joins anew.
    """

    node_id: int
    session: str = ""


@dataclass(frozen=True, slots=True)
class Letter:
    """What came back for one message: a frame, a refusal, or neither.

    Args:
        message_id: The message that it answers.
        frame: The answering frame.
        refusal: The node's refusal.
        lost: The SuperLink says that no answer will come; in its words.
        fault: The answer is none that a node of ours gives.
        size: Bytes of the frame.
    """

    message_id: str
    frame: Frame | None = None
    refusal: Refusal | None = None
    lost: str = ""
    fault: PeerProtocolError | None = None
    size: int = 0


class Line(Protocol):
    """What carries messages to nodes and answers back: Flower's grid, or a test's script."""

    def attendance(self) -> Mapping[str, Attendance]:
        """The nodes that are online, by site."""
        ...

    def push(self, frames: Mapping[int, Frame], *, ttl_s: float) -> tuple[Mapping[int, str], int]:
        """Send frames to nodes.

        Returns:
            The id of each node's message, nodes that the SuperLink does not know left out; and the bytes of all frames.
        """
        ...

    def collect(self, message_ids: Sequence[str], *, wait_s: float) -> list[Letter]:
        """Fetch the answers that are there; where there is none, wait for up to `wait_s` and return."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A site answered with a frame of the study, stage, round and attempt that was asked."""

    site: str
    frame: Frame


@dataclass(frozen=True, slots=True)
class Refused:
    """A site refused, with the one word that a node ever says about it."""

    site: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Faulty:
    """A site answered with something else than what was asked."""

    site: str
    error: PeerProtocolError


@dataclass(frozen=True, slots=True)
class Lost:
    """A site's node is gone; where the inquiry waits for it, it is asked again as soon as it is back."""

    site: str
    why: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A lost site's node is back and was asked again."""

    site: str


Arrival = Reply | Refused | Faulty | Lost | Returned


@dataclass(slots=True)
class Traffic:
    """Bytes of frames, as encoded.

    Args:
        up: From nodes to the coordinator.
        down: From the coordinator to nodes.
    """

    up: int = 0
    down: int = 0

    def reset(self) -> None:
        """Start counting anew."""
        self.up = self.down = 0


@dataclass(slots=True)
class Exchange:
    """Asks sites over a line.

    Args:
        line: What carries the messages.
        clock: For deadlines.
        sleep: Waits between polls.
    """

    line: Line
    clock: Clock
    sleep: Callable[[float], None]
    traffic: Traffic = field(default_factory=Traffic)

    def attendance(self) -> Mapping[str, Attendance]:
        """The nodes that are online, by site."""
        return self.line.attendance()

    def ask(self, frames: Mapping[str, Frame], *, deadline_s: float, persist: bool) -> Inquiry:
        """Send each site its frame; iterate the result for what comes back.

        Args:
            frames: What to ask, by site. Frames that share one payload object are cheap: it travels to the SuperLink
                once.
            deadline_s: When to give up, on the clock's monotonic scale.
            persist: Whether a site that is lost is waited for and asked again, until the deadline; else it is given up.
        """
        return Inquiry(self, frames, deadline_s=deadline_s, persist=persist)


class Inquiry:
    """One question to a cohort, and its answers as they come.

    Iterating ends when nothing is pending any more, or at the deadline; what is still `pending` then is missing.
    """

    def __init__(self, exchange: Exchange, frames: Mapping[str, Frame], *, deadline_s: float, persist: bool) -> None:
        self._line = exchange.line
        self._clock = exchange.clock
        self._sleep = exchange.sleep
        self._traffic = exchange.traffic
        self._frames = dict(frames)
        self._deadline_s = deadline_s
        self._persist = persist
        self._sites: dict[str, str] = {}  # message id -> site
        self._sent_to: dict[str, Attendance] = {}
        self._again_at: dict[str, float] = {}  # sites that were busy -> when to ask again
        self._lost: set[str] = set()
        self._looked_at = self._quiet_since = self._clock.monotonic_s()
        self.pending: set[str] = set(frames)
        """Sites that have not answered yet."""

    def __iter__(self) -> Iterator[Arrival]:
        """Yield what comes, in the order in which it comes."""
        yield from self._send(self.pending, self._line.attendance())
        while self.pending and self._clock.monotonic_s() < self._deadline_s:
            yield from self._turn()

    def repeat(self, site: str) -> None:
        """Ask a site once more that has answered."""
        self.pending.add(site)
        self._again_at[site] = self._clock.monotonic_s() + BUSY_RETRY_S

    def drop(self, site: str) -> None:
        """Stop waiting for a site."""
        self.pending.discard(site)
        self._again_at.pop(site, None)
        self._lost.discard(site)
        self._sites = {message: asked for message, asked in self._sites.items() if asked != site}

    def _turn(self) -> Iterator[Arrival]:
        now_s = self._clock.monotonic_s()
        wait_s = min(max((now_s - self._quiet_since) * POLL_SHARE, FAST_POLL_S), SLOW_POLL_S)
        if not self._sites:
            self._sleep(wait_s)
        for letter in self._line.collect(list(self._sites), wait_s=wait_s) if self._sites else []:
            self._quiet_since = self._clock.monotonic_s()
            yield from self._open(letter)
        yield from self._ask_again()

    def _open(self, letter: Letter) -> Iterator[Arrival]:
        site = self._sites.pop(letter.message_id, None)
        if site is None or site not in self.pending:
            return
        if letter.lost:
            yield from self._lose(site, letter.lost)
        elif letter.refusal is Refusal.BUSY:
            self._again_at[site] = self._clock.monotonic_s() + BUSY_RETRY_S
        elif letter.refusal is not None:
            self.drop(site)
            yield Refused(site, letter.refusal)
        else:
            self._traffic.up += letter.size
            self.drop(site)
            yield self._judge(site, letter)

    def _judge(self, site: str, letter: Letter) -> Reply | Faulty:
        asked, answer = self._frames[site], letter.frame
        if letter.fault is not None or answer is None:
            return Faulty(site, letter.fault or stray_answer(site, "it holds no frame"))
        if (answer.study, answer.stage) != (asked.study, asked.stage):
            return Faulty(site, stray_answer(site, "it is about another study or stage"))
        if (answer.round, answer.attempt) != (asked.round, asked.attempt):
            return Faulty(site, stray_answer(site, "it is about another round or attempt"))
        return Reply(site, answer)

    def _lose(self, site: str, why: str) -> Iterator[Lost]:
        if not self._persist:
            self.drop(site)
        elif site in self._lost:
            return
        else:
            self._lost.add(site)
        yield Lost(site, why)

    def _ask_again(self) -> Iterator[Arrival]:
        """Ask those again that were busy, or that are back; now and then look who is there."""
        now_s = self._clock.monotonic_s()
        due = {site for site, at_s in self._again_at.items() if at_s <= now_s}
        if not self.pending or (not due and now_s - self._looked_at < ATTENDANCE_INTERVAL_S):
            return
        present = self._line.attendance()
        self._looked_at = self._clock.monotonic_s()
        back = {site for site in self.pending if site in present and self._is_back(site, present[site])}
        for site in due:
            del self._again_at[site]
        yield from self._send(due | back, present)
        for site in sorted(self._lost & set(self._sites.values())):
            self._lost.discard(site)
            yield Returned(site)

    def _is_back(self, site: str, present: Attendance) -> bool:
        """Whether a lost site has a node again, or its node joined anew since: it has forgotten what it was asked."""
        return site not in self._again_at and (site in self._lost or self._sent_to.get(site) != present)

    def _send(self, sites: set[str], present: Mapping[str, Attendance]) -> Iterator[Lost]:
        """Send to those who are there; the others count as lost."""
        reachable = {site: present[site] for site in sorted(sites) if site in present}
        nodes = {there.node_id: self._frames[site] for site, there in reachable.items()}
        ttl_s = max(self._deadline_s - self._clock.monotonic_s(), 0.0) + MESSAGE_SLACK_S
        message_ids, size = self._line.push(nodes, ttl_s=ttl_s) if nodes else ({}, 0)
        self._traffic.down += size
        for site, there in reachable.items():
            if there.node_id in message_ids:
                self._sites[message_ids[there.node_id]] = site
                self._sent_to[site] = there
        for site in sorted(sites):
            if site not in reachable or reachable[site].node_id not in message_ids:
                yield from self._lose(site, "it is not there")


def stray_answer(site: str, why: str) -> PeerProtocolError:
    """An answer that does not fit what was asked."""
    return PeerProtocolError(
        "coordinator.stray_answer",
        f"The answer of {site} does not fit what it was asked: {why}.",
        next_step="Nothing was done with it. Ask the site to check that its box runs the consortium's current release.",
        site=site,
    )


def missing_sites(sites: Sequence[str], *, within_s: float, round_number: int) -> NetworkError:
    """Sites that did not answer in time."""
    return NetworkError(
        "coordinator.deadline_missed",
        f"No answer in round {round_number} within {within_s:g} s from: {', '.join(sorted(sites))}.",
        next_step="Ask these sites to check their box with `seh-agent status`, then resume the study; nothing is lost.",
        sites=sorted(sites),
        round=round_number,
    )
