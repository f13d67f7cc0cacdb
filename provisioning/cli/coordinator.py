"""`seh-provision coordinator`: prepare a study's coordination; `seh-provision study` starts and follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
