"""SQL of the operator's chain page: one product or one request with everything it points at.

These queries see all customers, since only operators read them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, select

from gristmill.store.tables.account import customer, plan
from gristmill.store.tables.chain import (
    alias_move,
    artifact_cost,
    dataset,
    dataset_version,
    release,
    report,
    run,
)
from gristmill.store.tables.ledger import entry, invoice, posting_group, rated_line, usage_event

_LATENCY_SAMPLE = 1000
Rows = list[dict[str, Any]]


def products(c: Connection) -> list[str]:
    """Names of all products that have a run or a release, the newest first."""
    names = (
        select(run.c.product, run.c.created_at)
        .union_all(select(release.c.product, release.c.created_at))
        .subquery()
    )
    query = select(names.c.product).group_by(names.c.product).order_by(func.max(names.c.created_at).desc())
    return list(c.execute(query).scalars())


def latest_run(c: Connection, product: str) -> dict[str, Any] | None:
    """The newest run of a product."""
    return _first(
        c, select(run).where(run.c.product == product).order_by(run.c.created_at.desc(), run.c.id.desc())
    )


def run_of(c: Connection, run_id: str) -> dict[str, Any] | None:
    """One run."""
    return _first(c, select(run).where(run.c.id == run_id))


def run_counts(c: Connection) -> dict[str, int]:
    """State → number of runs."""
    query = select(run.c.state, func.count().label("n")).group_by(run.c.state)
    return {row.state: row.n for row in c.execute(query)}


def releases(c: Connection, product: str) -> Rows:
    """All releases of a product, the newest version first."""
    query = select(release).where(release.c.product == product).order_by(release.c.version.desc())
    return _all(c, query)


def release_of(c: Connection, release_id: str) -> dict[str, Any] | None:
    """One release."""
    return _first(c, select(release).where(release.c.id == release_id))


def aliases(c: Connection, product: str) -> dict[str, str]:
    """Alias → release id, as the last move of each left it."""
    query = select(alias_move.c.alias, alias_move.c.release_id).where(alias_move.c.product == product)
    found: dict[str, str | None] = {}
    for row in c.execute(query.order_by(alias_move.c.moved_at, alias_move.c.id)):
        found[row.alias] = row.release_id
    return {alias: release_id for alias, release_id in found.items() if release_id is not None}


def version_of(c: Connection, version_id: str) -> dict[str, Any] | None:
    """One dataset version with its dataset's name."""
    query = select(dataset_version, dataset.c.name).join(
        dataset, dataset.c.id == dataset_version.c.dataset_id
    )
    return _first(c, query.where(dataset_version.c.id == version_id))


def report_of(
    c: Connection, *, report_id: str | None = None, run_id: str | None = None
) -> dict[str, Any] | None:
    """One report by its id, or the newest of a run."""
    condition = report.c.id == report_id if report_id else report.c.run_id == run_id
    return _first(c, select(report).where(condition).order_by(report.c.created_at.desc()))


def traffic(c: Connection, release_ids: list[str]) -> dict[str, Any]:
    """Requests of some releases: count, and the latencies (ms, sorted) of the newest thousand."""
    chosen = usage_event.c.release_id.in_(release_ids)
    count = c.execute(select(func.count()).select_from(usage_event).where(chosen)).scalar_one()
    newest = select(usage_event.c.latency_ms).where(chosen).order_by(usage_event.c.started_at.desc())
    latencies = sorted(c.execute(newest.limit(_LATENCY_SAMPLE)).scalars())
    return {"count": count, "latencies_ms": latencies}


def usage(c: Connection, release_ids: list[str]) -> Rows:
    """Rated usage of some releases by meter and currency: quantity and amount (nano-units)."""
    line = rated_line.c
    query = select(
        line.meter,
        line.currency,
        func.sum(line.quantity).label("quantity"),
        func.sum(line.amount).label("amount"),
    )
    query = (
        query.where(line.release_id.in_(release_ids)).group_by(line.meter, line.currency).order_by(line.meter)
    )
    return _whole(_all(c, query), "quantity", "amount")


def invoices(c: Connection, release_ids: list[str]) -> Rows:
    """Issued invoices that carry usage of some releases, the newest first, with that usage's amount."""
    shown = (
        invoice.c.id,
        invoice.c.number,
        invoice.c.period,
        invoice.c.currency,
        invoice.c.total,
        customer.c.name,
    )
    query = (
        select(*shown, func.sum(rated_line.c.amount).label("amount"))
        .join(rated_line, rated_line.c.invoice_id == invoice.c.id)
        .join(customer, customer.c.id == invoice.c.customer_id)
        .where(rated_line.c.release_id.in_(release_ids))
        .group_by(*shown)
        .order_by(invoice.c.number.desc())
    )
    return _whole(_all(c, query), "amount")


def making_cost(c: Connection, release_ids: list[str]) -> Rows:
    """What training and evaluating some releases cost, by purpose and currency (nano-units)."""
    columns = (artifact_cost.c.purpose, artifact_cost.c.currency)
    query = select(*columns, func.sum(artifact_cost.c.amount).label("amount"))
    query = query.where(artifact_cost.c.release_id.in_(release_ids)).group_by(*columns).order_by(*columns)
    return _whole(_all(c, query), "amount")


def newest_requests(c: Connection, release_ids: list[str], limit: int = 8) -> Rows:
    """The newest requests of some releases, with the customer's name."""
    query = (
        select(usage_event, customer.c.name.label("customer"))
        .join(customer, customer.c.id == usage_event.c.customer_id, isouter=True)
        .where(usage_event.c.release_id.in_(release_ids))
        .order_by(usage_event.c.started_at.desc(), usage_event.c.request_id.desc())
    )
    return _all(c, query.limit(limit))


def request_of(c: Connection, request_id: str) -> dict[str, Any] | None:
    """One usage event with the names of its customer and plan."""
    query = (
        select(
            usage_event,
            customer.c.name.label("customer"),
            plan.c.name.label("plan"),
            plan.c.number.label("plan_number"),
        )
        .join(customer, customer.c.id == usage_event.c.customer_id, isouter=True)
        .join(plan, plan.c.id == usage_event.c.plan_id, isouter=True)
    )
    return _first(c, query.where(usage_event.c.request_id == request_id))


def lines_of(c: Connection, request_id: str) -> Rows:
    """The rated lines of a request, with the number of the invoice that carries them."""
    query = select(rated_line, invoice.c.number).join(
        invoice, invoice.c.id == rated_line.c.invoice_id, isouter=True
    )
    return _all(c, query.where(rated_line.c.request_id == request_id).order_by(rated_line.c.meter))


def postings_of(c: Connection, source: str) -> Rows:
    """The ledger entries that a request (or run) caused, group by group."""
    query = (
        select(
            posting_group.c.id,
            posting_group.c.purpose,
            posting_group.c.at,
            entry.c.account,
            entry.c.amount,
            entry.c.currency,
        )
        .join(entry, entry.c.group_id == posting_group.c.id)
        .where(posting_group.c.source == source)
        .order_by(posting_group.c.id, entry.c.position)
    )
    return _all(c, query)


def _first(c: Connection, query: Select[Any]) -> dict[str, Any] | None:
    row = c.execute(query.limit(1)).mappings().first()
    return None if row is None else dict(row)


def _all(c: Connection, query: Select[Any]) -> Rows:
    return [dict(row) for row in c.execute(query).mappings()]


def _whole(rows: Rows, *names: str) -> Rows:
    """SUM of a 64-bit column is a Decimal on some databases; amounts are int here."""
    return [row | {name: int(row[name]) for name in names} for row in rows]
