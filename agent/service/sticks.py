"""What a stick means that is put into an enrolled box; `agent.service.enrolling` is for boxes that are not."""

from __future__ import annotations

from typing import Final

import structlog

from agent.core.config import AgentConfig
from agent.core.errors import SecureHealthError
from agent.enrolment.drop import take_reading
from agent.enrolment.record import EnrolmentFolder, EnrolmentRecord, check_may_enrol
from agent.trust.token import parse_token

ENROL_HERE: Final = (
    "Run `seh-agent enrol` at the box, with the consortium's stick or code: this box's key needs a person."
)

log = structlog.get_logger()


def judge_stick(config: AgentConfig, record: EnrolmentRecord) -> str:
    """What a stick means that was put into an enrolled box: a sentence, or nothing where there is no stick."""
    try:
        reading = take_reading(config.enrolment.drop)
        if reading is None:
            return ""
        if reading.code:
            return f"{reading.sentence} {reading.next_step}"
        check_may_enrol(record, parse_token(reading.token).token, record.key_id, replaces=False)
        EnrolmentFolder.of(config.node.state_directory).check_not_revoked(record)
    except SecureHealthError as error:
        log.warning("token_ignored", error=error)
        return f"{error.sentence} {error.next_step}"
    return f"This box is enrolled already: {record.site} in {record.name}. The stick was not needed."
