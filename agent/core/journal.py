"""Events as entries of the system's journal: each of their facts is a field that can be asked for by name.

journalctl SEH_EVENT=study_paused
journalctl SEH_FAULT=network SEH_ERROR=fleet.unreachable
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Final, TextIO

import structlog

IDENTIFIER: Final = "secur-e-health"
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)
_IN_WORDS: Final = ("sentence", "next_step", "level", "exception")
_MAX_NAME: Final = 60  # journald takes 64, our own beginning among them

SendFields = Callable[..., object]
"""Sends one entry, a `NAME=value` each."""


class JournalLogger:
    """What structlog hands each event to, as the fields that `render_entry` made.

    Args:
        send: Takes one entry.
    """

    def __init__(self, send: SendFields) -> None:
        self._send = send

    def msg(self, *fields: str) -> None:
        """Send an entry; where the journal takes none, its text goes to standard error."""
        try:
            self._send(*fields)
        except OSError:
            sys.stderr.write(f"{fields[0].partition('=')[2]}\n")

    log = debug = info = warn = warning = error = critical = fatal = failure = err = exception = msg


def journal_sender(stream: TextIO, environment: Mapping[str, str]) -> SendFields | None:
    """How entries reach the journal; None where `stream` does not lead there, or the library is missing.

    Args:
        stream: Standard error.
        environment: `JOURNAL_STREAM` is read (systemd.exec(5)).
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None  # no file at all
    if environment.get("JOURNAL_STREAM") != f"{status.st_dev}:{status.st_ino}":
        return None
    try:
        from systemd.journal import sendv  # noqa: PLC0415 - an optional library
    except ImportError:
        return None
    return sendv  # type: ignore[no-any-return]  # a C function


def render_entry(_: object, __: str, event: structlog.types.EventDict) -> tuple[tuple[str, ...], dict[str, object]]:
    """Make an event the fields of an entry: its text first, then one for each of its facts."""
    facts = {name: str(value) for name, value in event.items()}
    fields = [f"MESSAGE={_text(facts)}", f"PRIORITY={_PRIORITY.get(facts.get('level', ''), 6)}"]
    fields.append(f"SYSLOG_IDENTIFIER={IDENTIFIER}")
    fields += [f"SEH_{_field(name)}={value}" for name, value in facts.items() if name != "level"]
    return tuple(fields), {}


def _text(facts: Mapping[str, str]) -> str:
    """The event in one line, for whoever reads the journal without asking for fields."""
    if "sentence" in facts:
        told = f"{facts['sentence']} {facts.get('next_step', '')}".rstrip()
        return f"{facts['event']}: {told} [{facts.get('error', '')}]"
    rest = [f"{name}={value}" for name, value in facts.items() if name != "event" and name not in _IN_WORDS]
    last = facts.get("exception", "").rpartition("\n")[2]
    return " ".join([facts["event"], *rest, last]).rstrip()


def _field(name: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", name.upper())[:_MAX_NAME]
