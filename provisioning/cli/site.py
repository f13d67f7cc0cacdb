"""`seh-provision site`: hospitals that belong to the consortium, and what each of them signs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.clock import SystemClock
from agent.core.ids import SiteID, check_identifier
from agent.trust.delegations import SITES
from agent.trust.records import SitePaths
from provisioning.authority.ceremony import add_site, replace_site_keys, suspend_site
from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.repository import RepositoryFiles
from provisioning.authority.signers import open_signer
from provisioning.authority.site import LocalSource, SiteDesk
from provisioning.cli.ceremony import (
    DirectoryOption,
    KeysOption,
    asked_authority,
    fingerprint,
    site_keys,
    tell_outcome,
)
from provisioning.cli.desk import Hospital, for_hospital
from provisioning.cli.endorse import endorse
from provisioning.cli.passkey import passkey
from provisioning.cli.secrets import PassphraseFile, interactive

app = typer.Typer(name="site", help="Hospitals.", no_args_is_help=True)
app.command("endorse")(endorse)
app.command("passkey")(passkey)


@app.callback()
def _site() -> None:
    """Hospitals."""


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Short name of the hospital.")],
    *,
    directory: DirectoryOption,
    key: Annotated[str | None, typer.Option(help="The hospital's own key, where it is here.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="Its public half, PEM, where it is not here.")] = None,
    sign_with: Annotated[
        list[str] | None, typer.Option(help="A further key of the sites role: file:<path>, piv:..., ...")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="The hospital is known, and has moved to this key with `site move`.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Take a hospital in: its own key signs for its boxes from then on, and no other key can."""
    site = SiteID(check_identifier(name, kind="site"))
    with asked_authority(directory, passphrase_file, sign_with) as authority:
        keys = site_keys(authority.keyring, key, public_key)
        (own,) = keys.keys
        typer.echo(f"{site} will sign with the key {fingerprint(own)}.")
        edit = replace_site_keys(site, keys) if follow else add_site(site, keys)
        pending = authority.ceremony.change(SITES, edit)
        tell_outcome(authority, pending, f"{site} belongs to the consortium. It signs with: seh-provision site endorse")


@app.command()
def suspend(
    name: Annotated[str, typer.Argument(help="Short name of the hospital.")],
    directory: DirectoryOption,
    key: KeysOption = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Let a hospital go: none of its boxes counts any more. Adding it again with the same key brings them back."""
    site = SiteID(check_identifier(name, kind="site"))
    with asked_authority(directory, passphrase_file, key) as authority:
        pending = authority.ceremony.change(SITES, suspend_site(site))
        tell_outcome(authority, pending, f"{site} is suspended; boxes know with their next look at the repository.")


@app.command("list")
def list_sites(directory: DirectoryOption) -> None:
    """Hospitals, their keys, and until when what they signed counts."""
    source = LocalSource(RepositoryFiles(AuthorityLayout(directory).repository))
    if not source.sites:
        typer.echo("No hospital belongs to the consortium yet.")
    for site in source.sites:
        role = SiteDesk(site, source, (), SystemClock()).metadata
        until = "has signed nothing yet" if role is None else f"counts until {role.expires:%Y-%m-%d}"
        typer.echo(f"{site}: {until}")
        for key in source.keys(site):
            typer.echo(f"  key {fingerprint(key)}")


@app.command()
@for_hospital
def move(
    hospital: Hospital,
    *,
    new_key: Annotated[str, typer.Option(help="The key that the hospital signs with from now on.")],
) -> None:
    """Move the hospital to another key: the old one says so, and no box takes it from anybody else."""
    successor = open_signer(new_key, interactive(hospital.passphrase_file))
    with hospital.office() as office:
        office.publish(lambda desk: desk.move_to([successor]))
    typer.echo(f"{hospital.site} has named its next key, {fingerprint(successor.public_key)}.")
    typer.echo("Now the consortium follows: seh-provision site add NAME --public-key FILE --follow")
    typer.echo("Then sign with it once: seh-provision site renew")


@app.command()
@for_hospital
def renew(
    hospital: Hospital,
) -> None:
    """Sign the hospital's record again before its time runs out; `site endorse` does so by itself."""
    with hospital.office() as office:
        staged = office.publish(SiteDesk.renew)
        typer.echo(f"{SitePaths(hospital.site).role}, version {staged.version}, is published.")
