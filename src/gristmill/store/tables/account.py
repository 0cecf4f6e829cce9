"""Customers and what they hold: keys, plans, subscriptions and files."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Table, UniqueConstraint

from gristmill.store.tables.metadata import document, key, metadata, text, whole

customer = Table(
    "customer",
    metadata,
    key(),
    text("name"),
    text("slug"),
    Column("is_active", Boolean, nullable=False, default=True),
    text("parked_reason", nullable=True),
    text("created_at"),
    UniqueConstraint("slug"),
)

api_key = Table(
    "api_key",
    metadata,
    key(),
    Column("customer_id", ForeignKey("customer.id"), nullable=False, index=True),
    text("name"),
    text("public_id"),
    text("secret_sha256"),
    text("created_at"),
    text("revoked_at", nullable=True),
    UniqueConstraint("public_id"),
)

plan = Table(  # one row per version, never updated
    "plan",
    metadata,
    key(),
    text("name"),
    whole("number"),
    document("document"),  # core.account.Plan
    text("created_at"),
    UniqueConstraint("name", "number"),
)

subscription = Table(
    "subscription",
    metadata,
    key(),
    Column("customer_id", ForeignKey("customer.id"), nullable=False, index=True),
    Column("plan_id", ForeignKey("plan.id"), nullable=False),
    text("started_at"),
    text("ended_at", nullable=True),
)

file = Table(
    "file",
    metadata,
    key(),
    Column("customer_id", ForeignKey("customer.id"), nullable=False, index=True),
    text("filename"),
    text("purpose"),
    whole("bytes"),
    text("blob"),  # digest of the encrypted content
    text("status"),
    text("created_at"),
    text("deleted_at", nullable=True),
)
