"""`seh-agent update`: which release runs here, which one it should be, and how it gets here."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli.enrol import become_owner
from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.clock import SystemClock
from agent.core.config import AgentConfig, load_config
from agent.core.errors import OperatorError
from agent.core.terminal import render_columns

if TYPE_CHECKING:
    from agent.statements.release import Version
    from agent.trust.channels import Channel
    from agent.update.box import SlotsSaid
    from agent.update.updater import Updater, UpdaterState

app = typer.Typer(name="update", help="Releases of this software on this box.", no_args_is_help=True)

NowOption = Annotated[bool, typer.Option("--now", help="Change over at once, not in the maintenance window.")]


@app.callback()
def _update() -> None:
    """Releases of this software on this box."""


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Say which release runs, which one waits, and what went wrong."""
    from agent.update.box import load_answer, load_box, load_slots  # noqa: PLC0415 - other commands need not load it
    from agent.update.updater import UpdateFolder  # noqa: PLC0415 - the same

    settings = load_config(config)
    update = settings.update
    folder, slots = UpdateFolder(update.directory), load_slots(update)
    state, pin, waiting = folder.load_state(), folder.load_pin(), folder.incoming.waiting()
    rows = [
        ("runs", str(load_box(settings).running.version)),
        ("slots", _slots(slots)),
        ("floor", f"security epoch {slots.floor}"),
        ("source", update.url or "sticks only"),
        ("channel", update.channel),
        ("window", update.window),
        ("takes releases", ("by itself" if update.automatic else "when told to") + _pinned(pin)),
        ("last look", _when(state)),
        ("should run", state.offered or "what runs"),
        ("waits", "nothing" if waiting is None else f"{waiting.action} {waiting.version}"),
    ]
    typer.echo(render_columns(("what", "how it stands"), rows))
    answer = load_answer(update)
    if answer is not None and answer.sentence:
        typer.echo(answer.sentence)
    if slots.failed is not None:
        typer.echo(f"Release {slots.failed} was tried, and given up; it is not taken again by itself.")
    if state.code:
        typer.echo(f"{state.sentence}\n{state.next_step}\n[{state.code}]")


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Look what the channel offers, and take nothing."""
    settings = load_config(config)
    with _updater(settings) as updater:
        channel, chosen = updater.look(settings.update.channel)
    typer.echo(render_columns(("release", "boxes", "hospitals"), _offers(channel)))
    typer.echo("This box has what it should." if chosen is None else f"This box should take {chosen}.")


@app.command("apply")
def apply_(
    version: Annotated[str | None, typer.Argument(help="X.Y.Z; what the channel has for this box if left out.")] = None,
    now: NowOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Fetch a release, and have the box change over to it."""
    from agent.statements.release import Version  # noqa: PLC0415 - other commands need not load it
    from agent.update.window import parse_window  # noqa: PLC0415 - the same

    settings = load_config(config)
    window = None if now else parse_window(settings.update.window)
    with _updater(settings) as updater:
        named = None if version is None else Version.parse(version)
        taken = updater.take_named(settings.update.channel, named, window)
    if taken is None:
        typer.echo("This box has what it should.")
    else:
        when = "now" if window is None else f"between {window.start:%H:%M} and {window.end:%H:%M}"
        typer.echo(f"Release {taken} is here; the box changes over {when}, and back by itself should it not be well.")


@app.command()
def rollback(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Go back to the release before, at once."""
    from agent.statements.release import Version  # noqa: PLC0415 - other commands need not load it
    from agent.update.box import load_slots  # noqa: PLC0415 - the same
    from agent.update.updater import UpdateFolder  # noqa: PLC0415 - the same

    settings = load_config(config)
    other = load_slots(settings.update).other
    if other is None:
        raise OperatorError(
            "update.no_other_release",
            "The other slot of this box holds no release.",
            next_step="Nothing can be gone back to; take a newer release: `seh-agent update apply`.",
        )
    become_owner(settings.update.directory)
    folder = UpdateFolder(settings.update.directory)
    with folder.held():
        folder.incoming.ask_rollback(Version.parse(other.version))
    typer.echo(f"The box was asked to go back to {other.version}; `seh-agent update status` says what became of it.")
    typer.echo("It takes the release that it leaves no more by itself, but a newer one: see seh-agent update pin.")


@app.command()
def pin(
    version: Annotated[str | None, typer.Argument(help="The newest release that this box may take: X.Y.Z")] = None,
    none: Annotated[bool, typer.Option("--none", help="It may take any.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Let this box take no release newer than this one."""
    from agent.statements.release import Version  # noqa: PLC0415 - other commands need not load it
    from agent.update.updater import UpdateFolder  # noqa: PLC0415 - the same

    if (version is None) != none:
        raise OperatorError(
            "update.one_pin",
            "A pin names one release, or none.",
            next_step="Call `seh-agent update pin 1.4.0`, or `seh-agent update pin --none`.",
        )
    settings = load_config(config)
    become_owner(settings.update.directory)
    UpdateFolder(settings.update.directory).store_pin(None if version is None else Version.parse(version))
    typer.echo("This box takes any release." if version is None else f"This box takes nothing newer than {version}.")


@app.command()
def run(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Look, and take what this box should have; seh-update.timer calls this."""
    from agent.update.window import parse_window  # noqa: PLC0415 - other commands need not load it

    settings = load_config(config)
    update = settings.update
    if update.url is None:
        typer.echo("No release repository is configured; releases come on sticks.")
        return
    with _updater(settings) as updater:
        taken = updater.run(update.channel, parse_window(update.window), automatic=update.automatic)
    typer.echo("Nothing to take." if taken is None else f"Release {taken} was handed over.")


@contextmanager
def _updater(settings: AgentConfig) -> Iterator[Updater]:
    from agent.update.updater import opened_updater  # noqa: PLC0415 - other commands need not load it

    become_owner(settings.update.directory)
    with opened_updater(settings, SystemClock(), wait=time.sleep, progress=_Progress().tell) as updater:
        yield updater


class _Progress:
    """A line that counts, where somebody watches."""

    def __init__(self) -> None:
        self._last = -1

    def tell(self, done: int, total: int) -> None:
        share = 100 * done // total
        if share != self._last and sys.stderr.isatty():
            self._last = share
            typer.echo(f"\r{share:3d} % of {total >> 20} MiB", err=True, nl=done == total)


def _slots(slots: SlotsSaid) -> str:
    held = [f"{name}: {slot.version if slot else 'empty'}" for name, slot in sorted(slots.slots.items())]
    return ", ".join((*held, slots.phase))


def _offers(channel: Channel) -> list[tuple[str, str, str]]:
    return [
        (offer.version, "halted" if offer.halted else f"{offer.percentage} %", ", ".join(offer.sites))
        for offer in channel.releases
    ]


def _pinned(pin: Version | None) -> str:
    return "" if pin is None else f", none newer than {pin}"


def _when(state: UpdaterState) -> str:
    if state.checked_s is None:
        return "never"
    return f"{datetime.fromtimestamp(state.checked_s, UTC):%Y-%m-%d %H:%M} UTC"
