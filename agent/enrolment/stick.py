"""The reader of sticks: one short-lived process, started for one stick, that may read it and leave what it found.

    seh-stick DROP-DIRECTORY < /dev/sdb1

It runs apart from the agent, without network, devices or rights (`packaging/systemd/seh-enrol-stick@.service`): a stick
made to break it gains nothing but the right to offer a token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

from agent.core.errors import SecureHealthError
from agent.core.logging import configure_logging
from agent.enrolment.drop import StickReading, leave_reading
from agent.enrolment.medium import token_from_descriptor
from agent.trust.token import parse_token

log = structlog.get_logger()


def read_stick(descriptor: int) -> StickReading:
    """What the stick behind `descriptor` gives."""
    try:
        text = token_from_descriptor(descriptor).strip()
        parse_token(text)
    except SecureHealthError as error:
        return StickReading.of_failure(error)
    return StickReading(token=text)


def main() -> None:
    """Entry point: the stick is standard input."""
    configure_logging()
    (directory,) = sys.argv[1:]
    reading = read_stick(sys.stdin.fileno())
    leave_reading(Path(directory), reading)
    log.info("stick_read", found=bool(reading.token), code=reading.code)
