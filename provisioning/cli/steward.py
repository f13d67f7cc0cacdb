"""`seh-provision steward`: who decides at a hospital what its data may be used for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.errors import OperatorError
from agent.trust.records import StewardFile, parse_record
from provisioning.cli.desk import RegistrarOption, RootOption, SiteKeyOption, SiteOption, StateOption, asked_office
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile

app = typer.Typer(name="steward", help="A hospital's data stewards.", no_args_is_help=True)


@app.callback()
def _steward() -> None:
    """A hospital's data stewards."""


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="The steward's record (JSON), with the public key of their passkey.")],
    *,
    site: SiteOption,
    key: SiteKeyOption,
    state: StateOption,
    registrar: RegistrarOption,
    root: RootOption,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a steward on record, or change what is on record of one."""
    steward = parse_record(StewardFile, read_file(file))
    if steward.site != site:
        raise OperatorError(
            "steward.another_site",
            f"{file} is a record of {steward.site}, not of {site}.",
            next_step="Name the right file, or the right hospital.",
        )
    with asked_office(
        site, key, state=state, registrar=registrar, root=root, passphrase_file=passphrase_file
    ) as office:
        office.publish(lambda desk: desk.add_steward(steward))
        typer.echo(f"{steward.steward} is on record at {site}.")
