"""The registrar's tables. A change here needs a migration (`provisioning/registrar/migrations`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """All of them."""


class TokenRow(Table):
    """A token, as `TokenEntry` says."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    site: Mapped[str] = mapped_column(String(63), index=True)
    secret_digest: Mapped[str] = mapped_column(String(64))
    expires_s: Mapped[int] = mapped_column(BigInteger)
    ek_digest: Mapped[str | None] = mapped_column(String(64))
    issuer: Mapped[str] = mapped_column(String(64))


class EnrolmentRow(Table):
    """An enrolment, as `provisioning.registrar.challenge.Enrolment` says; empty bytes stand for nothing."""

    __tablename__ = "enrolments"
    __table_args__ = (Index("enrolments_waiting", "site", "state"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    token: Mapped[str] = mapped_column(ForeignKey("tokens.id"), unique=True)
    site: Mapped[str] = mapped_column(String(63))
    kind: Mapped[str] = mapped_column(String(16))
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    ek_name: Mapped[bytes] = mapped_column(LargeBinary)
    key_name: Mapped[bytes] = mapped_column(LargeBinary)
    link_key: Mapped[bytes] = mapped_column(LargeBinary)
    nonce: Mapped[bytes] = mapped_column(LargeBinary)
    opened_s: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(BigInteger)
    evidence: Mapped[bytes] = mapped_column(LargeBinary)
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    blob: Mapped[bytes] = mapped_column(LargeBinary)
    encrypted_seed: Mapped[bytes] = mapped_column(LargeBinary)
    grade: Mapped[str] = mapped_column(String(16))
    asker_key: Mapped[str] = mapped_column(String(64))
    site_nonce: Mapped[bytes] = mapped_column(LargeBinary)
    site_evidence: Mapped[bytes] = mapped_column(LargeBinary)
    site_proof: Mapped[bytes] = mapped_column(LargeBinary)
    site_blob: Mapped[bytes] = mapped_column(LargeBinary)
    site_encrypted_seed: Mapped[bytes] = mapped_column(LargeBinary)
    site_answer: Mapped[bytes] = mapped_column(LargeBinary)
    refusal: Mapped[str] = mapped_column(Text)
    refusal_next_step: Mapped[str] = mapped_column(Text)
    superlink_node: Mapped[str] = mapped_column(String(32))
    seen_s: Mapped[int] = mapped_column(BigInteger)


class SiteNonceRow(Table):
    """A hospital's request that was taken; it is taken once."""

    __tablename__ = "site_nonces"

    site: Mapped[str] = mapped_column(String(63), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_s: Mapped[int] = mapped_column(BigInteger, index=True)


class EventRow(Table):
    """What happened, for people."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at_s: Mapped[int] = mapped_column(BigInteger)
    site: Mapped[str] = mapped_column(String(63), index=True)
    enrolment: Mapped[str] = mapped_column(String(64))
    what: Mapped[str] = mapped_column(String(32))


class PasskeyRow(Table):
    """A technician's passkey."""

    __tablename__ = "passkeys"

    credential_id: Mapped[str] = mapped_column(String(2048), primary_key=True)
    site: Mapped[str] = mapped_column(String(63), index=True)
    credential: Mapped[bytes] = mapped_column(LargeBinary)
    count: Mapped[int] = mapped_column(BigInteger)


class HeartbeatRow(Table):
    """A box's last heartbeat, as `provisioning.registrar.heartbeats.BoxHeartbeat` says."""

    __tablename__ = "heartbeats"

    key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(String(63))
    node: Mapped[str] = mapped_column(String(63))
    release: Mapped[str] = mapped_column(String(32))
    link: Mapped[str] = mapped_column(String(16))
    session: Mapped[str] = mapped_column(String(16))
    health: Mapped[str] = mapped_column(String(16))
    trouble: Mapped[str] = mapped_column(String(64))
    uptime_s: Mapped[int] = mapped_column(BigInteger)
    issued_s: Mapped[int] = mapped_column(BigInteger)
    session_expires_s: Mapped[int] = mapped_column(BigInteger)
    seen_s: Mapped[int] = mapped_column(BigInteger, index=True)
