"""Drill-down: what a customer used in a period, and everything behind one request, release to invoice."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import Connection, Row

from gristmill.core.account import Plan, Price
from gristmill.core.errors import NotFound
from gristmill.core.posting import Entry, PostingGroup
from gristmill.core.usage import UsageEvent
from gristmill.stages.monitor import queries


class UsageLine(msgspec.Struct, frozen=True):
    """Quantity of one meter of a model and release, and the nano-units charged for it."""

    model: str
    release_id: str
    meter: str
    quantity: int
    n_requests: int
    amount: int
    currency: str


class UsageSummary(msgspec.Struct, frozen=True):
    """What a customer used in a period ("2026-11"); amounts: currency → nano-units charged."""

    customer_id: str
    period: str
    n_requests: int
    amounts: dict[str, int]
    lines: list[UsageLine]


class TracedLine(msgspec.Struct, frozen=True):
    """A rated line with the price that made it and the invoice that carries it (None: not yet)."""

    meter: str
    quantity: int
    position_before: int
    amount: int
    currency: str
    price_key: str
    price: Price
    plan: str
    invoice_id: str | None
    invoice_number: int | None


class Evidence(msgspec.Struct, frozen=True):
    """The release that answered and where it came from (None for what an imported release lacks)."""

    release_id: str
    name: str
    version: int
    digest: str
    run_id: str | None
    report_id: str | None
    dataset_version_id: str | None


class RequestTrace(msgspec.Struct, frozen=True):
    """Everything behind one request; amount and cost in nano-units, groups hold the postings of both."""

    event: UsageEvent
    amount: int
    cost: int
    currency: str
    lines: list[TracedLine]
    groups: list[PostingGroup]
    evidence: Evidence | None


def usage_summary(connection: Connection, customer_id: str, period: str) -> UsageSummary:
    """Sum a customer's usage of a period by model, release and meter; an internal plan's counts at amount 0.

    Args:
        connection: for reading.
        customer_id: whose.
        period: month, "2026-11".
    """
    charged = {
        (row.model, row.release_id, row.meter, row.currency): int(row.amount)
        for row in queries.rated_sums(connection, customer_id, period)
    }
    used: dict[tuple[str, str, str, str], list[int]] = {}
    amounts: dict[str, int] = {}
    n_requests = 0
    for row in queries.events_of(connection, customer_id, period):
        n_requests += 1
        amounts[row.currency] = amounts.get(row.currency, 0) + row.amount
        for meter, quantity in row.meters.items():
            sums = used.setdefault((row.model, row.release_id, meter, row.currency), [0, 0])
            sums[0] += quantity
            sums[1] += 1
    lines = [
        UsageLine(key[0], key[1], key[2], quantity, count, charged.get(key, 0), key[3])
        for key, (quantity, count) in sorted(used.items())
    ]
    return UsageSummary(customer_id, period, n_requests, amounts, lines)


def request_trace(connection: Connection, request_id: str) -> RequestTrace:
    """Gather everything behind one request.

    Raises:
        NotFound: nothing was settled under this id.
    """
    row = queries.event(connection, request_id)
    if row is None:
        raise NotFound(f"There is no settled request {request_id}.", param="request")
    stored = dict(row._mapping)
    fields = {name: stored[name] for name in UsageEvent.__struct_fields__}
    return RequestTrace(
        event=UsageEvent(**fields),
        amount=row.amount,
        cost=row.cost,
        currency=row.currency,
        lines=[_line(line) for line in queries.lines_of(connection, request_id)],
        groups=_groups(queries.postings_of(connection, request_id)),
        evidence=_evidence(row.release_id, queries.evidence_of(connection, row.release_id)),
    )


def _line(row: Row[Any]) -> TracedLine:
    plan = msgspec.convert(row.plan_document, Plan)
    return TracedLine(
        meter=row.meter,
        quantity=row.quantity,
        position_before=row.position_before,
        amount=row.amount,
        currency=row.currency,
        price_key=f"{row.plan_id}/{row.price}",
        price=plan.prices[int(row.price)],
        plan=f"{plan.name} {plan.number}",
        invoice_id=row.invoice_id,
        invoice_number=row.invoice_number,
    )


def _groups(rows: list[Row[Any]]) -> list[PostingGroup]:
    groups = []
    for (group_id, source, purpose, at), members in groupby(rows, key=lambda row: tuple(row[:4])):
        entries = tuple(Entry(row.account, row.amount, row.currency) for row in members)
        groups.append(PostingGroup(group_id, source, purpose, entries, at))
    return groups


def _evidence(release_id: str, row: Row[Any] | None) -> Evidence | None:
    if row is None:
        return None
    return Evidence(
        release_id=release_id,
        name=row.public_name or row.product,
        version=row.version,
        digest=row.digest,
        run_id=row.run_id,
        report_id=row.report_id,
        dataset_version_id=row.dataset_version_id,
    )
