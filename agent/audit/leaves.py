"""What the audit log's leaves say: each kind in its own few fields, one canonical form in bytes.

No leaf holds a value of a record, and none holds a secret. The log stays on its box until somebody exports it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agent.core.errors import PeerProtocolError
from agent.core.ids import IdentifierText
from agent.core.validation import explain_invalid
from agent.statements.kinds import Count, Hex32, Seconds

MAX_LEAF_BYTES: Final = 1 << 16

Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z.+_-]{1,32}$")]
Budget = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Leaf(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    at_s: Seconds


class LogOpened(_Leaf):
    """The first leaf of every log.

    Args:
        at_s: When, in seconds since 1970, as of every leaf.
        consortium: Digest of the pinned trust root.
        site: The hospital.
        node: The box.
        key: The log's public key, Ed25519.
        previous: The last signed checkpoint of this box's log before, whole; empty where there was none.
    """

    kind: Literal["log-opened"] = "log-opened"
    consortium: Hex32
    site: IdentifierText
    node: IdentifierText
    key: Hex32
    previous: Annotated[str, Field(max_length=1 << 14)] = ""


class AgentStarted(_Leaf):
    """The agent began to run."""

    kind: Literal["agent-started"] = "agent-started"
    version: Version


class ReleaseInstalled(_Leaf):
    """A release of the software was committed."""

    kind: Literal["release-installed"] = "release-installed"
    version: Version


class StewardEnrolled(_Leaf):
    """A steward's key is on the hospital's record.

    Args:
        at_s: When.
        steward: Short name of the key.
        key_id: SHA-256 of its SubjectPublicKeyInfo.
    """

    kind: Literal["steward-enrolled"] = "steward-enrolled"
    steward: IdentifierText
    key_id: Hex32


class RuleFinding(BaseModel):
    """What one rule of a permit said."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rule: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
    passed: bool
    sentence: Annotated[str, Field(max_length=1000)]


class PermitDecided(_Leaf):
    """Whether a study may run here on a data set, rule by rule.

    Args:
        dataset_digest: What the data set was; all zeros where no approval stood, so that nobody looked at it.
    """

    kind: Literal["permit-decided"] = "permit-decided"
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    dataset_digest: Hex32
    permitted: bool
    rules: Annotated[tuple[RuleFinding, ...], Field(max_length=64)]


class ApprovalGiven(_Leaf):
    """A steward approved a study.

    Args:
        at_s: When.
        sequence: Number of the approval, never used again.
        study: Its name.
        study_digest: SHA-256 of its file.
        dataset: The data set.
        dataset_digest: What it was when it was approved.
        epsilon: The privacy loss that was approved; None where nothing bounds it.
        not_after_s: Until when it counts.
        steward: Who.
        approval: SHA-256 of the record, with the steward's signature, that lies beside the log.
    """

    kind: Literal["approval-given"] = "approval-given"
    sequence: Count
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    dataset_digest: Hex32
    epsilon: Budget | None
    not_after_s: Seconds
    steward: IdentifierText
    approval: Hex32


class ApprovalRefused(_Leaf):
    """A steward refused a study."""

    kind: Literal["approval-refused"] = "approval-refused"
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    steward: IdentifierText


class ApprovalWithdrawn(_Leaf):
    """A steward withdrew an approval."""

    kind: Literal["approval-withdrawn"] = "approval-withdrawn"
    sequence: Count
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    steward: IdentifierText


class BudgetReserved(_Leaf):
    """Privacy budget was set aside before anything of a study left.

    Args:
        at_s: When.
        reservation: Its number.
        study: The study's name.
        study_digest: SHA-256 of its file.
        dataset: The data set.
        unit: Whose privacy: one record's, or the hospital's.
        epsilon: None where nothing bounds the loss.
        delta: The other half of the loss.
        releases: How many releases it is for.
        counter: The TPM's counter of reservations after this one; 0 on a box that has none.
        curve: Renyi divergence of one release, at each order of `agent.secagg.accounting.ORDERS`; empty where nothing
            bounds it.
        slack: What one release takes out of delta besides.
    """

    kind: Literal["budget-reserved"] = "budget-reserved"
    reservation: Count
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    unit: Literal["record", "hospital"]
    epsilon: Budget | None
    delta: Annotated[float, Field(ge=0, le=1)]
    releases: Count
    counter: Count
    curve: Annotated[tuple[Budget, ...], Field(max_length=256)] = ()
    slack: Annotated[float, Field(ge=0, le=1)] = 0.0


