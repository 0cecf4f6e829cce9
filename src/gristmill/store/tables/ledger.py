"""Money and usage: written by `store/ledger` alone, only appended to but for `balance` and `position`.

`balance` and `position` are sums of the appended rows, kept in the same transaction; a test recomputes them.
"""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
)

from gristmill.store.tables.metadata import document, key, metadata, text, whole

posting_group = Table(
    "posting_group",
    metadata,
    key(),
    text("source"),
    text("purpose"),
    text("at"),
    UniqueConstraint("source", "purpose"),
)

entry = Table(
    "entry",
    metadata,
    Column("group_id", ForeignKey("posting_group.id"), primary_key=True),
    Column("position", String(8), primary_key=True),
    text("account", index=True),
    whole("amount"),
    text("currency"),
)

balance = Table(
    "balance",
    metadata,
    Column("account", String(160), primary_key=True),
    Column("currency", String(3), primary_key=True),
    whole("amount"),
    CheckConstraint("account NOT LIKE 'wallet:%' OR amount <= 0", name="wallet_not_overdrawn"),
)

usage_event = Table(
    "usage_event",
    metadata,
    Column("request_id", String(64), primary_key=True),
    text("customer_id"),
    text("key_id"),
    text("subscription_id"),
    text("plan_id"),
    text("model"),
    text("release_id", index=True),
    text("digest"),
    text("endpoint"),
    document("meters"),
    whole("emitted_tokens"),
    text("status"),
    text("started_at"),
    text("ended_at"),
    Column("busy_s", Float, nullable=False),
    Column("latency_ms", Float, nullable=False),
    text("period"),
    whole("amount"),  # nano-units charged
    whole("cost"),  # nano-units of serving cost
    text("currency"),
    Index(None, "customer_id", "period"),
)

rated_line = Table(
    "rated_line",
    metadata,
    Column("request_id", ForeignKey("usage_event.request_id"), primary_key=True),
    Column("meter", String(64), primary_key=True),
    text("customer_id"),
    text("subscription_id"),
    text("plan_id"),
    text("price"),  # key of the price inside the plan version, "<index>"
    text("model"),
    text("release_id"),
    text("period"),
    whole("quantity"),
    whole("position_before"),
    whole("amount"),
    text("currency"),
    text("invoice_id", nullable=True),  # set once, when the invoice that carries it is issued
    Index(  # what is not invoiced yet: small, however long the history
        "ix_rated_line_open",
        "customer_id",
        "period",
        sqlite_where=sqlalchemy.text("invoice_id IS NULL"),
        postgresql_where=sqlalchemy.text("invoice_id IS NULL"),
    ),
)

position = Table(
    "position",
    metadata,
    Column("subscription_id", String(64), primary_key=True),
    Column("price", String(64), primary_key=True),  # "<plan id>/<index>"
    Column("period", String(16), primary_key=True),
    whole("quantity"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("customer_id", String(64), primary_key=True),
    Column("route", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    text("request_id"),
    text("body_sha256"),
    whole("status"),
    Column("content", LargeBinary, nullable=True),  # null after erasure
    whole("is_stream"),
    text("created_at"),
)

lease = Table(
    "lease",
    metadata,
    key(),
    text("gateway"),
    text("customer_id"),
    text("currency"),
    text("opened_at"),
    UniqueConstraint("gateway", "customer_id", "currency"),
)

stream_journal = Table(
    "stream_journal",
    metadata,
    Column("request_id", String(64), primary_key=True),
    text("gateway"),
    document("event"),  # the UsageEvent as it would be charged now
)

invoice = Table(
    "invoice",
    metadata,
    key(),
    whole("number"),
    text("customer_id", index=True),
    text("period"),
    text("currency"),
    document("document"),  # core.invoice.Invoice, immutable
    whole("total"),
    text("issued_at"),
    UniqueConstraint("number"),
    UniqueConstraint("customer_id", "period", "currency"),
)
