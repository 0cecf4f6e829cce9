"""Gross margin by customer and by release: what the ledger booked, less what it cost.

Terms: revenue is recognised when usage is settled, a fee when its invoice is issued; serving is measured
engine seconds × the hourly rate of that time; training is amortised straight-line over `LIFE_DAYS` from the
release up to `as_of`; evaluation counts at once. A release of one customer costs that customer; a shared
release's training and evaluation is spread over its customers by their serving cost (over nobody, shown
as "", before the first).
Invariant: per currency the customers' sums equal the releases' plus the fees. Currencies are never converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from sqlalchemy import Connection

from gristmill.stages.monitor import queries

LIFE_DAYS = 90


class MarginLine(msgspec.Struct, frozen=True):
    """Margin of one customer or release in one currency; amounts in nano-units.

    Attributes:
        id, name: of the customer or release. revenue: usage and fees, `fees` of it. training_cost: amortised
            so far, of `training_total`. ratio: gross margin / revenue to four places; None without revenue.
    """

    id: str
    name: str
    currency: str
    n_requests: int
    revenue: int
    fees: int
    serving_cost: int
    training_cost: int
    training_total: int
    evaluation_cost: int
    gross_margin: int
    ratio: Decimal | None


class Margin(msgspec.Struct, frozen=True):
    """Margins as of an instant (ISO 8601): lines by customer and by release, and totals by currency."""

    as_of: str
    life_days: int
    customers: list[MarginLine]
    releases: list[MarginLine]
    totals: list[MarginLine]


class _Sum:
    """Sums of one line while they are gathered."""

    def __init__(self) -> None:
        self.n_requests = self.usage = self.fees = self.serving = 0
        self.training = self.training_total = self.evaluation = 0

    def add(self, other: _Sum) -> None:
        """Add another line's sums."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


_Sums = dict[tuple[str, str], _Sum]  # (id, currency)


def margin(connection: Connection, as_of: datetime, life_days: int = LIFE_DAYS) -> Margin:
    """Margins of everything booked up to `as_of`.

    Args:
        connection: for reading.
        as_of: instant up to which bookings count and training is amortised.
        life_days: days over which a release's training is spread.
    """
    until = as_of.isoformat(timespec="microseconds")
    customers: _Sums = {}
    releases: _Sums = {}
    served: dict[tuple[str, str], dict[str, int]] = {}
    for row in queries.booked(connection, until):
        one = _Sum()
        one.n_requests, one.usage, one.serving = int(row.n_requests), -int(row.revenue), int(row.cost)
        customers.setdefault((row.customer_id, row.currency), _Sum()).add(one)
        releases.setdefault((row.release_id, row.currency), _Sum()).add(one)
        if one.serving:
            served.setdefault((row.release_id, row.currency), {})[row.customer_id] = one.serving
    for row in queries.fees(connection, until):
        customers.setdefault((row.customer_id, row.currency), _Sum()).fees += -int(row.amount)
    for (release_id, currency), one in _artifact_costs(connection, as_of, life_days).items():
        releases.setdefault((release_id, currency), _Sum()).add(one)
        owner = queries.release_owner(connection, release_id)
        shares = {owner: 1} if owner else served.get((release_id, currency), {})
        for customer_id, part in _spread(one, shares).items():
            customers.setdefault((customer_id, currency), _Sum()).add(part)
    return Margin(
        as_of=until,
        life_days=life_days,
        customers=_lines(customers, queries.customer_names(connection)),
        releases=_lines(releases, queries.release_names(connection)),
        totals=_lines(_totals(customers), {}),
    )


def amortised(amount: int, released_at: datetime, as_of: datetime, life_days: int) -> int:
    """Straight-line part of `amount` that has been used up: whole seconds of the life, rounded down."""
    life_s = int(timedelta(days=life_days).total_seconds())
    elapsed_s = int((as_of - released_at).total_seconds())
    return amount * min(max(elapsed_s, 0), life_s) // life_s


def _artifact_costs(connection: Connection, as_of: datetime, life_days: int) -> _Sums:
    sums: _Sums = {}
    for row in queries.artifact_costs(connection, as_of.isoformat()):
        one = sums.setdefault((row.release_id, row.currency), _Sum())
        amount = int(row.amount)
        if row.purpose == "training":
            one.training_total += amount
            one.training += amortised(amount, datetime.fromisoformat(row.created_at), as_of, life_days)
        else:
            one.evaluation += amount
    return sums


def _spread(one: _Sum, shares: Mapping[str, int]) -> dict[str, _Sum]:
    """Cut each amount by shares without losing a nano-unit; all of it to "" when nobody was served."""
    parts = {customer_id: _Sum() for customer_id in shares} or {"": _Sum()}
    weights = shares or {"": 1}
    whole = sum(weights.values())
    for name in ("training", "training_total", "evaluation"):
        amount, weight_before = getattr(one, name), 0
        for customer_id, weight in sorted(weights.items()):
            after = weight_before + weight
            setattr(parts[customer_id], name, amount * after // whole - amount * weight_before // whole)
            weight_before = after
    return parts


def _totals(customers: _Sums) -> _Sums:
    totals: _Sums = {}
    for (_, currency), one in customers.items():
        totals.setdefault(("total", currency), _Sum()).add(one)
    return totals


def _lines(sums: _Sums, names: Mapping[str, str]) -> list[MarginLine]:
    return [_line(key, one, names) for key, one in _sorted(sums.items())]


def _sorted(items: Iterable[tuple[tuple[str, str], _Sum]]) -> list[tuple[tuple[str, str], _Sum]]:
    return sorted(items, key=lambda item: (item[0][1], item[0][0]))


def _line(key: tuple[str, str], one: _Sum, names: Mapping[str, str]) -> MarginLine:
    revenue = one.usage + one.fees
    gross = revenue - one.serving - one.training - one.evaluation
    ratio = (Decimal(gross) / Decimal(revenue)).quantize(Decimal("0.0001")) if revenue else None
    return MarginLine(
        id=key[0],
        name=names.get(key[0], key[0]),
        currency=key[1],
        n_requests=one.n_requests,
        revenue=revenue,
        fees=one.fees,
        serving_cost=one.serving,
        training_cost=one.training,
        training_total=one.training_total,
        evaluation_cost=one.evaluation,
        gross_margin=gross,
        ratio=ratio,
    )
