"""What margins and traces read: bookings, costs of artefacts, usage and the postings behind a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Row, case, func, select

from gristmill.store.ledger.accounts import FEES
from gristmill.store.tables.account import customer, plan
from gristmill.store.tables.chain import artifact_cost, release, run
from gristmill.store.tables.ledger import entry, invoice, posting_group, rated_line, usage_event


def booked(connection: Connection, until: str) -> list[Row[Any]]:
    """Usage booked up to `until` (ISO 8601) from the postings themselves.

    Each row: customer_id, release_id, currency, n_requests, revenue (a credit, so negative), cost.
    """
    u, g, e = usage_event.c, posting_group.c, entry.c
    amount = func.coalesce(e.amount, 0)
    statement = (
        select(
            u.customer_id,
            u.release_id,
            e.currency,
            func.count(u.request_id.distinct()).label("n_requests"),
            func.sum(case((g.purpose == "usage", amount), else_=0)).label("revenue"),
            func.sum(case((g.purpose == "cost", amount), else_=0)).label("cost"),
        )
        .select_from(usage_event)
        .join(posting_group, g.source == u.request_id)
        .join(entry, e.group_id == g.id)
        .where(g.purpose.in_(("usage", "cost")), g.at <= until)
        .where(e.account.in_(("revenue:" + u.release_id, "cost:" + u.release_id)))
        .group_by(u.customer_id, u.release_id, e.currency)
    )
    return list(connection.execute(statement))


def fees(connection: Connection, until: str) -> list[Row[Any]]:
    """Fees of invoices booked up to `until`; each row: customer_id, currency, amount (a credit)."""
    statement = (
        select(invoice.c.customer_id, entry.c.currency, func.sum(entry.c.amount).label("amount"))
        .select_from(invoice)
        .join(posting_group, posting_group.c.source == invoice.c.id)
        .join(entry, entry.c.group_id == posting_group.c.id)
        .where(posting_group.c.purpose == "invoice", posting_group.c.at <= until, entry.c.account == FEES)
        .group_by(invoice.c.customer_id, entry.c.currency)
    )
    return list(connection.execute(statement))


def artifact_costs(connection: Connection, until: str) -> list[Row[Any]]:
    """Costs up to `until`: release_id, purpose (training | evaluation), amount, currency, created_at."""
    a = artifact_cost.c
    statement = (
        select(a.release_id, a.purpose, a.amount, a.currency, release.c.created_at)
        .join(release, release.c.id == a.release_id)
        .where(a.at <= until)
        .order_by(a.id)
    )
    return list(connection.execute(statement))


def release_owner(connection: Connection, release_id: str) -> str | None:
    """The customer whose fine-tune a release is; None for the operator's products."""
    owner: str | None = connection.scalar(select(release.c.customer_id).where(release.c.id == release_id))
    return owner


def customer_names(connection: Connection) -> dict[str, str]:
    """Customer id → display name."""
    return {row.id: row.name for row in connection.execute(select(customer.c.id, customer.c.name))}


def release_names(connection: Connection) -> dict[str, str]:
    """Release id → "product 3", or its public name."""
    r = release.c
    rows = connection.execute(select(r.id, r.product, r.version, r.public_name))
    return {row.id: row.public_name or f"{row.product} {row.version}" for row in rows}


def events_of(connection: Connection, customer_id: str, period: str) -> Iterator[Row[Any]]:
    """A customer's usage events of a period, streamed: model, release_id, meters, amount, currency."""
    u = usage_event.c
    where = (u.customer_id == customer_id, u.period == period)
    rows: Iterable[Row[Any]] = connection.execute(
        select(u.model, u.release_id, u.meters, u.amount, u.currency).where(*where)
    )
    yield from rows


def rated_sums(connection: Connection, customer_id: str, period: str) -> list[Row[Any]]:
    """Rated amounts of a period: model, release_id, meter, currency, amount."""
    r = rated_line.c
    keys = (r.model, r.release_id, r.meter, r.currency)
    statement = (
        select(*keys, func.sum(r.amount).label("amount"))
        .join(usage_event, usage_event.c.request_id == r.request_id)
        .where(usage_event.c.customer_id == customer_id, usage_event.c.period == period)
        .group_by(*keys)
    )
    return list(connection.execute(statement))


def event(connection: Connection, request_id: str) -> Row[Any] | None:
    """The usage event of a request with what it was charged and cost."""
    return connection.execute(select(usage_event).where(usage_event.c.request_id == request_id)).first()


def lines_of(connection: Connection, request_id: str) -> list[Row[Any]]:
    """Rated lines of a request with the plan's document and the invoice that carries them."""
    statement = (
        select(rated_line, plan.c.document.label("plan_document"), invoice.c.number.label("invoice_number"))
        .join(plan, plan.c.id == rated_line.c.plan_id)
        .outerjoin(invoice, invoice.c.id == rated_line.c.invoice_id)
        .where(rated_line.c.request_id == request_id)
        .order_by(rated_line.c.meter)
    )
    return list(connection.execute(statement))


def postings_of(connection: Connection, source: str) -> list[Row[Any]]:
    """Entries of all groups with this source: group_id, source, purpose, at, account, amount, currency."""
    g, e = posting_group.c, entry.c
    statement = (
        select(g.id.label("group_id"), g.source, g.purpose, g.at, e.account, e.amount, e.currency)
        .join(entry, e.group_id == g.id)
        .where(g.source == source)
        .order_by(g.id, e.position)
    )
    return list(connection.execute(statement))


def evidence_of(connection: Connection, release_id: str) -> Row[Any] | None:
    """Where a release came from: product, version, digest, run_id, report_id, dataset_version_id."""
    r = release.c
    statement = (
        select(r.product, r.version, r.public_name, r.digest, r.run_id, r.report_id, run.c.dataset_version_id)
        .outerjoin(run, run.c.id == r.run_id)
        .where(r.id == release_id)
    )
    rows: list[Row[Any]] = list(connection.execute(statement))
    return rows[0] if rows else None
