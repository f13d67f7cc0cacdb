"""Passkeys of technicians."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "passkeys"
down_revision = "first"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "passkeys",
        sa.Column("credential_id", sa.String(2048), primary_key=True),
        sa.Column("site", sa.String(63), nullable=False),
        sa.Column("credential", sa.LargeBinary, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_passkeys_site", "passkeys", ["site"])


def downgrade() -> None:
    """Drop it, with all that it holds."""
    op.drop_table("passkeys")
