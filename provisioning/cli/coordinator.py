"""`seh-provision coordinator`: prepare a study's coordination, start or resume it, and follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from agent.core.errors import OperatorError
from agent.core.files import store_atomically
from provisioning.authority.signers import load_file_key, private_pem
from provisioning.cli.files import read_file
from provisioning.cli.secrets import PassphraseFile, interactive

app = typer.Typer(name="coordinator", help="The coordinator of a study.", no_args_is_help=True)

DirectoryArgument = Annotated[Path, typer.Argument(help="The coordinator's directory.")]

_TOLD: Final = ("site", "sites", "refusal", "why", "sentence", "next_step")
"""What of the last event a person is told."""


@app.callback()
def _coordinator() -> None:
    """The coordinator of a study."""


@app.command("new-key")
def new_key(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; its public half is printed.")],
) -> None:
    """Make the coordinator's key; its public half belongs into the consortium's roster."""
    key = ec.generate_private_key(ec.SECP256R1())
    store_atomically(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    typer.echo(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), nl=False)


@app.command()
def prepare(
    directory: DirectoryArgument,
    study: Annotated[Path, typer.Option(help="study.json")],
    model: Annotated[Path, typer.Option(help="The model file that it names.")],
    key: Annotated[Path, typer.Option(help="The coordinator's private key.")],
    roster: Annotated[Path | None, typer.Option(help="The consortium's roster, where it has no repository.")] = None,
    root: Annotated[Path | None, typer.Option(help="1.root.json, the consortium's first root metadata.")] = None,
    registrar: Annotated[str | None, typer.Option(help="host:port that serves the repository.")] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Put a study, its model, the key, and whom to believe into a directory of their own."""
    from provisioning.coordinator.directory import CoordinatorDirectory, CoordinatorSettings  # noqa: PLC0415 - the same

    if (roster is None) == (root is None) or (root is None) != (registrar is None):
        raise OperatorError(
            "coordinator.bad_trust",
            "A coordinator believes either a roster, or the repository that a registrar serves under a root.",
            next_step="Name --root and --registrar, or else --roster.",
        )
    assignment = CoordinatorDirectory(directory).prepare(
        read_file(study),
        read_file(model),
        CoordinatorSettings(registrar=registrar),
        roster=None if roster is None else read_file(roster),
        root=None if root is None else read_file(root),
        key=private_pem(load_file_key(key, interactive(passphrase_file)), None),
    )
    typer.echo(f"{assignment.study.id} is prepared in {directory}.")


@app.command()
def run(
    directory: DirectoryArgument,
    address: Annotated[str, typer.Option(help="host:port of the SuperLink")],
    root_certificate: Annotated[Path, typer.Option(help="The consortium's root certificate, PEM.")],
) -> None:
    """Start the study at the SuperLink, or resume it where it stands; prints the run's id."""
    from provisioning.authority.superlink import SuperLinkConnection  # noqa: PLC0415 - loads Flower
    from provisioning.coordinator.fab import launch_run  # noqa: PLC0415 - the same

    connection = SuperLinkConnection(directory / "flower", address, root_certificate.resolve())
    connection.store()
    typer.echo(launch_run(connection, directory))


@app.command()
def progress(directory: DirectoryArgument) -> None:
    """Say how far the study is."""
    from provisioning.coordinator.directory import CoordinatorDirectory  # noqa: PLC0415 - only this command needs it
    from provisioning.coordinator.progress import read_events  # noqa: PLC0415 - the same

    events, _ = read_events(CoordinatorDirectory(directory).progress)
    for event in events:
        if event["event"] == "round":
            typer.echo(
                f"round {event['round']}: loss {event['loss']}, AUC {event['auc']}, {len(_sites(event))} hospitals"
            )
    if not events:
        typer.echo("Nothing has happened here yet; `seh-provision coordinator run` starts it.")
        return
    last = events[-1]
    typer.echo(f"last event: {last['event']}")
    for name in _TOLD:
        if name in last:
            typer.echo(f"  {name.replace('_', ' ')}: {_plain(last[name])}")


def _plain(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _sites(event: dict[str, object]) -> list[object]:
    cohort = event.get("cohort")
    return list(cohort) if isinstance(cohort, list) else []
