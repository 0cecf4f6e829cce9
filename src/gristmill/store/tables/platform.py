"""The platform's own rows: the operator's credential and an append-only audit log."""

from __future__ import annotations

from sqlalchemy import Table

from gristmill.store.tables.metadata import document, key, metadata, text

operator = Table(
    "operator",
    metadata,
    key(),
    text("role"),
    text("secret_sha256"),
    text("created_at"),
)

audit = Table(
    "audit",
    metadata,
    key(),
    text("actor"),
    text("action"),
    document("subject"),
    text("at"),
)
