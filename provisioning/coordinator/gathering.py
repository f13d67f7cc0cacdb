"""Who takes part: waits for the study's sites at the start, and says before each round whom to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.core.errors import NetworkError
from agent.core.wire import Frame, Refusal, Stage
from agent.trust.study import Study
from provisioning.coordinator.aggregation import NEXT_STEPS, smallest_cohort
from provisioning.coordinator.directory import Assignment
from provisioning.coordinator.exchange import Attendance, Exchange, Refused, Reply
from provisioning.coordinator.progress import Happening, ProgressLog

OPEN_ANSWER_S = 120.0
"""How long a site may take to check that its data set fits."""
CLOSE_ANSWER_S = 5.0
POLL_S = 0.2


@dataclass(slots=True)
class Gathering:
    """The sites of one study, as they come and go.

    Args:
        assignment: The study and the operator's patience.
        exchange: Reaches the sites.
        progress: Is told who came, refused, or is missing.
    """

    assignment: Assignment
    exchange: Exchange
    progress: ProgressLog
    _agreed: dict[str, Attendance] = field(default_factory=dict)
    _refusals: dict[str, Refusal] = field(default_factory=dict)

    def gather(self) -> None:
        """Wait until the sites that the study needs are there and agree.

        Raises:
            NetworkError: They are not there, or not willing, by the deadline.
        """
        begin_s = self._now_s()
        shown: set[str] = set()
        while not self._is_complete(self._now_s() - begin_s):
            self._invite()
            absent = set(self._study.sites) - self._agreed.keys()
            if absent and absent != shown:
                self.progress.note(Happening.WAITING, sites=sorted(absent))
                shown = absent
            if self._now_s() - begin_s > self.assignment.settings.open_deadline_s:
                raise _not_gathered(absent, self._refusals, within_s=self.assignment.settings.open_deadline_s)
            if absent:
                self.exchange.sleep(self._pause_s(absent))

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The sites to ask in a round: all of them, or, where the study continues without some, those that are there.

        Raises:
            NetworkError: Too few are there.
        """
        if not self._continues:
            return tuple(sorted(self._study.sites))
        self._invite()
        present = self.exchange.attendance().keys() & self._agreed.keys()
        if dropped := set(self._study.sites) - present:
            self.progress.note(Happening.DROPPED, sites=sorted(dropped), round=round_number)
        needed = smallest_cohort(self._study)
        if len(present) < needed:
            raise _too_few(present, needed, round_number=round_number)
        return tuple(sorted(present))

    def dismiss(self) -> None:
        """Tell those who are there that the run has ended, without waiting for them for long."""
        frame = Frame(self._study.id, Stage.CLOSE)
        sites = self.exchange.attendance().keys() & self._agreed.keys()
        deadline_s = self._now_s() + CLOSE_ANSWER_S
        for _ in self.exchange.ask(dict.fromkeys(sites, frame), deadline_s=deadline_s, persist=False):
            pass

    @property
    def _study(self) -> Study:
        return self.assignment.study

    @property
    def _continues(self) -> bool:
        return self._study.secagg.dropout == "continue"

    def _now_s(self) -> float:
        return self.exchange.clock.monotonic_s()

    def _pause_s(self, absent: set[str]) -> float:
        # One that refuses may change its mind, but is not pestered; one that is absent is seen as soon as it comes.
        return self.assignment.settings.open_retry_s if absent <= self._refusals.keys() else POLL_S

    def _is_complete(self, waited_s: float) -> bool:
        if len(self._agreed) == len(self._study.sites):
            return True
        enough = self._continues and len(self._agreed) >= smallest_cohort(self._study)
        return enough and waited_s >= self.assignment.settings.gather_s

    def _invite(self) -> None:
        """Ask the sites that are there, and have not agreed since they joined, whether the study may run."""
        present = self.exchange.attendance()
        fresh = {site: there for site, there in present.items() if self._agreed.get(site) != there}
        frame = Frame(self._study.id, Stage.OPEN, header={"study_digest": self.assignment.digest})
        deadline_s = self._now_s() + OPEN_ANSWER_S
        for arrival in self.exchange.ask(dict.fromkeys(fresh, frame), deadline_s=deadline_s, persist=False):
            if isinstance(arrival, Reply):
                self._agreed[arrival.site] = fresh[arrival.site]
                self._refusals.pop(arrival.site, None)
                self.progress.note(Happening.OPENED, site=arrival.site)
                continue
            self._agreed.pop(arrival.site, None)
            self.progress.note_arrival(0, arrival)
            if isinstance(arrival, Refused):
                self._refusals[arrival.site] = arrival.refusal


def _not_gathered(absent: set[str], refusals: Mapping[str, Refusal], *, within_s: float) -> NetworkError:
    named = [f"{site} ({refusals[site].value})" if site in refusals else site for site in sorted(absent)]
    steps = sorted({NEXT_STEPS[refusals[site]] for site in absent if site in refusals})
    if absent - refusals.keys():
        steps.append("Ask the absent sites to check their box with `seh-agent status`.")
    return NetworkError(
        "coordinator.not_gathered",
        f"The study could not begin within {within_s:g} s: not there, or not willing: {', '.join(named)}.",
        next_step=" ".join([*steps, "Then resume the study."]),
        sites=sorted(absent),
    )


def _too_few(present: set[str], needed: int, *, round_number: int) -> NetworkError:
    return NetworkError(
        "coordinator.too_few_sites",
        f"Round {round_number} needs {needed} sites, and {len(present)} are there.",
        next_step="Ask the missing sites to check their box with `seh-agent status`, then resume the study.",
        present=sorted(present),
        round=round_number,
    )
