"""Names of the ledger's accounts: `<kind>:<owner>`, see `core.posting`."""

from __future__ import annotations

CASH = "cash:bank"
FEES = "revenue:fees"
ROUNDING = "rounding:invoices"
HARDWARE = "accrued:hardware"
WALLET = "wallet:"


def wallet(customer_id: str) -> str:
    """What we owe the customer (a credit, so negative, balance)."""
    return WALLET + customer_id


def lease(customer_id: str, gateway: str) -> str:
    """Money of the customer's wallet that one gateway may spend (a credit balance as well)."""
    return f"lease:{customer_id}:{gateway}"


def unbilled(customer_id: str) -> str:
    """Usage charged in arrears that no invoice carries yet."""
    return "unbilled:" + customer_id


def receivable(customer_id: str) -> str:
    """Issued invoices that are not paid."""
    return "receivable:" + customer_id


def revenue(release_id: str) -> str:
    """What a release earned."""
    return "revenue:" + release_id


def cost(release_id: str) -> str:
    """What serving a release cost."""
    return "cost:" + release_id
