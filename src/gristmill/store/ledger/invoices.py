"""Issuing an invoice: number, rated lines marked, postings and the document, in one transaction.

Invariant: numbers have no gap, an issued invoice never changes, total = round to minor unit(Σ lines −
prepaid), and the rated lines that are marked are exactly those that its lines add up.
"""

from __future__ import annotations

import msgspec

from gristmill.core.errors import BrokenInvariant, Conflict, Unavailable
from gristmill.core.invoice import Invoice, InvoiceLine
from gristmill.core.money import round_to_minor
from gristmill.core.posting import Entry
from gristmill.store.ledger import accounts, sql
from gristmill.store.ledger.books import Books


def issue(books: Books, draft: Invoice, issued_at: str) -> Invoice:
    """Issue a preview; returns the invoice with its id and number.

    Raises:
        Conflict: this customer, period and currency has one. Unavailable: usage arrived after the preview was
        made; make it again. BrokenInvariant: its sums do not add up.
    """
    found = sql.one(books.cursor, sql.GET_INVOICE, draft.customer_id, draft.period, draft.currency)
    if found is not None:
        raise already_issued(draft.customer_id, draft.period, invoice_id=found[0], number=found[1])
    _check(draft)
    last = sql.one(books.cursor, sql.LAST_NUMBER)
    number = int(last[0]) + 1 if last else 1
    invoice = msgspec.structs.replace(draft, id=books.clock.new_id("inv"), number=number, issued_at=issued_at)
    for line in invoice.lines:
        if line.meter != "fee":
            _mark(books, invoice, line)
    document = msgspec.json.encode(invoice).decode()
    row = (
        invoice.id, number, invoice.customer_id, invoice.period, invoice.currency, document, invoice.total,
        issued_at,
    )  # fmt: skip
    sql.write(books.cursor, sql.INVOICE, [row])
    books.post(books.group(invoice.id, "invoice", _entries(invoice)))
    return invoice


def already_issued(customer_id: str, period: str, *, invoice_id: str, number: int) -> Conflict:
    """The error for a second invoice of one period."""
    return Conflict(
        f"Invoice {number} was issued for {customer_id} and {period} already.",
        hint=f"Show it: gristmill invoice show {invoice_id}. Late usage goes onto the next invoice.",
        param="period",
        number=number,
    )


def _check(draft: Invoice) -> None:
    subtotal = sum(line.amount for line in draft.lines)
    prepaid = sum(line.amount for line in draft.lines if line.paid_from_wallet)
    total = round_to_minor(subtotal - prepaid, draft.currency)
    expected = (subtotal, prepaid, total - (subtotal - prepaid), total)
    if (draft.subtotal, draft.prepaid, draft.rounding, draft.total) != expected:
        raise BrokenInvariant(f"The invoice of {draft.customer_id} for {draft.period} does not add up.")


def _mark(books: Books, invoice: Invoice, line: InvoiceLine) -> None:
    plan_id, _, price = line.price.rpartition("/")
    where = (
        invoice.customer_id, plan_id, price, line.meter, line.model, line.release_id, line.period,
        invoice.currency,
    )  # fmt: skip
    if sql.one(books.cursor, sql.SUM_OPEN_LINES, *where) != (line.n_requests, line.quantity, line.amount):
        raise Unavailable(
            f"Usage of {invoice.customer_id} arrived while its invoice was made.", hint="Try again."
        )
    books.cursor.execute(sql.MARK_LINES, (invoice.id, *where))


def _entries(invoice: Invoice) -> list[Entry]:
    fees = sum(line.amount for line in invoice.lines if line.meter == "fee")
    in_arrears = invoice.subtotal - invoice.prepaid - fees
    customer, currency = invoice.customer_id, invoice.currency
    return [
        Entry(accounts.receivable(customer), invoice.total, currency),
        Entry(accounts.unbilled(customer), -in_arrears, currency),
        Entry(accounts.FEES, -fees, currency),
        Entry(accounts.ROUNDING, -invoice.rounding, currency),
    ]
