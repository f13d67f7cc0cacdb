"""What boxes last told of themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "heartbeats"
down_revision = "passkeys"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "heartbeats",
        sa.Column("key_id", sa.String(64), primary_key=True),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("release", sa.String(32), nullable=False),
        sa.Column("link", sa.String(16), nullable=False),
        sa.Column("session", sa.String(16), nullable=False),
        sa.Column("health", sa.String(16), nullable=False),
        sa.Column("trouble", sa.String(64), nullable=False),
        sa.Column("uptime_s", sa.BigInteger, nullable=False),
        sa.Column("issued_s", sa.BigInteger, nullable=False),
        sa.Column("session_expires_s", sa.BigInteger, nullable=False),
        sa.Column("seen_s", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_heartbeats_seen_s", "heartbeats", ["seen_s"])


def downgrade() -> None:
    """Drop it, with all that it holds."""
    op.drop_table("heartbeats")
