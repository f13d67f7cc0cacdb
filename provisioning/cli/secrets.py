"""Passphrases and PINs: asked for at the terminal, or from a file; never an argument, which others could see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent.core.errors import OperatorError
from provisioning.authority.opening import read_passphrase
from provisioning.authority.signers import Secrets

PassphraseFile = Annotated[
    Path | None, typer.Option(help="Holds the passphrase of the key files; asked for if left out.")
]


def interactive(passphrase_file: Path | None) -> Secrets:
    """Answers for a command: the passphrase of each folder of keys is asked for once, a PIN each time.

    Args:
        passphrase_file: Holds the passphrase, where nobody is to be asked.
    """
    known: dict[str, str] = {}

    def answer(what: str) -> str:
        if not what.startswith("passphrase"):
            return ask(what)
        folder = what.rpartition("/")[0]
        if folder not in known:
            known[folder] = ask(what) if passphrase_file is None else read_passphrase(passphrase_file)
        return known[folder]

    return answer


def ask(what: str, *, twice: bool = False) -> str:
    """Ask at the terminal, without echo.

    Args:
        what: Is asked for.
        twice: Whether it is new, and could be mistyped.

    Raises:
        OperatorError: Nobody answers (`cli.no_secret`).
    """
    try:
        return str(typer.prompt(what[:1].upper() + what[1:], hide_input=True, err=True, confirmation_prompt=twice))
    except typer.Abort as error:
        raise OperatorError(
            "cli.no_secret", f"The {what} was not given.", next_step="Give it, or name --passphrase-file."
        ) from error
