"""`seh-agent study`: the studies on this box, and what its stewards decide about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.cli.key import TerminalPerson
from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.cli.steward_signing import (
    CardOption,
    ReaderOption,
    StewardChoice,
    StewardOption,
    choose_steward,
    read_challenge,
)
from agent.cli.study_text import approval_line, describe, plain, state_of
from agent.core.box_view import Box
from agent.core.config import load_config
from agent.core.errors import OperatorError
from agent.core.terminal import render_columns
from agent.governance.challenge import WithdrawalChallenge
from agent.identity.session import utc

app = typer.Typer(name="study", help="Studies on this box.", no_args_is_help=True)

StudyArgument = Annotated[str, typer.Argument(help="The study's name.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Try the PIN although only one attempt is left.")]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Do not ask whether it is meant; the key still asks for its PIN.")
]


@app.callback()
def _study() -> None:
    """Studies on this box."""


@app.command("list")
def list_studies(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """The studies on this box, and how each stands."""
    lines = _box(config).studies()
    if not lines:
        typer.echo("There is no study on this box.")
        return
    rows = [(line.study, state_of(line), line.dataset or "-", plain(line.title)[:60]) for line in lines]
    typer.echo(render_columns(("study", "state", "data set", "title"), rows))


@app.command()
def show(study: StudyArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """What a study wants, in plain words, and what speaks against it."""
    typer.echo(describe(_box(config).study(study)))


@app.command()
def approve(
    study: StudyArgument,
    *,
    steward: StewardOption = None,
    key: CardOption = None,
    reader: ReaderOption = "",
    yes: YesOption = False,
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Approve a study with a steward's security key or smartcard: it may run here until the approval ends."""
    box = _box(config)
    signer = StewardChoice(steward, TerminalPerson(force=force), key, reader).among(box.stewards())
    chosen, view = signer.steward, box.study(study)
    typer.echo(describe(view))
    challenge = read_challenge(box.begin_approval(study, chosen.steward), view)
    typer.echo(f"\n{chosen.steward}'s key will sign that exactly this may run here until {utc(challenge.not_after_s)}.")
    if not yes:
        typer.confirm("Approve it?", abort=True, err=True)
    signed = signer.approve(challenge)
    given = box.complete_approval(signed.encode().decode())
    typer.echo(f"Approved. Approval {given.sequence}: {approval_line(given)}.")
    typer.echo(f"To take it back at any time: seh-agent study withdraw {study}")


@app.command()
def refuse(study: StudyArgument, *, steward: StewardOption = None, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Note that a steward refuses a study; an approval given before is ended by `withdraw`."""
    box = _box(config)
    chosen = choose_steward(box.stewards(), steward)
    box.refuse_study(study, chosen.steward)
    typer.echo(f"{chosen.steward} refuses {study}; the audit log says so.")


@app.command()
def withdraw(
    study: StudyArgument,
    *,
    approval: Annotated[int | None, typer.Option(help="Only the approval with this number; else all of them.")] = None,
    steward: StewardOption = None,
    key: CardOption = None,
    reader: ReaderOption = "",
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Withdraw a study's approvals with a steward's key, for good: the study's next message is refused."""
    box = _box(config)
    signer = StewardChoice(steward, TerminalPerson(force=force), key, reader).among(box.stewards())
    for sequence in _to_withdraw(box, study, approval):
        act = WithdrawalChallenge.parse(box.begin_withdrawal(sequence, signer.steward.steward).payload.encode())
        if (act.study, act.sequence) != (study, sequence):
            raise _none_to_withdraw(study)
        box.complete_withdrawal(sequence, signer.prove(act).encode().decode())
        typer.echo(f"Approval {sequence} of {study} is withdrawn.")


@app.command()
def resume(study: StudyArgument, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Let a study run here again that failed on this box's data and was paused; look at the log first."""
    from agent.federation.journal import lift_pause  # noqa: PLC0415 - other commands need not load it
    from agent.federation.secure import journals_of_study  # noqa: PLC0415 - the same
    from agent.federation.studies import load_study  # noqa: PLC0415 - the same

    settings = load_config(config)
    folder = load_study(settings.studies_directory, study)
    directories = journals_of_study(settings.node.state_directory, folder.digest)
    lifted = [lift_pause(directory) for directory in directories]
    if not any(lifted):
        raise OperatorError(
            "cli.not_paused",
            f"The study {study} is not paused on this box.",
            next_step="Nothing to do; `seh-agent status` says how the agent does.",
        )
    typer.echo(f"{study} may run here again, from its next run on.")


def _box(config: Path) -> Box:
    from agent.service.running_box import RunningBox  # noqa: PLC0415 - other commands need not load the service

    return RunningBox(load_config(config).node.state_directory)


def _to_withdraw(box: Box, study: str, approval: int | None) -> tuple[int, ...]:
    if approval is not None:
        return (approval,)  # its study may be gone from this box
    found = tuple(entry.sequence for entry in box.study(study).approvals if entry.standing)
    if not found:
        raise _none_to_withdraw(study)
    return found


def _none_to_withdraw(study: str) -> OperatorError:
    return OperatorError(
        "cli.none_to_withdraw",
        f"The study {study} has no such approval that counts on this box.",
        next_step="Nothing to do; `seh-agent study show` lists its approvals.",
    )
