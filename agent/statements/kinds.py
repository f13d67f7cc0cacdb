"""Every kind of statement that a node's keys sign. A change of fields or meaning is a new version, never an edit."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from agent.core.ids import IdentifierText
from agent.statements.envelope import Statement

Seconds = Annotated[int, Field(ge=0, lt=1 << 53)]
"""Whole seconds since 1970-01-01T00:00:00Z."""
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HexBytes = Annotated[str, Field(pattern=r"^(?:[0-9a-f]{2}){1,512}$")]


class SessionCertificate(Statement):
    """A node's hardware key vouches for a short-lived key that signs in its place.

    Attributes:
        consortium: Digest of the consortium's pinned trust root: a certificate counts in one consortium only.
        site: The hospital.
        node: The box.
        root_key: Key id of the hardware key, repeated inside so that the statement speaks for itself.
        session_key: SubjectPublicKeyInfo (DER) of the short-lived key.
        issued_s: From when it counts.
        expires_s: Until when, exclusive; verifiers also hold the kind's longest lifetime against it.
        timestamp_version: The newest timestamp of the trust repository that the node had seen: a node that lives in
            the past shows it here.
    """

    kind: ClassVar[str] = "session-certificate"

    consortium: Hex32
    site: IdentifierText
    node: IdentifierText
    root_key: Hex32
    session_key: HexBytes
    issued_s: Seconds
    expires_s: Seconds
    timestamp_version: Count


class Possession(Statement):
    """A key shows that it is there and answers, to one asker, once.

    Attributes:
        purpose: Why it was asked, e.g. `key-test`.
        challenge: The asker's random bytes, or a hash that binds them to more.
    """

    kind: ClassVar[str] = "possession"

    purpose: IdentifierText
    challenge: Hex32


class SiteRequest(Statement):
    """A hospital's own key asks the registrar for one thing, once.

    Attributes:
        consortium: Digest of the pinned trust root.
        site: The hospital.
        method: HTTP method.
        path: Path and query of the request.
        body: SHA-256 of the request's body.
        issued_s: When; the registrar takes it for five minutes.
        nonce: Random; the registrar takes it once.
    """

    kind: ClassVar[str] = "site-request"

    consortium: Hex32
    site: IdentifierText
    method: Annotated[str, Field(pattern=r"^[A-Z]{3,7}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,1000}$")]
    body: Hex32
    issued_s: Seconds
    nonce: Hex32


class Heartbeat(Statement):
    """A box tells its consortium how it does, signed by its session key. These are all the words that it says.

    Nothing here depends on data, studies or rounds, and when it is sent does not either: whoever reads every
    heartbeat ever sent learns from them what box and SuperLink already show, and the box's release and troubles.
    What kind of key the box has and until when it vouches stands in its record and in the certificate sent along.

    Attributes:
        consortium: Digest of the pinned trust root.
        site: The hospital.
        node: The box.
        release: The version of its software.
        link: How it stands to the SuperLink.
        session: What its key can prove: `valid`; `due`, the renewal failed or waits; `needs-person`.
        health: `well`; `degraded`, it works on it by itself; `needs-person`.
        trouble: Code of what is wrong with link or key; empty when nothing is.
        uptime_s: How long the agent has been running.
        issued_s: When; of one box, the registrar takes a later one only.
    """

    kind: ClassVar[str] = "heartbeat"

    consortium: Hex32
    site: IdentifierText
    node: IdentifierText
    release: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+_-]{1,32}$")]
    link: Literal["joining", "online", "lost", "stopped"]
    session: Literal["valid", "due", "needs-person"]
    health: Literal["well", "degraded", "needs-person"]
    trouble: Annotated[str, Field(pattern=r"^([a-z0-9_]{1,31}\.[a-z0-9_]{1,31})?$")]
    uptime_s: Seconds
    issued_s: Seconds


class AuditLogKey(Statement):
    """A node vouches, by its session key, for the key that signs its audit log's checkpoints.

    Attributes:
        consortium: Digest of the pinned trust root.
        site: The hospital.
        node: The box.
        log_key: The log's public key, Ed25519 (RFC 8032).
        origin: The log's name, first line of each of its checkpoints.
        issued_s: When; a session certificate of that moment goes with it.
    """

    kind: ClassVar[str] = "audit-log-key"

    consortium: Hex32
    site: IdentifierText
    node: IdentifierText
    log_key: Hex32
    origin: Annotated[str, Field(pattern=r"^[!-*,-~]{1,255}$")]
    issued_s: Seconds
