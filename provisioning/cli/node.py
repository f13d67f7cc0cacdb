"""`seh-provision node`: a hospital's boxes, as the hospital itself has them on record."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.core.errors import OperatorError
from agent.trust.records import NodeFile
from provisioning.authority.site import SiteDesk
from provisioning.cli.desk import Hospital, for_hospital

app = typer.Typer(name="node", help="A hospital's boxes.", no_args_is_help=True)

NodeArgument = Annotated[str, typer.Argument(help="Name of the box.")]


@app.callback()
def _node() -> None:
    """A hospital's boxes."""


@app.command("list")
@for_hospital
def list_nodes(
    hospital: Hospital,
) -> None:
    """Boxes on record, revoked ones included."""
    with hospital.office() as office:
        reasons = {entry.key_id: entry.reason for entry in office.desk.revocations}
        if not office.desk.nodes:
            typer.echo(f"{hospital.site} has no box on record yet.")
        for node in office.desk.nodes:
            reason = reasons.get(node.root.key_id)
            mark = f"enrolled {node.enrolled:%Y-%m-%d}" if reason is None else f"REVOKED: {reason}"
            typer.echo(f"{node.node}  {node.kind.value}, evidence {node.evidence}  {mark}")


@app.command()
@for_hospital
def revoke(
    hospital: Hospital,
    node: NodeArgument,
    *,
    reason: Annotated[str, typer.Option(help="Why, in plain words; everybody can read it.")],
) -> None:
    """Revoke a box's key, for good: every other box refuses it with its next look at the repository."""
    with hospital.office() as office:
        office.publish(lambda desk: desk.revoke(_find(desk, node).root.key_id, reason))
        typer.echo(f"{node} is revoked.")


@app.command()
@for_hospital
def replace(
    hospital: Hospital,
    node: NodeArgument,
) -> None:
    """Make way for a box with a new key, after a repair say: the old key is revoked, and the box enrols anew."""
    with hospital.office() as office:
        office.publish(lambda desk: desk.revoke(_find(desk, node).root.key_id, "replaced"))
        typer.echo(f"The old key of {node} is revoked.")
        typer.echo(
            f"Issue a token (seh-provision token issue --site {hospital.site}), and on the box: seh-agent re-enrol"
        )


def _find(desk: SiteDesk, name: str) -> NodeFile:
    for node in desk.nodes:
        if node.node == name:
            return node
    raise OperatorError(
        "node.not_on_record",
        f"This hospital has no box {name!r} on record.",
        next_step="See `seh-provision node list`.",
    )
