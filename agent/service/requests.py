"""What may be asked at the agent's control socket: a small model each; the answers are `agent.core.box_view`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from agent.core.box_view import MAX_LEAVES
from agent.core.ids import IdentifierText

MAX_TEXT_BYTES: Final = 48_000
"""Of a record or proof; as JSON in JSON it must fit into a line."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_BYTES)]
Index = Annotated[int, Field(ge=0, lt=1 << 53)]


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StatusRequest(_Request):
    """How the agent does."""

    request: Literal["status"]


class SessionOfferRequest(_Request):
    """The certificate that the box's key shall sign next."""

    request: Literal["session-offer"]


class SessionAcceptRequest(_Request):
    """What it has signed."""

    request: Literal["session-accept"]
    proof: Annotated[str, Field(max_length=1 << 16)] = ""


class AcceptKeysRequest(_Request):
    """Believe a hospital's other keys."""

    request: Literal["accept-keys"]
    site: IdentifierText
    keys: Annotated[str, Field(pattern=r"^([0-9a-f]{64}( [0-9a-f]{64}){0,7})?$")] = ""


class StudiesRequest(_Request):
    """The studies, from a place in their order."""

    request: Literal["studies"]
    start: Index = 0


class StudyRequest(_Request):
    """One study with its permit."""

    request: Literal["study"]
    study: IdentifierText


class StewardsRequest(_Request):
    """The stewards' keys."""

    request: Literal["stewards"]


class ApprovalBeginRequest(_Request):
    """What a steward's key shall sign to approve a study."""

    request: Literal["approval-begin"]
    study: IdentifierText
    steward: IdentifierText


class ApprovalCompleteRequest(_Request):
    """The approval record, JSON."""

    request: Literal["approval-complete"]
    approval: Text


class ApprovalRefuseRequest(_Request):
    """A steward refuses a study."""

    request: Literal["approval-refuse"]
    study: IdentifierText
    steward: IdentifierText


class WithdrawBeginRequest(_Request):
    """What a steward's key shall sign to withdraw an approval."""

    request: Literal["approval-withdraw-begin"]
    sequence: Index
    steward: IdentifierText


class WithdrawCompleteRequest(_Request):
    """The proof of it, JSON."""

    request: Literal["approval-withdraw-complete"]
    sequence: Index
    proof: Text


class StewardOfferRequest(_Request):
    """A new key's record, JSON, for the hospital's role to endorse."""

    request: Literal["steward-offer"]
    record: Text


class BudgetRequest(_Request):
    """The ledger."""

    request: Literal["budget"]


class RoundsRequest(_Request):
    """The newest rounds."""

    request: Literal["rounds"]


class AuditRequest(_Request):
    """Leaves of the log, from `start` back; None starts at the newest."""

    request: Literal["audit"]
    start: Index | None = None
    count: Annotated[int, Field(ge=1, le=MAX_LEAVES)] = MAX_LEAVES
    search: Annotated[str, Field(max_length=200)] = ""


class AuditExportRequest(_Request):
    """A piece of the exported log; size 0 exports it as it is now."""

    request: Literal["audit-export"]
    size: Index = 0
    offset: Index = 0


class DoctorRequest(_Request):
    """The last examination."""

    request: Literal["doctor"]


Request = (
    StatusRequest
    | SessionOfferRequest
    | SessionAcceptRequest
    | AcceptKeysRequest
    | StudiesRequest
    | StudyRequest
    | StewardsRequest
    | ApprovalBeginRequest
    | ApprovalCompleteRequest
    | ApprovalRefuseRequest
    | WithdrawBeginRequest
    | WithdrawCompleteRequest
    | StewardOfferRequest
    | BudgetRequest
    | RoundsRequest
    | AuditRequest
    | AuditExportRequest
    | DoctorRequest
)
Handler = Callable[[Any], BaseModel | None]
"""Answers one kind of request; raises `SecureHealthError` where it cannot."""
Handlers = Mapping[str, Handler]
"""By the request's word."""

_REQUEST: Final[TypeAdapter[Request]] = TypeAdapter(Annotated[Request, Field(discriminator="request")])


def parse_request(line: bytes) -> Request:
    """Parse one line.

    Raises:
        ValidationError: It is no request.
    """
    return _REQUEST.validate_json(line)
