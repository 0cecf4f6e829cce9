"""Reading the ledger beside its writer: a connection of its own that only reads, safe to share by threads."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec

from gristmill.core.usage import UsageEvent
from gristmill.store.ledger import sql


class StoredAnswer(msgspec.Struct, frozen=True):
    """The idempotency record of a key: `content` is None once erased (then the answer is 410)."""

    request_id: str
    body_sha256: str
    status: int
    content: bytes | None
    is_stream: bool


class Reader:
    """Small look-ups that see every commit."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA query_only=ON")

    def find_answer(self, customer_id: str, route: str, key: str) -> StoredAnswer | None:
        """The stored answer of an Idempotency-Key."""
        rows = self._all(sql.GET_ANSWER, customer_id, route, key)
        return _answer(rows[0]) if rows else None

    def positions(self, subscription_id: str, period: str) -> dict[str, int]:
        """Price key → quantity settled in the period."""
        return dict(self._all(sql.GET_POSITIONS, subscription_id, period))

    def balance(self, account: str, currency: str) -> int:
        """Balance in nano-units."""
        rows = self._all(sql.GET_BALANCE, account, currency)
        return int(rows[0][0]) if rows else 0

    def journal(self, gateway: str) -> list[UsageEvent]:
        """What this gateway had sent of streams that never settled."""
        rows = self._all(sql.GET_JOURNAL, gateway)
        return [msgspec.json.decode(row[0], type=UsageEvent) for row in rows]

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _all(self, statement: str, *values: str) -> list[sql.Row]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _answer(row: sql.Row) -> StoredAnswer:
    request_id, body_sha256, status, content, is_stream = row
    return StoredAnswer(request_id, body_sha256, status, content, bool(is_stream))
