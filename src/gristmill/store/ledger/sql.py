"""The ledger's SQL: portable text (SQLite and PostgreSQL), and helpers that write many rows by one statement.

One statement with many rows matters: the driver releases the interpreter's lock once a step, so fewer steps
let the gateway's event loop and the writer thread share a core. Rows are cut into runs of 64, 16, 4 and 1, so
the driver's cache holds every statement there is.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

Row = tuple[Any, ...]
_RUNS = (64, 16, 4, 1)


class Insert(msgspec.Struct, frozen=True):
    """An INSERT of any number of rows: table, its columns, and what follows VALUES (ON CONFLICT …)."""

    table: str
    columns: tuple[str, ...]
    tail: str = ""


GROUP = Insert("posting_group", ("id", "source", "purpose", "at"))
GROUP_ONCE = Insert("posting_group", GROUP.columns, "ON CONFLICT (source, purpose) DO NOTHING")
ENTRY = Insert("entry", ("group_id", "position", "account", "amount", "currency"))
BALANCE = Insert(
    "balance",
    ("account", "currency", "amount"),
    "ON CONFLICT (account, currency) DO UPDATE SET amount = balance.amount + excluded.amount",
)
USAGE_EVENT = Insert(
    "usage_event",
    (
        "request_id", "customer_id", "key_id", "subscription_id", "plan_id", "model", "release_id", "digest",
        "endpoint", "meters", "emitted_tokens", "status", "started_at", "ended_at", "busy_s", "latency_ms",
        "period", "amount", "cost", "currency",
    ),
)  # fmt: skip
RATED_LINE = Insert(
    "rated_line",
    (
        "request_id", "meter", "customer_id", "subscription_id", "plan_id", "price", "model", "release_id",
        "period", "quantity", "position_before", "amount", "currency",
    ),
)  # fmt: skip
POSITION = Insert(
    "position",
    ("subscription_id", "price", "period", "quantity"),
    "ON CONFLICT (subscription_id, price, period) "
    "DO UPDATE SET quantity = position.quantity + excluded.quantity",
)
IDEMPOTENCY = Insert(
    "idempotency",
    (
        "customer_id", "route", "key", "request_id", "body_sha256", "status", "content", "is_stream",
        "created_at",
    ),
)  # fmt: skip
JOURNAL = Insert(
    "stream_journal",
    ("request_id", "gateway", "event"),
    "ON CONFLICT (request_id) DO UPDATE SET event = excluded.event",
)
LEASE = Insert(
    "lease",
    ("id", "gateway", "customer_id", "currency", "opened_at"),
    "ON CONFLICT (gateway, customer_id, currency) DO NOTHING",
)
INVOICE = Insert(
    "invoice", ("id", "number", "customer_id", "period", "currency", "document", "total", "issued_at")
)

GET_BALANCE = "SELECT amount FROM balance WHERE account = ? AND currency = ?"
MOVE_BALANCE = "UPDATE balance SET amount = amount + ? WHERE account = ? AND currency = ?"
GET_PLAN = "SELECT document FROM plan WHERE id = ?"
GET_POSITIONS = "SELECT price, quantity FROM position WHERE subscription_id = ? AND period = ?"
GET_SETTLED = "SELECT request_id, amount, currency FROM usage_event WHERE request_id IN ({})"
GET_SETTLED_LINES = "SELECT request_id, meter, amount FROM rated_line WHERE request_id IN ({})"
GET_ANSWER = (
    "SELECT request_id, body_sha256, status, content, is_stream FROM idempotency "
    "WHERE customer_id = ? AND route = ? AND key = ?"
)
GET_JOURNAL = "SELECT event FROM stream_journal WHERE gateway = ? ORDER BY request_id"
DROP_JOURNAL = "DELETE FROM stream_journal WHERE request_id IN ({})"
GET_LEASES = "SELECT customer_id, currency FROM lease WHERE gateway = ? ORDER BY id"
PARK = "UPDATE customer SET parked_reason = ? WHERE id = ? AND parked_reason IS NULL"
GET_INVOICE = "SELECT id, number FROM invoice WHERE customer_id = ? AND period = ? AND currency = ?"
LAST_NUMBER = "SELECT COALESCE(MAX(number), 0) FROM invoice"  # gapless: the writer's transaction is alone
_OPEN_LINES = (
    "WHERE customer_id = ? AND invoice_id IS NULL AND plan_id = ? AND price = ? AND meter = ? "
    "AND model = ? AND release_id = ? AND period = ? AND currency = ?"
)
SUM_OPEN_LINES = " ".join(
    ("SELECT COUNT(*), COALESCE(SUM(quantity), 0), COALESCE(SUM(amount), 0) FROM rated_line", _OPEN_LINES)
)
MARK_LINES = " ".join(("UPDATE rated_line SET invoice_id = ?", _OPEN_LINES))


def write(cursor: sqlite3.Cursor, insert: Insert, rows: Sequence[Row]) -> None:
    """Insert all rows, many a statement; with an upsert the rows must differ in their key."""
    for run in _runs(rows):
        cursor.execute(_statement(insert, len(run)), [value for row in run for value in row])


def select_in(cursor: sqlite3.Cursor, statement: str, keys: Sequence[str]) -> list[Row]:
    """Run a statement that has `IN ({})` for all keys; returns the rows it gives, if any."""
    rows: list[Row] = []
    for run in _runs(keys):
        rows += cursor.execute(statement.format(_marks(len(run))), run).fetchall()
    return rows


def one(cursor: sqlite3.Cursor, statement: str, *values: Any) -> Row | None:
    """The first row of a query, or None."""
    row: Row | None = cursor.execute(statement, values).fetchone()
    return row


def _runs(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    for size in _RUNS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


@functools.cache
def _marks(n: int) -> str:
    return ", ".join("?" * n)


@functools.lru_cache(maxsize=256)
def _statement(insert: Insert, n_rows: int) -> str:
    row = f"({_marks(len(insert.columns))})"
    columns = ", ".join(insert.columns)
    return f"INSERT INTO {insert.table} ({columns}) VALUES {', '.join([row] * n_rows)} {insert.tail}"  # noqa: S608 names are constants above
