"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "first"
down_revision = None

_BYTES = (
    "public_key",
    "ek_name",
    "key_name",
    "link_key",
    "nonce",
    "evidence",
    "secret",
    "blob",
    "encrypted_seed",
    "site_nonce",
    "site_evidence",
    "site_proof",
    "site_blob",
    "site_encrypted_seed",
    "site_answer",
)


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("secret_digest", sa.String(64), nullable=False),
        sa.Column("expires_s", sa.BigInteger, nullable=False),
        sa.Column("ek_digest", sa.String(64)),
        sa.Column("issuer", sa.String(64), nullable=False),
    )
    op.create_index("ix_tokens_site", "tokens", ["site"])
    op.create_table(
        "enrolments",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("token", sa.String(16), sa.ForeignKey("tokens.id"), nullable=False, unique=True),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("opened_s", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("grade", sa.String(16), nullable=False),
        sa.Column("asker_key", sa.String(64), nullable=False),
        sa.Column("refusal", sa.Text, nullable=False),
        sa.Column("refusal_next_step", sa.Text, nullable=False),
        sa.Column("superlink_node", sa.String(32), nullable=False),
        sa.Column("seen_s", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.LargeBinary, nullable=False) for name in _BYTES),
    )
    op.create_index("enrolments_waiting", "enrolments", ["site", "state"])
    op.create_table(
        "site_nonces",
        sa.Column("site", sa.String(63), primary_key=True),
        sa.Column("nonce", sa.String(64), primary_key=True),
        sa.Column("expires_s", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_site_nonces_expires_s", "site_nonces", ["expires_s"])
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at_s", sa.BigInteger, nullable=False),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("enrolment", sa.String(64), nullable=False),
        sa.Column("what", sa.String(32), nullable=False),
    )
    op.create_index("ix_events_site", "events", ["site"])


def downgrade() -> None:
    """Drop them, with all that they hold."""
    for name in ("events", "site_nonces", "enrolments", "tokens"):
        op.drop_table(name)
