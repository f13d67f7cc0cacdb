"""Commands that pages and failures name are commands that there are, with the options that they have."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import typer

from agent.cli.main import app as agent
from provisioning.cli.main import app
from tests.handbook.errors import ROOT

COMMANDS = re.findall(r"^ {4}seh-provision (.+)$", (ROOT / "docs" / "researcher.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_shown_command_is_understood(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    command: click.Command = typer.main.get_command(app)
    context = click.Context(command)
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
        if isinstance(command, click.Group) and command.invoke_without_command and words[0] not in command.commands:
            break
        context = click.Context(command, parent=context)
    with command.make_context(command.name, words, parent=context):
        pass


def test_every_command_for_studies_is_shown() -> None:
    shown = {line.split()[1] for line in COMMANDS if line.startswith("study ")}
    studies = typer.main.get_command(app).commands["study"]  # type: ignore[attr-defined]
    assert shown == set(studies.commands)


def test_every_command_that_code_and_pages_name_is_one() -> None:
    files = [*(ROOT / "agent").rglob("*.py"), *(ROOT / "provisioning").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    named = {
        (program, *words.split())
        for file in files
        for program, words in re.findall(r"`seh-(agent|provision)((?: [a-z-]+)+)", file.read_text(encoding="utf-8"))
    }
    assert len(named) > len(COMMANDS)
    for program, *words in sorted(named):
        command: click.Command = typer.main.get_command(agent if program == "agent" else app)
        while isinstance(command, click.Group) and words:
            assert words[0] in command.commands, (program, words)
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, (program, words)
