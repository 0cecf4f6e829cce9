"""What billing reads: rated lines that no invoice carries, plans, subscriptions and issued invoices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, or_, select

from gristmill.core.account import Plan
from gristmill.core.errors import NotFound
from gristmill.core.invoice import Invoice
from gristmill.store.tables.account import customer, plan, subscription
from gristmill.store.tables.ledger import invoice, rated_line


def open_lines(connection: Connection, customer_id: str, period: str, currency: str) -> list[Row[Any]]:
    """Usage up to and with `period` that no invoice carries, summed by period, model, release and price.

    Each row: period, model, release_id, plan_id, price, meter, n_requests, quantity, amount.
    """
    r = rated_line.c
    keys = (r.period, r.model, r.release_id, r.plan_id, r.price, r.meter)
    statement = (
        select(
            *keys,
            func.count().label("n_requests"),
            func.sum(r.quantity).label("quantity"),
            func.sum(r.amount).label("amount"),
        )
        .where(r.customer_id == customer_id, r.invoice_id.is_(None), r.period <= period)
        .where(r.currency == currency)
        .group_by(*keys)
        .order_by(*keys)
    )
    return list(connection.execute(statement))


def plans_by_id(connection: Connection, ids: Iterable[str]) -> dict[str, Plan]:
    """Plan versions by id."""
    rows = connection.execute(select(plan.c.id, plan.c.document).where(plan.c.id.in_(sorted(set(ids)))))
    return {row.id: msgspec.convert(row.document, Plan) for row in rows}


def customer_name(connection: Connection, customer_id: str) -> str:
    """A customer's display name.

    Raises:
        NotFound: no such customer.
    """
    name: str | None = connection.scalar(select(customer.c.name).where(customer.c.id == customer_id))
    if name is None:
        raise NotFound(f"There is no customer {customer_id}.", hint="See gristmill customer list.")
    return name


def last_plan(connection: Connection, customer_id: str, start: str, end: str) -> Plan | None:
    """The plan of the subscription begun last among those active in [start, end), ISO 8601."""
    s = subscription.c
    statement = (
        select(s.plan_id)
        .where(
            s.customer_id == customer_id, s.started_at < end, or_(s.ended_at.is_(None), s.ended_at > start)
        )
        .order_by(s.started_at.desc(), s.id.desc())
        .limit(1)
    )
    plan_id = connection.scalar(statement)
    return plans_by_id(connection, [plan_id])[plan_id] if plan_id else None


def last_currency(connection: Connection, customer_id: str) -> str:
    """Currency of the customer's newest subscription.

    Raises:
        NotFound: there is none.
    """
    found = last_plan(connection, customer_id, "", "9999")
    if found is None:
        raise NotFound(f"The customer {customer_id} has no subscription.", param="customer")
    return found.currency


def issued(connection: Connection, customer_id: str, period: str, currency: str) -> tuple[str, int] | None:
    """Id and number of the invoice issued for a period, if any."""
    i = invoice.c
    statement = select(i.id, i.number).where(
        i.customer_id == customer_id, i.period == period, i.currency == currency
    )
    row = connection.execute(statement).first()
    return (row.id, row.number) if row else None


def list_invoices(connection: Connection, customer_id: str | None = None) -> list[Invoice]:
    """Issued invoices by number."""
    statement = select(invoice.c.document).order_by(invoice.c.number)
    if customer_id is not None:
        statement = statement.where(invoice.c.customer_id == customer_id)
    return [msgspec.convert(document, Invoice) for document in connection.scalars(statement)]


def get_invoice(connection: Connection, id_or_number: str) -> Invoice:
    """An issued invoice by id, or by number ("7" or "INV-000007").

    Raises:
        NotFound: no such invoice.
    """
    digits = id_or_number.upper().removeprefix("INV-")
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 18
    where = invoice.c.number == int(digits) if is_number else invoice.c.id == id_or_number
    document = connection.scalar(select(invoice.c.document).where(where))
    if document is None:
        raise NotFound(f"There is no invoice {id_or_number}.", hint="See gristmill invoice list.")
    return msgspec.convert(document, Invoice)
