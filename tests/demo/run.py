"""One demonstration, from an empty directory to report, summary and model."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from agent.core.errors import SecureHealthError
from agent.service.state import load_status
from agent.trust.study import PrivacyTerms
from provisioning.coordinator.directory import CoordinatorDirectory, CoordinatorSettings
from provisioning.coordinator.fab import has_ended, launch_run
from provisioning.coordinator.progress import Happening, follow_events
from tests.demo.cohorts import Cohort, Hospital
from tests.demo.found import Consortium, found_consortium
from tests.demo.governing import approve_all, verify_logs
from tests.demo.joining import bring_all_in
from tests.demo.live import View
from tests.demo.parts import PartFailedError, tail
from tests.demo.report import render_report
from tests.demo.scoring import Scored, score_model
from tests.demo.summary import (
    Centre,
    LogRecord,
    ModelRecord,
    PrivacyRecord,
    RoundRecord,
    Summary,
    store_bytes,
    store_summary,
    store_text,
)

RESULTS = ("summary.json", "report.html", "model.onnx")
RUN_CHECK_S = 3.0
STATE_OF_EVENT = {
    Happening.OPENED: "training",
    Happening.LOST: "lost",
    Happening.RETURNED: "training",
    Happening.REFUSED: "refused",
    Happening.FAULTY: "refused",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Args:
        cohort: The data set.
        hospitals: Who takes part.
        rounds: Rounds of training.
        keys: The kind of each hospital's key.
        output: Where report, summary and model go.
        secure: Whether updates are aggregated under masks.
        privacy: Noise on what is released, or none.
    """

    cohort: Cohort
    hospitals: tuple[Hospital, ...]
    rounds: int
    keys: tuple[str, ...]
    output: Path
    secure: bool = True
    privacy: PrivacyTerms | None = None


@dataclass(slots=True)
class Stopwatch:
    """Seconds by phase, from the start of the process on.

    Args:
        begin_s: `time.monotonic()` when the command was given.
        phases: Seconds by name, in order.
    """

    begin_s: float
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, view: View) -> Iterator[None]:
        """Time a phase."""
        view.phase(name)
        begin_s = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - begin_s

    @property
    def seconds(self) -> float:
        """Since the command."""
        return time.monotonic() - self.begin_s


@contextmanager
def held_output(directory: Path) -> Iterator[Path]:
    """Keep others out of `directory`, remove old results, and yield an empty place for the consortium in it.

    Raises:
        PartFailedError: Another demonstration is at work there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise PartFailedError(
            "output",
            f"another demonstration writes to {directory}",
            next_step="Wait until it has ended, or name another place with --output.",
        ) from error
    try:
        for name in RESULTS:  # a failed run must not be taken for the one before
            (directory / name).unlink(missing_ok=True)
        place = directory / "consortium"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        yield place
    finally:
        os.close(descriptor)


def run_demo(
    options: Options, place: Path, view: View, watch: Stopwatch, *, while_running: Callable[[], None]
) -> Summary:
    """Found the consortium, run the study, end the consortium, and write what came out.

    Args:
        options: What was asked for.
        place: An empty directory for the consortium.
        view: Where to report to.
        watch: Times the phases.
        while_running: Called when all is written and the consortium still runs.

    Raises:
        PartFailedError: A part failed; nothing is left running.
    """
    now = datetime.now(UTC)
    with watch.phase("keys, trust repository, registrar, SuperLink", view):
        consortium = found_consortium(
            place,
            options.cohort,
            options.hospitals,
            rounds=options.rounds,
            keys=options.keys,
            now=now,
            view=view,
            privacy=options.privacy,
            allow_plain=not options.secure,
        )
    try:
        with watch.phase("boxes start, are enrolled by their tokens, and join", view):
            consortium.start_agents(view)
            bring_all_in(consortium, view)
        if options.secure:
            with watch.phase("data stewards approve the study", view):
                approve_all(consortium, view)
        coordination = _prepare(consortium, secure=options.secure)
        with watch.phase("coordinator and training workers start", view):
            events = _launch(consortium, coordination)
            log = _Rounds(consortium, view)
            log.follow_until_first_round(events)
        with watch.phase(f"{options.rounds} rounds", view):
            log.follow(events)
        with watch.phase("local and pooled models, scoring", view):
            model = coordination.trained_model.read_bytes()
            scored = score_model(options.cohort, options.hospitals, consortium.study, model)
        privacy = _read_privacy(coordination, options.privacy)
        logs: dict[str, LogRecord] = {}
        if options.secure:
            with watch.phase("audit logs exported and verified", view):
                logs = verify_logs(consortium)
        summary = replace(_summarise(options, consortium, scored, log.records, watch, now, privacy), logs=logs)
        _write(options, summary, scored.model)
        while_running()
    finally:
        try:
            view.phase("stopping")
        finally:
            consortium.close()  # also where nobody reads any more what is shown
    return summary


def _prepare(consortium: Consortium, *, secure: bool) -> CoordinatorDirectory:
    directory = CoordinatorDirectory(consortium.directory / "coordinator")
    aggregation: Literal["plain", "secure"] = "secure" if secure else "plain"
    settings = CoordinatorSettings(
        environment="demo",
        aggregation=aggregation,
        open_deadline_s=120.0,
        open_retry_s=1.0,
        registrar=consortium.authority.plan.registrar,
        nodes={} if secure else _nodes(consortium),
    )
    directory.prepare(
        consortium.study_file,
        consortium.model_file,
        settings,
        root=consortium.authority.first_root,
        key=consortium.authority.coordinator_key,
    )
    return directory


def _nodes(consortium: Consortium) -> dict[str, int]:
    """Each hospital's node at the SuperLink; an unprotected run does not read the repository for that."""
    standing = {member.hospital.site: load_status(member.state_directory) for member in consortium.members}
    return {site: status.node_id for site, status in standing.items() if status and status.node_id is not None}


