from __future__ import annotations

import io

import click
import pytest

from agent.core.errors import (
    Fault,
    HardwareError,
    NetworkError,
    OperatorError,
    PeerProtocolError,
    SecureHealthError,
    SoftwareError,
)
from agent.core.terminal import EXIT_STATUS, INTERRUPTED, render_error, run_command


def test_a_failure_shows_what_happened_what_to_do_and_where_to_read_on() -> None:
    text = render_error(OperatorError("data.empty", "The file holds no row.", next_step="Export it again."))

    assert text.splitlines() == [
        "Error: The file holds no row.",
        "  Now: Export it again.",
        "       data.empty (to correct here), docs/errors.md#dataempty",
    ]


def test_colour_is_used_only_where_it_is_asked_for() -> None:
    error = OperatorError("data.empty", "The file holds no row.", next_step="Export it again.")

    assert "\x1b[" not in render_error(error)
    assert "\x1b[" in render_error(error, colour=True)


@pytest.mark.parametrize("kind", [OperatorError, PeerProtocolError, HardwareError, NetworkError, SoftwareError])
def test_the_exit_status_says_whose_fault_it_is(kind: type[SecureHealthError]) -> None:
    def command() -> None:
        raise kind("x.y", "It failed.", next_step="Try again.")

    shown = io.StringIO()
    assert run_command(command, stream=shown) == EXIT_STATUS[kind.fault]
    assert "It failed." in shown.getvalue()
    assert set(EXIT_STATUS) == set(Fault)
    assert len(set(EXIT_STATUS.values())) == len(EXIT_STATUS)


def test_a_wrong_command_line_is_shown_by_the_parser_itself() -> None:
    shown = io.StringIO()

    def command() -> None:
        raise click.UsageError("No such option: --x")

    assert run_command(command, stream=shown) == 2
    assert "No such option" in shown.getvalue()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, click.Abort])
def test_interruption_is_no_failure(stop: type[BaseException]) -> None:
    def command() -> None:
        raise stop

    shown = io.StringIO()
    assert run_command(command, stream=shown) == INTERRUPTED
    assert shown.getvalue() == "Stopped.\n"


def test_a_command_may_choose_its_status() -> None:
    assert run_command(lambda: 7) == 7
    assert run_command(lambda: None) == 0
