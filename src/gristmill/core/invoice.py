"""Invoices: issued once, immutable, numbered without gaps, rounded once.

Invariant: total = round to minor unit(Σ lines); the difference is the rounding entry.
"""

from __future__ import annotations

import msgspec


class InvoiceLine(msgspec.Struct, frozen=True):
    """One line: what, how much of it, for how many nano-units; `model`/`release_id` None for fees.

    `paid_from_wallet` tells usage that prepaid credit has covered already. `price` is the key
    "<plan id>/<index>" (or "<plan id>/fee"), `period` the service period, which differs from the invoice's
    for late usage: with model and release they find the rated lines behind the line.
    """

    description: str
    meter: str
    quantity: int
    amount: int
    n_requests: int = 0
    model: str | None = None
    release_id: str | None = None
    paid_from_wallet: bool = False
    price: str = ""
    period: str = ""


class Invoice(msgspec.Struct, frozen=True):
    """An invoice; `id` and `number` are empty and 0 in a preview.

    Attributes:
        period: "2026-11"; amounts in nano-units: subtotal Σ lines, prepaid covered by the wallet, rounding,
        total due.
    """

    customer_id: str
    customer_name: str
    period: str
    currency: str
    lines: tuple[InvoiceLine, ...]
    subtotal: int
    prepaid: int
    rounding: int
    total: int
    id: str = ""
    number: int = 0
    issued_at: str = ""