def _launch(consortium: Consortium, directory: CoordinatorDirectory) -> Iterator[dict[str, object]]:
    connection = consortium.superlink.connection
    try:
        run_id = launch_run(connection, directory.path)
    except SecureHealthError as error:
        raise PartFailedError("coordinator", error.sentence, next_step=error.next_step) from error
    checked_s = time.monotonic()

    def is_over() -> bool:
        nonlocal checked_s
        consortium.check()
        if time.monotonic() - checked_s < RUN_CHECK_S:
            return False
        checked_s = time.monotonic()
        return has_ended(connection, run_id) is not None

    return follow_events(directory.progress, is_over=is_over)


@dataclass(slots=True)
class _Rounds:
    """Follows the coordinator's events."""

    consortium: Consortium
    view: View
    records: list[RoundRecord] = field(default_factory=list)

    def follow_until_first_round(self, events: Iterator[dict[str, object]]) -> None:
        """Until all hospitals stand ready."""
        ready: set[str] = set()
        for event in events:
            self._take(event)
            ready |= {str(event["site"])} if event["event"] == Happening.OPENED else set()
            if len(ready) == len(self.consortium.members):
                return
        raise self._failed("it ended before all hospitals stood ready")

    def follow(self, events: Iterator[dict[str, object]]) -> None:
        """Until the study has ended well."""
        for event in events:
            self._take(event)
            if event["event"] == Happening.FINISHED:
                for member in self.consortium.members:
                    self.view.hospital(member.hospital.site, state="done")
                return
        raise self._failed("it ended before the study did")

    def _take(self, event: Mapping[str, object]) -> None:
        happening = Happening(str(event["event"]))
        if happening in {Happening.FAILED, Happening.PAUSED}:
            raise self._failed(str(event["sentence"]), next_step=str(event["next_step"]))
        if happening in STATE_OF_EVENT and str(event.get("site")) in self.consortium.study.sites:
            self.view.hospital(str(event["site"]), state=STATE_OF_EVENT[happening])
        if happening is Happening.ROUND:
            self.records.append(_round_record(event))
            self.view.round(self.records[-1])

    def _failed(self, what: str, *, next_step: str = "") -> PartFailedError:
        logs = [member.directory / "agent.log" for member in self.consortium.members]
        logs.append(self.consortium.superlink.directory / "superlink.log")
        said = "\n".join(f"--- {log.parent.name}/{log.name}\n{tail(log, lines=4)}" for log in logs[-5:])
        return PartFailedError(
            "coordinator", what, next_step=next_step or f"Read the logs under {self.consortium.directory}", log=said
        )


def _round_record(event: Mapping[str, object]) -> RoundRecord:
    def number(name: str) -> float:
        value = event[name]
        return math.nan if value is None else float(cast("float", value))

    return RoundRecord(
        number=int(number("round")),
        seconds=number("seconds"),
        loss=number("loss"),
        auc=number("auc"),
        accuracy=number("accuracy"),
        evaluated=int(number("evaluated")),
        cohort=len(cast("list[str]", event["cohort"])),
        legs=int(number("legs")),
        bytes_up=int(number("bytes_up")),
    )


def _summarise(
    options: Options,
    consortium: Consortium,
    scored: Scored,
    records: Sequence[RoundRecord],
    watch: Stopwatch,
    now: datetime,
    privacy: PrivacyRecord | None,
) -> Summary:
    centres = []
    for member in consortium.members:
        site = member.hospital.site
        rows = scored.rows[site]
        centres.append(
            Centre(
                site=site,
                name=member.hospital.name,
                key_kind=member.key.kind.value,
                enrolled_s=member.enrolled_s,
                trained=len(rows.train_y),
                held_out=len(rows.test_y),
                positives=int(rows.test_y.sum()),
                scores=scored.comparison.sites[site],
                alone_note=scored.comparison.notes.get(site, ""),
            )
        )
    return Summary(
        data=options.cohort.id,
        title=options.cohort.title,
        started=now.strftime("%Y-%m-%d %H:%M UTC"),
        seconds=watch.seconds,
        secure=options.secure,
        rounds=options.rounds,
        centres=tuple(centres),
        together=scored.comparison.together,
        log=tuple(records),
        phases=dict(watch.phases),
        model=ModelRecord(
            path=str(options.output / "model.onnx"),
            digest=scored.digest,
            parameters=consortium.study.model.parameters,
            description=options.cohort.model_description,
        ),
        privacy=privacy,
    )


def _read_privacy(directory: CoordinatorDirectory, asked: PrivacyTerms | None) -> PrivacyRecord | None:
    """What the coordinator accounted; None without noise."""
    if asked is None:
        return None
    spent = json.loads(directory.result.read_bytes())["privacy"]
    return PrivacyRecord(
        epsilon=spent["epsilon"],
        delta=spent["delta"],
        rounds=spent["rounds"],
        l2_clip=asked.l2_clip,
        noise_multiplier=asked.noise_multiplier,
    )


def _write(options: Options, summary: Summary, model: bytes) -> None:
    """The summary last: it says that the others are there."""
    store_bytes(options.output / "model.onnx", model)
    page = render_report(summary, outcome=options.cohort.outcome, citation=options.cohort.citation)
    store_text(options.output / "report.html", page)
    store_summary(options.output / "summary.json", summary)
