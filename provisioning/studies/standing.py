"""Where a study stands: published or waiting for signatures, and what its coordination says of its rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tuf.api.metadata import Metadata, Targets

from agent.core.errors import OperatorError
from agent.core.terminal import render_columns
from agent.trust.delegations import STUDIES
from agent.trust.study import Study
from provisioning.authority.ceremony import PendingChange, load_pending
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles
from provisioning.coordinator.aggregation import NEXT_STEPS
from provisioning.coordinator.directory import CoordinatorDirectory
from provisioning.coordinator.progress import ENDINGS, Happening
from provisioning.studies.signing import MODEL_FILE, STUDY_FILE, read_proposal, target_path

Event = Mapping[str, Any]

_HEADINGS: Final = ("round", "hospitals", "records", "loss", "AUC", "seconds")


@dataclass(frozen=True, slots=True)
class Publication:
    """What the consortium's repository says of a study.

    Args:
        listed: Whether hospitals are shown it.
        missing: Signatures that a change which would show it still lacks; None where none waits.
        file: Of that change.
    """

    listed: bool
    missing: int | None = None
    file: str = ""

    def sentence(self, *, launched: bool = False) -> str:
        """For people.

        Args:
            launched: Whether it has run, and so was published once.
        """
        if self.listed:
            return "Published: the boxes of its hospitals have it, or fetch it within a minute."
        if self.missing is None:
            unknown = "Not published. Check the name; `seh-provision study sign` prepares a new one."
            return "Withdrawn." if launched else unknown
        if self.missing:
            return f"Waits for {self.missing} more signature(s) on {self.file}: seh-provision study sign {self.file}"
        return f"Signed by enough, and not published yet: seh-provision study publish {self.file}"


def run_directory(layout: AuthorityLayout, study: str) -> CoordinatorDirectory:
    """Where an authority coordinates a study."""
    return CoordinatorDirectory(layout.path.absolute() / "runs" / study)


def find_publication(layout: AuthorityLayout, study: str) -> Publication:
    """Ask the authority's directory.

    Raises:
        OperatorError: It is damaged.
    """
    listed = target_path(study, STUDY_FILE) in _listed(RepositoryFiles(layout.repository)).targets
    for path in sorted(layout.pending.glob(f"{STUDIES}-*.cbor")):
        pending = load_pending(path)
        if _adds(pending, study):
            return Publication(listed, pending.missing, str(path))
    return Publication(listed)


def published_files(layout: AuthorityLayout, study: str) -> tuple[bytes, bytes]:
    """A published study and its model.

    Raises:
        OperatorError: It is not published, or the directory is damaged.
    """
    repository = RepositoryFiles(layout.repository)
    targets = _listed(repository).targets
    paths = [target_path(study, name) for name in (STUDY_FILE, MODEL_FILE)]
    if any(path not in targets for path in paths):
        raise OperatorError(
            "study.not_published",
            f"The consortium has published no study {study!r}.",
            next_step="See `seh-provision study status`; publish it first.",
        )
    data, model = (repository.target(path, targets[path].hashes["sha256"]) for path in paths)
    return data, model


def tell(event: Event, rounds: int) -> str | None:
    """One event of a coordination, for people; None where it needs no words.

    Args:
        event: As `provisioning.coordinator.progress` writes it.
        rounds: Of the study.
    """
    say = _SAID.get(event["event"])
    return None if say is None else say(event, rounds)


def describe_run(events: Sequence[Event], study: Study) -> list[str]:
    """How a study's rounds go: a table of them, and what is waited for now.

    Args:
        events: All, from the first.
        study: The study.
    """
    if not events:
        return ["Not launched yet: `seh-provision study launch` begins it."]
    rows = [_row(event) for event in _rounds(events)]
    lines = render_columns(_HEADINGS, rows).splitlines() if rows else []
    last = events[-1]
    lines += _now(events, study)
    lines.append(f"Last heard of it at {last['time']}.")
    return lines


def _now(events: Sequence[Event], study: Study) -> list[str]:
    """What the newest run of a coordination is at."""
    start = max((k for k, event in enumerate(events) if event["event"] == Happening.STARTED), default=0)
    run, last = events[start:], events[-1]
    if last["event"] == Happening.FINISHED:
        return [_said(last, study)]
    trouble = _trouble(run, study)
    if last["event"] in ENDINGS:
        return [_said(last, study), *trouble]
    done = sum(1 for _ in _rounds(events))
    name = f"Round {done + 1} of {study.rounds}" if done < study.rounds else "The last evaluation"
    has_begun = len({event["site"] for event in run if event["event"] == Happening.OPENED}) == len(study.sites)
    return [f"{name} is under way." if has_begun or not trouble else f"{name} waits for hospitals.", *trouble]


def _trouble(run: Sequence[Event], study: Study) -> list[str]:
    """What a run still waits for, hospital by hospital."""
    standing: dict[str, str] = {}
    for event in run:
        match event["event"]:
            case Happening.WAITING:
                standing |= {site: f"Waits for {site}." for site in event["sites"] if site not in standing}
            case Happening.REFUSED | Happening.LOST | Happening.FAULTY:
                standing[event["site"]] = _said(event, study)
            case Happening.OPENED | Happening.RETURNED:
                standing.pop(event["site"], None)
            case Happening.ROUND:
                for site in event["cohort"]:
                    standing.pop(site, None)
    return list(standing.values())


def _said(event: Event, study: Study) -> str:
    return tell(event, study.rounds) or ""


def _rounds(events: Sequence[Event]) -> Iterator[Event]:
    """Training rounds and the last evaluation, each once: a resumed run may repeat one."""
    return iter({event["round"]: event for event in events if event["event"] == Happening.ROUND}.values())


def _row(event: Event) -> tuple[str, ...]:
    figures = (_figure(event[name]) for name in ("loss", "auc", "seconds"))
    name = str(event["round"]) if event["kind"] == "train" else "last"
    loss, auc, seconds = figures
    return name, str(len(event["cohort"])), str(event["weight"] or event["evaluated"]), loss, auc, seconds


def _round(event: Event, rounds: int) -> str:
    name = f"Round {event['round']} of {rounds}" if event["kind"] == "train" else "Last evaluation"
    return (
        f"{name}: {len(event['cohort'])} hospitals, loss {_figure(event['loss'])}, AUC {_figure(event['auc'])}, "
        f"{_figure(event['seconds'])} s"
    )


def _failure(event: Event, _: int) -> str:
    return f"{str(event['event']).capitalize()}: {event['sentence']} {event['next_step']}"


_SAID: Final[Mapping[str, Callable[[Event, int], str]]] = {
    Happening.STARTED: lambda event, rounds: f"Begins with round {event['round']} of {rounds}.",
    Happening.WAITING: lambda event, _: f"Waits for {', '.join(event['sites'])}.",
    Happening.OPENED: lambda event, _: f"{event['site']} takes part.",
    Happening.REFUSED: lambda event, _: f"{event['site']} refuses: {event['refusal']}. {_step(event['refusal'])}",
    Happening.LOST: lambda event, _: f"{event['site']} is gone: {event['why']}.",
    Happening.RETURNED: lambda event, _: f"{event['site']} is back.",
    Happening.DROPPED: lambda event, _: f"Goes on without {', '.join(event['sites'])}.",
    Happening.MOMENTS: lambda event, _: f"Mean and deviation of {event['fields']} fields are known.",
    Happening.ROUND: _round,
    Happening.FINISHED: lambda *_: "Finished: `seh-provision study result` makes the signed result.",
    Happening.FAULTY: _failure,
    Happening.PAUSED: _failure,
    Happening.FAILED: _failure,
}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _step(refusal: str) -> str:
    return next((step for item, step in NEXT_STEPS.items() if item.value == refusal), "")


def _adds(pending: PendingChange, study: str) -> bool:
    return target_path(study, STUDY_FILE) in pending.change.targets and read_proposal(pending).study.id == study


def _listed(repository: RepositoryFiles) -> Targets:
    return Metadata[Targets].from_bytes(repository.load().roles[STUDIES]).signed
