"""`seh-agent status`: how the agent on this box does, once or until Ctrl-C."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import OperatorError, SecureHealthError

if TYPE_CHECKING:
    from agent.core.box_view import BudgetView, RoundView
    from agent.service.running_box import RunningBox
    from agent.service.state import AgentStatus

EVERY_S: Final = 1.0


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second, until Ctrl-C.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Say how the agent on this box does: its link, its studies, rounds under way, budget, and witness."""
    from agent.service.running_box import RunningBox  # noqa: PLC0415 - other commands need not load the service
    from agent.service.state import load_status, not_running  # noqa: PLC0415 - the same

    directory = load_config(config).node.state_directory
    pause = threading.Event()
    while True:
        current = load_status(directory)
        if current is None:
            raise not_running()
        text = "\n".join((*_of_agent(current), *_of_studies(RunningBox(directory))))
        if not watch:
            typer.echo(text)
            return
        sys.stdout.write(f"\x1b[H\x1b[2J{text}\n")  # ECMA-48: to the upper left, and clear
        sys.stdout.flush()
        try:
            pause.wait(EVERY_S)
        except KeyboardInterrupt:
            return


def _of_agent(current: AgentStatus) -> Iterator[str]:
    from agent.identity.session import utc  # noqa: PLC0415 - other commands need not load the service

    yield f"{current.link}, node {current.node_id or 'not known yet'}, release {current.version}"
    if current.site:
        yield f"works for {current.site}"
    if current.answering:
        yield f"working on {current.answering}"
    if current.session_expires_s is not None:
        yield f"its key vouches for it until {utc(current.session_expires_s)}"
    if current.heard_s is not None:
        yield f"the registrar heard of it last at {utc(current.heard_s)}"
    if current.session_sentence:
        yield " ".join((current.session_sentence, current.session_next_step)).rstrip()
    if current.notice:
        yield current.notice
    if current.trouble:
        yield f"{current.sentence}\n{current.next_step}\n[{current.trouble}]"


def _of_studies(box: RunningBox) -> Iterator[str]:
    """Studies, rounds, budget and log; nothing where the box governs none, or is not there yet."""
    from agent.cli.study_text import plain, state_of  # noqa: PLC0415 - other commands need not load it
    from agent.identity.session import utc  # noqa: PLC0415 - the same

    try:
        studies, rounds, budget, audit = box.studies(), box.rounds(), box.budget(), box.audit(0)
    except OperatorError as error:
        if error.code in {"service.not_governed", "service.not_running", "service.not_heard"}:
            return
        raise
    except SecureHealthError as error:
        yield error.sentence
        return
    for line in studies:
        yield f"study {line.study}: {state_of(line)}, {plain(line.title)}"
    for view in rounds:
        yield _round_line(view)
    for row in budget:
        yield _budget_line(row)
    seen = ""
    if audit.witness:
        last = (
            "not seen yet" if audit.cosigned_s is None else f"cosigned {audit.cosigned_size} at {utc(audit.cosigned_s)}"
        )
        seen = f"; {audit.witness}: {last}"
    yield f"audit log: {audit.size} entries{seen}"
    if audit.blocked:
        yield f"NOTHING LEAVES: {audit.blocked}"


def _round_line(view: RoundView) -> str:
    name = {0: "sums of fields", view.rounds + 1: "evaluation"}.get(view.round, f"round {view.round} of {view.rounds}")
    state = f"under way, {view.stage}" if view.under_way else "done"
    sent = f", {view.bytes} masked bytes left" if view.bytes else ""
    cohort = f", {len(view.cohort)} hospitals" if view.cohort else ""
    return f"{view.study}: {name}, attempt {view.attempt}, {state}, {view.seconds:.1f} s{cohort}{sent}"


def _budget_line(row: BudgetView) -> str:
    if not row.epsilon:
        return f"budget of {row.dataset}: {row.releases} of {row.releases_allowed} sums without a bound have left"
    return (
        f"budget of {row.dataset} for each {row.unit}: epsilon {row.epsilon:g}, {row.spent:.2f} spent, "
        f"{row.reserved:.2f} set aside, {row.left:.2f} left"
    )
