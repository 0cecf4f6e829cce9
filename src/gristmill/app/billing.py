"""Closing a period: previews and invoices through the ledger, their PDF, and what the business earns.

Invariant: only `issue_invoice` writes, and it writes through the ledger alone.
"""

from __future__ import annotations

from datetime import datetime

from gristmill.core.clock import Clock
from gristmill.core.invoice import Invoice
from gristmill.stages.bill import invoice as bill
from gristmill.stages.bill import pdf, queries
from gristmill.stages.monitor import margin as margins
from gristmill.stages.monitor import trace
from gristmill.store.ledger.writer import LedgerWriter
from gristmill.store.session import Database


class Billing:
    """Billing over one home's database and ledger; every method may block, so call it off an event loop.

    Args:
        seller: company name printed on invoices. clock: the present when no `as_of` is given.
    """

    def __init__(self, database: Database, ledger: LedgerWriter, clock: Clock, seller: str) -> None:
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._seller = seller

    def preview_invoice(
        self, customer_id: str, period: str, as_of: datetime | None = None, currency: str | None = None
    ) -> Invoice:
        """What would be invoiced now; see `stages.bill.invoice.preview`."""
        with self._database.read() as connection:
            return bill.preview(connection, customer_id, period, self._at(as_of), currency)

    def issue_invoice(
        self, customer_id: str, period: str, as_of: datetime | None = None, currency: str | None = None
    ) -> Invoice:
        """Issue the invoice of a period that has ended; see `stages.bill.invoice.issue`."""
        return bill.issue(self._database, self._ledger, customer_id, period, self._at(as_of), currency)

    def list_invoices(self, customer_id: str | None = None) -> list[Invoice]:
        """Issued invoices by number, of one customer or all."""
        with self._database.read() as connection:
            return queries.list_invoices(connection, customer_id)

    def get_invoice(self, id_or_number: str) -> Invoice:
        """An issued invoice by id or number."""
        with self._database.read() as connection:
            return queries.get_invoice(connection, id_or_number)

    def invoice_pdf(self, invoice: Invoice) -> bytes:
        """An invoice (or a preview) as PDF."""
        return pdf.render(invoice, pdf.Seller(self._seller))

    def margin(self, as_of: datetime | None = None) -> margins.Margin:
        """Gross margins by customer and release; see `stages.monitor.margin`."""
        with self._database.read() as connection:
            return margins.margin(connection, self._at(as_of))

    def usage(self, customer_id: str, period: str) -> trace.UsageSummary:
        """What a customer used in a month."""
        with self._database.read() as connection:
            return trace.usage_summary(connection, customer_id, period)

    def request(self, request_id: str) -> trace.RequestTrace:
        """Everything behind one request."""
        with self._database.read() as connection:
            return trace.request_trace(connection, request_id)

    def _at(self, as_of: datetime | None) -> datetime:
        return as_of or self._clock.now()
