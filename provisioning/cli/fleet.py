"""`seh-provision fleet`: how the consortium's boxes do."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from agent.core.clock import SystemClock
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles
from provisioning.cli.ceremony import DirectoryOption
from provisioning.registrar.fleet import Condition, Fleet, FleetBox, ago, survey, utc
from provisioning.registrar.heartbeats import BoxHeartbeat
from provisioning.registrar.settings import load_settings

WATCH_S: Final = 5.0
_COLOURS: Final = {
    Condition.SILENT: typer.colors.RED,
    Condition.UNHEARD: typer.colors.RED,
    Condition.NEEDS_PERSON: typer.colors.YELLOW,
    Condition.DEGRADED: typer.colors.YELLOW,
    Condition.WELL: typer.colors.GREEN,
}
_CONDITION_WIDTH: Final = max(len(condition.value) for condition in Condition)


def fleet(
    directory: DirectoryOption,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every five seconds, until stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How the consortium's boxes do: silent ones first, then those that need a person."""
    layout = AuthorityLayout(directory)
    while True:
        found = load_fleet(layout)
        if watch and not as_json:
            typer.clear()
        typer.echo(json.dumps(asdict(found)) if as_json else "\n".join(render_fleet(found)))
        if not watch:
            return
        time.sleep(WATCH_S)


def load_fleet(layout: AuthorityLayout) -> Fleet:
    """Read repository and database of a consortium on this host.

    Raises:
        SecureHealthError: One of them cannot be read.
    """
    from provisioning.registrar.publish import PublishedReader  # noqa: PLC0415 - many libraries

    clock = SystemClock()
    snapshot = PublishedReader(RepositoryFiles(layout.repository), clock).current().snapshot
    return survey(snapshot, load_heartbeats(layout), now_s=int(clock.now().timestamp()))


def load_heartbeats(layout: AuthorityLayout) -> dict[str, BoxHeartbeat]:
    """What boxes told the registrar on this host, by their keys' ids; nothing where it never ran."""
    from provisioning.registrar.run import database_url  # noqa: PLC0415 - many libraries
    from provisioning.registrar.store import Store  # noqa: PLC0415 - the same

    url = database_url(load_settings(layout.registrar_settings))
    if url.startswith("sqlite") and not Path(url.partition("///")[2]).exists():
        return {}  # the registrar makes the file as its own user
    store = Store.open(url, SystemClock())
    try:
        return store.heartbeats()
    finally:
        store.close()


def render_fleet(found: Fleet) -> list[str]:
    """For a terminal; every colour says what a word beside it says too."""
    counts = ", ".join(f"{count} {condition.value}" for condition, count in found.counts.items() if count)
    lines = [f"{found.consortium}, {utc(found.now_s)}: {counts or 'no box on record'}"]
    width = max((len(_name(box)) for box in found.boxes), default=0)
    for box in found.boxes:
        lines.append(_line(box, width, found.now_s))
        if box.sentence:
            lines.append(f"    {box.sentence}")
    lines += [f"{site}: {why}" for site, why in found.boxless.items()]
    return lines


def _line(box: FleetBox, width: int, now_s: int) -> str:
    condition = typer.style(f"{box.condition.value:{_CONDITION_WIDTH}}", fg=_COLOURS[box.condition], bold=True)
    seen = "never" if box.seen_s is None else ago(now_s - box.seen_s)
    key = box.key if box.session_expires_s is None else f"{box.key} until {utc(box.session_expires_s)}"
    person = "  needs a person" if box.needs_person and box.condition is not Condition.NEEDS_PERSON else ""
    return f"{_name(box):{width}}  {condition}  {seen:10}  {box.release or '-':10}  {key}{person}"


def _name(box: FleetBox) -> str:
    return f"{box.site} {box.node}{' (spare)' if box.is_spare else ''}"
