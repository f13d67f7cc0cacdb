"""`seh-provision superlink`: the consortium's SuperLink, as its founding set it up."""

from __future__ import annotations

import os

import typer

from provisioning.authority.layout import AuthorityLayout
from provisioning.authority.superlink import SuperLinkSettings, flower_environment
from provisioning.authority.tls import ServerFiles
from provisioning.cli.ceremony import DirectoryOption
from provisioning.registrar.settings import load_settings

app = typer.Typer(name="superlink", help="The consortium's SuperLink.", no_args_is_help=True)


@app.callback()
def _superlink() -> None:
    """The consortium's SuperLink."""


@app.command()
def run(directory: DirectoryOption) -> None:
    """Run it in the place of this process, until stopped."""
    layout = AuthorityLayout(directory.absolute())
    port = load_settings(layout.registrar_settings).superlink.address.rpartition(":")[2]
    tls = layout.tls / "superlink"
    files = ServerFiles(tls / "server.pem", tls / "server.key", tls / "root.pem")
    settings = SuperLinkSettings("0.0.0.0", int(port), files, layout.superlink / "superlink.db")  # noqa: S104 - a server
    command = settings.command()
    os.execve(command[0], command, flower_environment(layout.superlink))  # noqa: S606 - from an argument list
