"""The ledger's audit: every promise of the books, checked from the rows themselves."""

from __future__ import annotations

from sqlalchemy import Connection, text

_CHECKS = {
    "a posting group does not sum to zero": """
        SELECT group_id FROM entry GROUP BY group_id, currency HAVING SUM(amount) <> 0""",
    "a balance differs from the sum of its entries": """
        SELECT b.account FROM balance b WHERE b.amount <> (SELECT COALESCE(SUM(e.amount), 0) FROM entry e
        WHERE e.account = b.account AND e.currency = b.currency)""",
    "an account has entries and no balance": """
        SELECT DISTINCT e.account FROM entry e LEFT JOIN balance b
        ON b.account = e.account AND b.currency = e.currency WHERE b.account IS NULL""",
    "a wallet or lease is overdrawn": """
        SELECT account FROM balance
        WHERE amount > 0 AND (account LIKE 'wallet:%' OR account LIKE 'lease:%')""",
    "a position differs from the sum of its rated lines": """
        SELECT p.price FROM position p WHERE p.quantity <> (SELECT COALESCE(SUM(r.quantity), 0)
        FROM rated_line r WHERE r.subscription_id = p.subscription_id AND r.period = p.period
        AND r.plan_id || '/' || r.price = p.price)""",
    "a usage event differs from the sum of its rated lines": """
        SELECT u.request_id FROM usage_event u WHERE u.amount <> (SELECT COALESCE(SUM(r.amount), 0)
        FROM rated_line r WHERE r.request_id = u.request_id)""",
    "a usage event has no posting for what it was charged": """
        SELECT u.request_id FROM usage_event u LEFT JOIN posting_group g
        ON g.source = u.request_id AND g.purpose = 'usage' WHERE u.amount <> 0 AND g.id IS NULL""",
    "a usage event has no posting for what it cost": """
        SELECT u.request_id FROM usage_event u LEFT JOIN posting_group g
        ON g.source = u.request_id AND g.purpose = 'cost' WHERE u.cost <> 0 AND g.id IS NULL""",
    "unbilled usage differs from the lines no invoice carries": """
        SELECT b.account FROM balance b WHERE b.account LIKE 'unbilled:%' AND b.amount <>
        (SELECT COALESCE(SUM(r.amount), 0) FROM rated_line r WHERE 'unbilled:' || r.customer_id = b.account
        AND r.currency = b.currency AND r.invoice_id IS NULL AND NOT EXISTS (SELECT 1 FROM entry e
        JOIN posting_group g ON g.id = e.group_id WHERE g.source = r.request_id AND g.purpose = 'usage'
        AND e.account LIKE 'lease:%'))""",
    "invoice numbers have a gap": """
        SELECT MAX(number) FROM invoice HAVING MAX(number) <> COUNT(*)""",
}


def broken(connection: Connection) -> list[str]:
    """Every promise that does not hold, with the first few rows at fault; empty when all is well."""
    found = []
    for what, query in _CHECKS.items():
        rows = connection.execute(text(query)).fetchmany(3)
        found += [f"{what}: {row[0]}" for row in rows]
    return found


def sums(connection: Connection) -> dict[str, int]:
    """Σ of all entries by currency; each is zero."""
    rows = connection.execute(text("SELECT currency, SUM(amount) FROM entry GROUP BY currency"))
    return {row[0]: int(row[1]) for row in rows}
