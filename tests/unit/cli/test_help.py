"""Whoever asks a command for help is told about everything that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer

from agent.cli.main import app as agent
from provisioning.cli.main import app as provisioning


def commands(program: typer.Typer, name: str) -> Iterator[tuple[str, click.Command]]:
    open_ = [(name, typer.main.get_command(program))]
    while open_:
        path, command = open_.pop()
        yield path, command
        if isinstance(command, click.Group):
            open_ += [(f"{path} {word}", below) for word, below in command.commands.items()]


@pytest.mark.parametrize(("program", "name"), [(agent, "seh-agent"), (provisioning, "seh-provision")])
def test_every_command_argument_and_option_says_what_it_is(program: typer.Typer, name: str) -> None:
    silent = [path for path, command in commands(program, name) if not command.help]
    silent += [
        f"{path} {parameter.name}"
        for path, command in commands(program, name)
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []
