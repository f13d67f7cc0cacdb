"""`seh-provision node`: a hospital's boxes, as the hospital itself has them on record."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.core.errors import OperatorError
from agent.trust.records import NodeFile
from provisioning.authority.site import SiteDesk
from provisioning.cli.desk import RegistrarOption, RootOption, SiteKeyOption, SiteOption, StateOption, asked_office
from provisioning.cli.secrets import PassphraseFile

app = typer.Typer(name="node", help="A hospital's boxes.", no_args_is_help=True)

NodeArgument = Annotated[str, typer.Argument(help="Name of the box.")]


@app.callback()
def _node() -> None:
    """A hospital's boxes."""


@app.command("list")
def list_nodes(
    *,
    site: SiteOption,
    key: SiteKeyOption,
    state: StateOption,
    registrar: RegistrarOption,
    root: RootOption,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Boxes on record, revoked ones included."""
    with asked_office(
        site, key, state=state, registrar=registrar, root=root, passphrase_file=passphrase_file
    ) as office:
        reasons = {entry.key_id: entry.reason for entry in office.desk.revocations}
        if not office.desk.nodes:
            typer.echo(f"{site} has no box on record yet.")
        for node in office.desk.nodes:
            reason = reasons.get(node.root.key_id)
            mark = f"enrolled {node.enrolled:%Y-%m-%d}" if reason is None else f"REVOKED: {reason}"
            typer.echo(f"{node.node}  {node.kind.value}, evidence {node.evidence}  {mark}")


@app.command()
def revoke(
    node: NodeArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, in plain words; everybody can read it.")],
    site: SiteOption,
    key: SiteKeyOption,
    state: StateOption,
    registrar: RegistrarOption,
    root: RootOption,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Revoke a box's key, for good: every other box refuses it with its next look at the repository."""
    with asked_office(
        site, key, state=state, registrar=registrar, root=root, passphrase_file=passphrase_file
    ) as office:
        office.publish(lambda desk: desk.revoke(_find(desk, node).root.key_id, reason))
        typer.echo(f"{node} is revoked.")


@app.command()
def replace(
    node: NodeArgument,
    *,
    site: SiteOption,
    key: SiteKeyOption,
    state: StateOption,
    registrar: RegistrarOption,
    root: RootOption,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make way for a box with a new key, after a repair say: the old key is revoked, and the box enrols anew."""
    with asked_office(
        site, key, state=state, registrar=registrar, root=root, passphrase_file=passphrase_file
    ) as office:
        office.publish(lambda desk: desk.revoke(_find(desk, node).root.key_id, "replaced"))
        typer.echo(f"The old key of {node} is revoked.")
        typer.echo(f"Issue a token (seh-provision token issue --site {site}), and on the box: seh-agent re-enrol")


def _find(desk: SiteDesk, name: str) -> NodeFile:
    for node in desk.nodes:
        if node.node == name:
            return node
    raise OperatorError(
        "node.not_on_record",
        f"This hospital has no box {name!r} on record.",
        next_step="See `seh-provision node list`.",
    )
