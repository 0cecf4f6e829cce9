"""What tests read of the ledger's rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from gristmill.store.tables import ledger


def usage_events(c: Connection, customer_id: str) -> list[dict[str, Any]]:
    """The usage events of a customer, oldest first, as rows."""
    table = ledger.usage_event
    query = select(table).where(table.c.customer_id == customer_id).order_by(table.c.request_id)
    return [dict(row) for row in c.execute(query).mappings()]
