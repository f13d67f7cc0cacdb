"""Alembic runs this; the connection is the store's own, so that all steps are one transaction."""

from __future__ import annotations

from alembic import context

from provisioning.registrar.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
with context.begin_transaction():
    context.run_migrations()
