"""`seh-agent doctor`: what is wrong with this box, whose fault it is, and what to do."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from agent.cli.run import DEFAULT_CONFIG, ConfigOption
from agent.core.config import load_config
from agent.core.errors import Fault
from agent.core.terminal import EXIT_STATUS, WHOSE

if TYPE_CHECKING:
    from agent.service.doctor.finding import Finding

_COLOUR: Final = {"ok": "green", "warn": "yellow", "fail": "red", "not applicable": "bright_black"}
_SHOWN: Final = {"not applicable": "-"}
_WIDTH: Final = 100
_INDENT: Final = " " * 18


def doctor(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for programs, instead of a list.")] = False,
) -> int:
    """Check all that the agent needs, while it runs or not; the exit status says whose fault the first failure is."""
    from agent.core.clock import SystemClock  # noqa: PLC0415 - other commands need not load the checks
    from agent.service.doctor.box import open_box  # noqa: PLC0415 - the same
    from agent.service.doctor.examination import CHECKS, examine  # noqa: PLC0415 - the same

    findings: dict[str, Finding] = {}
    with open_box(load_config(config), SystemClock()) as box:
        for name, check in CHECKS.items():
            findings[name] = examine(box, check)
            if not as_json:
                _show(name, findings[name])
    if as_json:
        typer.echo(json.dumps({name: asdict(finding) for name, finding in findings.items()}, indent=2))
    failed = [finding for finding in findings.values() if finding.outcome == "fail"]
    return EXIT_STATUS[failed[0].fault or Fault.SOFTWARE] if failed else 0


def _show(name: str, finding: Finding) -> None:
    outcome = finding.outcome.value
    typer.secho(f"{_SHOWN.get(outcome, outcome):5}", fg=_COLOUR[outcome], bold=outcome == "fail", nl=False)
    typer.echo(f" {name:11} {_folded(finding.sentence)}")
    if finding.code:
        whose = "" if finding.fault is None else f" ({WHOSE[finding.fault]})"
        typer.echo(f"{_INDENT}Now: {_folded(finding.next_step)}\n{_INDENT}{finding.code}{whose}")


def _folded(text: str) -> str:
    return textwrap.fill(text, _WIDTH - len(_INDENT), subsequent_indent=_INDENT)
