"""Structured events, one JSON object a line where a journal reads, coloured where a person does."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from agent.core.errors import SecureHealthError


def configure_logging(*, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send all events to `stream` (standard error by default); called once, where a process is wired."""
    target = stream or sys.stderr
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if target.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _spread_error,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )


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
