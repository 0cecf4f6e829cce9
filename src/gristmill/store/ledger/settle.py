"""Settlements: usage event, rated lines, position, idempotency record and postings of many requests at once.

Invariant: a request id settles once, a second settlement of it answers as the first did; lines are rated at
the position that this very transaction carries on, so order and grouping change no sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import msgspec
import structlog

from gristmill.core.account import Plan
from gristmill.core.errors import BrokenInvariant, UsageError
from gristmill.core.money import to_nano
from gristmill.core.posting import Entry, PostingGroup, transfer
from gristmill.core.rating import RatedLine, prorated
from gristmill.core.usage import Settled, Settlement, UsageEvent
from gristmill.store.ledger import accounts, sql
from gristmill.store.ledger.books import Books, Deltas, add_deltas, entry_rows

_log = structlog.get_logger(__name__)
_NS_PER_S = 10**9
_NS_PER_HOUR = 3600 * _NS_PER_S


def serving_cost(busy_s: float, hourly_rate: Decimal) -> int:
    """Nano-units that measured engine seconds cost: whole nanoseconds first, then exact decimal arithmetic.

    Raises:
        UsageError: the seconds are negative or not a number.
    """
    if not (math.isfinite(busy_s) and busy_s >= 0):
        raise UsageError(f"busy_s is {busy_s}; measured seconds are finite and not negative.", param="busy_s")
    busy_ns = round(busy_s * _NS_PER_S)
    return to_nano(prorated(hourly_rate, busy_ns, _NS_PER_HOUR))


def settle_many(books: Books, settlements: Sequence[Settlement]) -> list[Settled]:
    """Settle requests in order; raises for all when one fails (the writer then retries them one by one)."""
    found = _settled_before(books, [settlement.event.request_id for settlement in settlements])
    batch = _Batch(books)
    results = []
    for settlement in settlements:
        request_id = settlement.event.request_id
        if request_id not in found:
            found[request_id] = batch.add(settlement)
        results.append(found[request_id])
    batch.write()
    return results


def _settled_before(books: Books, request_ids: list[str]) -> dict[str, Settled]:
    rows = sql.select_in(books.cursor, sql.GET_SETTLED, request_ids)
    if not rows:
        return {}
    amounts: dict[str, dict[str, int]] = {row[0]: {} for row in rows}
    for request_id, meter, amount in sql.select_in(books.cursor, sql.GET_SETTLED_LINES, list(amounts)):
        amounts[request_id][meter] = amount
    return {row[0]: Settled(row[0], amounts[row[0]], row[1], row[2]) for row in rows}


class _Batch:
    """Collects the rows of many settlements, then writes each table once."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._at = books.now()
        self._events: list[sql.Row] = []
        self._lines: list[sql.Row] = []
        self._groups: list[sql.Row] = []
        self._entries: list[sql.Row] = []
        self._answers: list[sql.Row] = []
        self._request_ids: list[str] = []
        self._deltas: Deltas = {}
        self._positions: dict[tuple[str, str], dict[str, int]] = {}
        self._moved: dict[tuple[str, str, str], int] = {}
        self._leases: dict[tuple[str, str], int] = {}

    def add(self, settlement: Settlement) -> Settled:
        """Rate one settlement and collect its rows."""
        event = settlement.event
        plan = self._books.plan(event.plan_id)
        lines = self._rate(event, plan)
        amount = sum(line.amount for line in lines)
        cost = serving_cost(event.busy_s, self._books.hourly_rate)
        self._request_ids.append(event.request_id)
        self._events.append(_event_row(event, amount, cost, plan.currency))
        for line in lines:
            self._lines.append(_line_row(event, line, plan.currency))
        self._post(event.request_id, "usage", self._usage_entries(event, plan, amount))
        release = accounts.cost(event.release_id)
        self._post(event.request_id, "cost", transfer(release, accounts.HARDWARE, cost, self._books.currency))
        answer = settlement.answer
        if answer is not None:
            self._answers.append(
                (
                    answer.customer_id,
                    answer.route,
                    answer.key,
                    event.request_id,
                    answer.body_sha256,
                    answer.status,
                    answer.content,
                    int(answer.is_stream),
                    self._at,
                )
            )
        amounts = {line.meter: line.amount for line in lines}
        return Settled(event.request_id, amounts, amount, plan.currency)

    def write(self) -> None:
        """Write what was collected, one statement a table for up to 64 rows."""
        if not self._request_ids:
            return
        cursor = self._books.cursor
        sql.write(cursor, sql.USAGE_EVENT, self._events)
        sql.write(cursor, sql.RATED_LINE, self._lines)
        sql.write(
            cursor,
            sql.POSITION,
            [(sub, price, period, moved) for (sub, price, period), moved in sorted(self._moved.items())],
        )
        sql.write(cursor, sql.GROUP, self._groups)
        sql.write(cursor, sql.ENTRY, self._entries)
        self._books.move(self._deltas)
        sql.write(cursor, sql.IDEMPOTENCY, self._answers)
        sql.select_in(cursor, sql.DROP_JOURNAL, self._request_ids)

    def _rate(self, event: UsageEvent, plan: Plan) -> list[RatedLine]:
        where = (event.subscription_id, event.period)
        positions = self._positions.get(where)
        if positions is None:
            rows = self._books.cursor.execute(sql.GET_POSITIONS, where).fetchall()
            positions = self._positions[where] = dict(rows)
        lines = self._books.rater.lines(plan, event.model, event.meters, positions)
        for line in lines:
            key = (event.subscription_id, line.price, event.period)
            positions[line.price] = line.position_before + line.quantity
            self._moved[key] = self._moved.get(key, 0) + line.quantity
        return lines

    def _usage_entries(self, event: UsageEvent, plan: Plan, amount: int) -> tuple[Entry, ...]:
        revenue = accounts.revenue(event.release_id)
        if plan.billing != "prepaid":
            return transfer(accounts.unbilled(event.customer_id), revenue, amount, plan.currency)
        from_wallet = self._shortfall(event, plan.currency, amount)
        lease = accounts.lease(event.customer_id, self._books.gateway)
        return (
            Entry(lease, amount - from_wallet, plan.currency),
            Entry(accounts.wallet(event.customer_id), from_wallet, plan.currency),
            Entry(revenue, -amount, plan.currency),
        )

    def _shortfall(self, event: UsageEvent, currency: str, amount: int) -> int:
        """What the lease does not cover: 0 when holds are right; else the wallet pays if it can."""
        account = accounts.lease(event.customer_id, self._books.gateway)
        held = self._leases.get((account, currency))
        if held is None:
            held = -self._books.balance(account, currency)
        self._leases[account, currency] = max(0, held - amount)
        short = max(0, amount - held)
        if short:
            wallet = accounts.wallet(event.customer_id)
            owed = -self._books.balance(wallet, currency) - self._deltas.get((wallet, currency), 0)
            if short > owed:
                raise BrokenInvariant(
                    f"Request {event.request_id} costs {amount} nano-units and only {held} were held.",
                    hint="The account is parked; nothing was billed.",
                )
            _log.warning("lease_short", request_id=event.request_id, short=short, currency=currency)
        return short

    def _post(self, source: str, purpose: str, entries: Sequence[Entry]) -> None:
        kept = tuple(entry for entry in entries if entry.amount)
        if not kept:
            return  # nothing was owed, as inside an included quota
        group_id = f"grp_{source.removeprefix('req_')}-{purpose}"  # as unique and sortable as the request
        group = PostingGroup(group_id, source, purpose, kept, self._at)
        group.check()
        self._groups.append((group_id, source, purpose, self._at))
        self._entries += entry_rows(group)
        add_deltas(self._deltas, group.entries)


def _event_row(event: UsageEvent, amount: int, cost: int, currency: str) -> sql.Row:
    return (
        event.request_id,
        event.customer_id,
        event.key_id,
        event.subscription_id,
        event.plan_id,
        event.model,
        event.release_id,
        event.digest,
        event.endpoint,
        msgspec.json.encode(event.meters).decode(),
        event.emitted_tokens,
        event.status,
        event.started_at,
        event.ended_at,
        event.busy_s,
        event.latency_ms,
        event.period,
        amount,
        cost,
        currency,
    )


def _line_row(event: UsageEvent, line: RatedLine, currency: str) -> sql.Row:
    return (
        event.request_id,
        line.meter,
        event.customer_id,
        event.subscription_id,
        event.plan_id,
        line.price.rpartition("/")[2],
        event.model,
        event.release_id,
        event.period,
        line.quantity,
        line.position_before,
        line.amount,
        currency,
    )
