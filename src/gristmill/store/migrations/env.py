"""Alembic's entry: runs the migrations inside the transaction that `store.migrate` opened."""

from __future__ import annotations

from alembic import context

from gristmill.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
