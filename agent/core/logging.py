"""Structured events: fields where the journal reads, coloured where a person does, else one JSON object a line."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog

from agent.core.errors import SecureHealthError
from agent.core.journal import JournalLogger, journal_sender, render_entry


def configure_logging(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send all events to `stream` (standard error by default); called once, where a process is wired."""
    target = stream or sys.stderr
    send = journal_sender(target, os.environ)
    render = _line_processors(target) if send is None else [render_entry]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _spread_error,
            structlog.processors.format_exc_info,
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(target) if send is None else lambda *_: JournalLogger(send),
        cache_logger_on_first_use=False,
    )


def _line_processors(target: TextIO) -> list[structlog.types.Processor]:
    """A line has to say the time itself."""
    render = structlog.dev.ConsoleRenderer() if target.isatty() else structlog.processors.JSONRenderer()
    return [structlog.processors.TimeStamper(fmt="iso", utc=True), render]


def _spread_error(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Replace `error=<SecureHealthError>` by its code, fault, sentence, next step and details."""
    error = event.get("error")
    if isinstance(error, SecureHealthError):
        event["error"] = error.code
        event["fault"] = error.fault.value
        event["sentence"] = error.sentence
        event["next_step"] = error.next_step
        for name, value in error.details.items():
            event.setdefault(name, value)
    return event