class BudgetSettled(_Leaf):
    """What a reservation came to."""

    kind: Literal["budget-settled"] = "budget-settled"
    reservation: Count
    epsilon: Budget | None
    releases: Count


class DataOpened(_Leaf):
    """A data set was opened for a study."""

    kind: Literal["data-opened"] = "data-opened"
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    dataset_digest: Hex32


class UpdateSent(_Leaf):
    """The receipt of a round: what left.

    Args:
        at_s: When.
        study: The study's name.
        study_digest: SHA-256 of its file.
        dataset: The data set.
        round: Round of the study.
        attempt: Attempt of the round.
        context: SHA-256 that binds the exchange (`agent.secagg.terms`).
        cohort: The hospitals whose masks it carries.
        bytes: How many bytes of masked update.
        sha256: Digest of them.
        permit: Index of the `permit-decided` leaf.
        approval: Sequence of the approval.
    """

    kind: Literal["update-sent"] = "update-sent"
    study: IdentifierText
    study_digest: Hex32
    dataset: IdentifierText
    round: Count
    attempt: Count
    context: Hex32
    cohort: Annotated[tuple[IdentifierText, ...], Field(max_length=1024)]
    bytes: Count
    sha256: Hex32
    permit: Count
    approval: Count


class MessageRefused(_Leaf):
    """A message of a study was refused, by which rule."""

    kind: Literal["message-refused"] = "message-refused"
    study: IdentifierText
    rule: Annotated[str, Field(pattern=r"^[a-z0-9_.]{1,64}$")]


Leaf = Annotated[
    LogOpened
    | AgentStarted
    | ReleaseInstalled
    | StewardEnrolled
    | PermitDecided
    | ApprovalGiven
    | ApprovalRefused
    | ApprovalWithdrawn
    | BudgetReserved
    | BudgetSettled
    | DataOpened
    | UpdateSent
    | MessageRefused,
    Field(discriminator="kind"),
]
"""One leaf of any kind."""

_LEAF: TypeAdapter[Leaf] = TypeAdapter(Leaf)


def encode_leaf(leaf: Leaf) -> bytes:
    """The leaf's bytes, which the tree hashes: its canonical JSON (RFC 8785)."""
    return rfc8785.dumps(leaf.model_dump(mode="json"))


def parse_leaf(data: bytes) -> Leaf:
    """Parse a leaf's bytes.

    Args:
        data: At most 64 KiB.

    Raises:
        PeerProtocolError: They are no leaf, or not its canonical form (`audit.bad_leaf`).
    """
    if len(data) > MAX_LEAF_BYTES:
        raise _bad_leaf(f"it is larger than {MAX_LEAF_BYTES} bytes")
    try:
        leaf = _LEAF.validate_json(data)
        canonical = encode_leaf(leaf)
    except ValidationError as error:
        raise _bad_leaf(explain_invalid(error, whole="leaf")) from error
    except (ValueError, RecursionError) as error:
        raise _bad_leaf("it is no JSON") from error
    if canonical != data:
        raise _bad_leaf("it is not in canonical form")
    return leaf


def read_leaf(data: bytes) -> Leaf:
    """Read what `encode_leaf` made and nobody altered since.

    Raises:
        PeerProtocolError: It is no leaf (`audit.bad_leaf`).
    """
    try:
        return _LEAF.validate_json(data)
    except ValidationError as error:
        raise _bad_leaf(explain_invalid(error, whole="leaf")) from error


def _bad_leaf(what: str) -> PeerProtocolError:
    return PeerProtocolError(
        "audit.bad_leaf",
        f"An entry of an audit log cannot be read: {what}.",
        next_step="See that this program is no older than the one that wrote the log.",
    )
