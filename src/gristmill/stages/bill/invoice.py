"""Invoices: gathering a period's usage and fee into a preview, and issuing it through the ledger.

Terms: the fee is that of the plan held last in the month, owed in full from the first day it is active in
(no proration), and stands on that month's invoice. Usage on an internal plan is never invoiced. Usage that
arrives after its month was invoiced goes onto the next invoice, labelled with its service period.
Invariant: total = round to minor unit(Σ lines − prepaid), once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from gristmill.core.account import Plan
from gristmill.core.errors import Conflict, Unavailable, UsageError
from gristmill.core.invoice import Invoice, InvoiceLine
from gristmill.core.money import round_to_minor
from gristmill.stages.bill import queries
from gristmill.stages.bill.period import bounds, month_name
from gristmill.store.ledger.invoices import already_issued
from gristmill.store.ledger.writer import LedgerWriter
from gristmill.store.session import Database

_LABELS = {
    "input_tokens": "Input tokens",
    "output_tokens": "Output tokens",
    "trained_tokens": "Training tokens",
}
_ATTEMPTS = 5


def preview(
    connection: Connection, customer_id: str, period: str, as_of: datetime, currency: str | None = None
) -> Invoice:
    """The invoice that would be issued now; nothing is written.

    Args:
        connection: for reading.
        customer_id: whose.
        period: month, "2026-11".
        as_of: instant that counts as now; a month that has not begun cannot be previewed.
        currency: of the customer's newest plan when None; other currencies have invoices of their own.

    Raises:
        Conflict: the period was invoiced. NotFound: no such customer. UsageError: not a month, or not begun.
    """
    start, end = bounds(period)
    name = queries.customer_name(connection, customer_id)
    if as_of < start:
        raise UsageError(
            f"{month_name(period)} has not begun on {as_of.date()}.", hint="See --as-of.", param="period"
        )
    currency = currency or queries.last_currency(connection, customer_id)
    found = queries.issued(connection, customer_id, period, currency)
    if found is not None:
        raise already_issued(customer_id, period, invoice_id=found[0], number=found[1])
    rows = queries.open_lines(connection, customer_id, period, currency)
    plans = queries.plans_by_id(connection, [row.plan_id for row in rows])
    sellable = [row for row in rows if plans[row.plan_id].is_sellable]
    lines = [_usage_line(row, plans[row.plan_id], period) for row in sellable]
    plan = queries.last_plan(connection, customer_id, start.isoformat(), end.isoformat())
    if plan is not None and plan.fee and plan.currency == currency and plan.is_sellable:
        lines.insert(0, _fee_line(plan, period))
    return _summed(customer_id, name, period, currency, lines)


def issue(
    database: Database,
    ledger: LedgerWriter,
    customer_id: str,
    period: str,
    as_of: datetime,
    currency: str | None = None,
) -> Invoice:
    """Issue the invoice of a period that has ended; blocks until it is durable.

    Args:
        database: to gather from.
        ledger: to issue through.
        customer_id: whose.
        period: month, "2026-11".
        as_of: date of the invoice; not before the period's end.
        currency: see `preview`.

    Raises:
        Conflict: the period has not ended, was invoiced already (the number is named), or has nothing on it.
    """
    if as_of < bounds(period)[1]:
        raise Conflict(
            f"{month_name(period)} has not ended on {as_of.date()}, so it cannot be invoiced.",
            hint=f"Close it in advance with --as-of {bounds(period)[1].date()}.",
            param="period",
        )
    for attempt in range(_ATTEMPTS):
        with database.read() as connection:
            draft = preview(connection, customer_id, period, as_of, currency)
        if not draft.lines:
            raise Conflict(
                f"There is nothing to invoice to {customer_id} for {month_name(period)}.", param="period"
            )
        try:
            return ledger.issue_now(draft, as_of.isoformat(timespec="seconds"))
        except Unavailable:  # usage arrived since the preview was made
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def meter_label(meter: str) -> str:
    """A meter's name for people: `input_tokens` → "Input tokens"."""
    return _LABELS.get(meter, meter.replace("_", " ").capitalize())


def _usage_line(row: Row[Any], plan: Plan, period: str) -> InvoiceLine:
    late = "" if row.period == period else f" (service period {month_name(row.period)})"
    return InvoiceLine(
        description=f"{row.model}: {meter_label(row.meter).lower()}{late}",
        meter=row.meter,
        quantity=int(row.quantity),
        amount=int(row.amount),
        n_requests=int(row.n_requests),
        model=row.model,
        release_id=row.release_id,
        paid_from_wallet=plan.billing == "prepaid",
        price=f"{row.plan_id}/{row.price}",
        period=row.period,
    )


def _fee_line(plan: Plan, period: str) -> InvoiceLine:
    return InvoiceLine(
        description=f"Plan {plan.name}, monthly fee, {month_name(period)}",
        meter="fee",
        quantity=1,
        amount=plan.fee,
        price=f"{plan.id}/fee",
        period=period,
    )


def _summed(customer_id: str, name: str, period: str, currency: str, lines: list[InvoiceLine]) -> Invoice:
    subtotal = sum(line.amount for line in lines)
    prepaid = sum(line.amount for line in lines if line.paid_from_wallet)
    total = round_to_minor(subtotal - prepaid, currency)
    return Invoice(
        customer_id=customer_id,
        customer_name=name,
        period=period,
        currency=currency,
        lines=tuple(lines),
        subtotal=subtotal,
        prepaid=prepaid,
        rounding=total - (subtotal - prepaid),
        total=total,
    )
