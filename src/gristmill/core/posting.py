"""Double entry: accounts, entries and posting groups.

Invariant: every group sums to zero per currency; amounts are nano-units; debit is positive.
Accounts are `<kind>:<owner>`; kinds: cash, wallet, lease, unbilled, receivable, revenue, deferred, tax,
rounding, cost, accrued (what the operator owes for hardware), capitalised (training not yet amortised).
A wallet is what we owe the customer: a credit (negative) balance; `wallet_balance = −balance`.
"""

from __future__ import annotations

import msgspec

from gristmill.core.errors import BrokenInvariant


class Entry(msgspec.Struct, frozen=True):
    """One leg: account, amount in nano-units (debit > 0), currency."""

    account: str
    amount: int
    currency: str


class PostingGroup(msgspec.Struct, frozen=True):
    """A zero-sum set of entries, unique by (source, purpose).

    Attributes:
        source: id of what caused it (request, invoice, top-up, run). purpose: "usage", "cost", "top-up",
            "lease", "lease-return", "invoice", "fee", "training-cost" …
    """

    id: str
    source: str
    purpose: str
    entries: tuple[Entry, ...]
    at: str

    def check(self) -> None:
        """Raise BrokenInvariant unless the entries sum to zero in each currency."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            sums[entry.currency] = sums.get(entry.currency, 0) + entry.amount
        if any(sums.values()):
            raise BrokenInvariant(
                f"posting group {self.purpose} of {self.source} does not sum to zero: {sums}"
            )


def transfer(debit: str, credit: str, amount: int, currency: str) -> tuple[Entry, Entry]:
    """The two entries that move `amount` nano-units from `credit` to `debit`."""
    return Entry(debit, amount, currency), Entry(credit, -amount, currency)
