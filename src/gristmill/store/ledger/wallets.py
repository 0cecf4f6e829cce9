"""Wallets and leases: top-ups, and money moved between a wallet and the gateway that may spend it.

Invariant: a lease grants at most what the wallet has; what a gateway leaves behind goes back to the wallet.
"""

from __future__ import annotations

from gristmill.core.errors import UsageError
from gristmill.core.posting import transfer
from gristmill.store.ledger import accounts, sql
from gristmill.store.ledger.books import Books


def top_up(books: Books, customer_id: str, amount: int, currency: str, source: str) -> int:
    """Add paid credit; returns the wallet's balance. The same `source` counts once.

    Raises:
        UsageError: the amount is not positive.
    """
    if amount <= 0:
        raise UsageError(f"A top-up of {amount} nano-units is not positive.", param="amount")
    wallet = accounts.wallet(customer_id)
    books.post(books.group(source, "top-up", transfer(accounts.CASH, wallet, amount, currency)))
    return -books.balance(wallet, currency)


def open_lease(books: Books, customer_id: str, currency: str, amount: int) -> int:
    """Move up to `amount` nano-units from the wallet into this gateway's lease; returns what was granted."""
    wallet = accounts.wallet(customer_id)
    granted = min(amount, -books.balance(wallet, currency))
    if granted <= 0:
        return 0
    lease_id = books.clock.new_id("lease")
    sql.write(books.cursor, sql.LEASE, [(lease_id, books.gateway, customer_id, currency, books.now())])
    lease = accounts.lease(customer_id, books.gateway)
    books.post(books.group(lease_id, "lease", transfer(wallet, lease, granted, currency)))
    return granted


def return_lease(books: Books, customer_id: str, currency: str, amount: int | None = None) -> int:
    """Move `amount` (all when None, never more than is left) back to the wallet; returns what was moved."""
    lease = accounts.lease(customer_id, books.gateway)
    left = -books.balance(lease, currency)
    returned = left if amount is None else min(amount, left)
    if returned <= 0:
        return 0
    source = books.clock.new_id("lease")
    wallet = accounts.wallet(customer_id)
    books.post(books.group(source, "lease-return", transfer(lease, wallet, returned, currency)))
    return returned


def return_all_leases(books: Books) -> int:
    """Give every lease of this gateway back (at start: no request of it is alive); returns how many."""
    leases = books.cursor.execute(sql.GET_LEASES, (books.gateway,)).fetchall()
    return sum(return_lease(books, customer_id, currency) > 0 for customer_id, currency in leases)
