"""Margins and traces: what was earned, what it cost, and where each figure comes from."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.app.billing import Billing
from gristmill.core.errors import NotFound
from gristmill.stages.monitor.margin import MarginLine, amortised
from gristmill.store.tables.chain import artifact_cost, release
from gristmill.testing.money import World, per_unit

UNIT = 10**9
RELEASED = "2026-11-01T00:00:00+00:00"
HALF_LIFE = datetime.fromisoformat("2026-12-16T00:00:00+00:00")  # 45 of 90 days


def add_release(world: World, release_id: str, version: int, customer_id: str | None = None) -> None:
    """A release that cost 90 units to train and 1 to evaluate."""
    texts = dict.fromkeys(("task", "engine", "kind", "base", "digest", "licence", "card"), "x")
    row = {"id": release_id, "product": "reviewdesk", "version": version, "facts": {}, "created_at": RELEASED}
    with world.db.write() as connection:
        connection.execute(release.insert().values(texts | row | {"customer_id": customer_id}))
        for purpose, amount in (("training", 90 * UNIT), ("evaluation", UNIT)):
            cost = {"id": world.clock.new_id("cost"), "release_id": release_id, "purpose": purpose}
            paid = {"amount": amount, "currency": "USD", "seconds": 1.0, "at": RELEASED}
            connection.execute(artifact_cost.insert().values(cost | paid))


def by_id(lines: list[MarginLine]) -> dict[str, MarginLine]:
    """Lines by customer or release."""
    return {line.id: line for line in lines}


def test_margin_is_revenue_less_serving_training_and_evaluation(world: World) -> None:
    """Broken: the operator cannot tell whether a customer or a release makes money."""
    plan = world.plan("business", per_unit("items", "1", 1), fee="10")
    acme, other = world.customer("Acme", plan), world.customer("Other", plan)
    add_release(world, "rel_a", 1)
    add_release(world, "rel_own", 2, other)
    world.ledger.settle_now(world.request(acme, plan, {"items": 100}, busy_s=3600.0))
    world.ledger.settle_now(world.request(other, plan, {"items": 10}, busy_s=1200.0))
    billing = Billing(world.db, world.ledger, world.clock, "Seller")
    billing.issue_invoice(acme, "2026-11", datetime.fromisoformat("2026-12-01T00:00:00+00:00"))
    margin = billing.margin(HALF_LIFE)
    shared, own = by_id(margin.releases)["rel_a"], by_id(margin.releases)["rel_own"]
    assert (shared.revenue, shared.serving_cost) == (110 * UNIT, 480_000_000)
    assert (shared.training_cost, shared.training_total, shared.evaluation_cost) == (
        45 * UNIT,
        90 * UNIT,
        UNIT,
    )
    assert shared.gross_margin == 110 * UNIT - 480_000_000 - 46 * UNIT
    assert shared.name == "reviewdesk 1"
    assert (own.revenue, own.gross_margin, own.ratio) == (0, -46 * UNIT, None)
    first, second = by_id(margin.customers)[acme], by_id(margin.customers)[other]
    assert (first.name, first.fees, first.revenue, first.n_requests) == ("Acme", 10 * UNIT, 110 * UNIT, 1)
    assert first.training_cost + second.training_cost == 90 * UNIT
    assert first.training_cost == 45 * UNIT * 3 // 4
    assert (
        second.gross_margin == 10 * UNIT - second.serving_cost - second.training_cost - second.evaluation_cost
    )
    assert first.ratio == (Decimal(first.gross_margin) / first.revenue).quantize(Decimal("0.0001"))
    total = margin.totals[0]
    releases = sum(line.gross_margin for line in margin.releases)
    assert total.gross_margin == releases + 10 * UNIT == first.gross_margin + second.gross_margin


def test_training_of_an_unused_release_belongs_to_nobody_yet(world: World) -> None:
    """Broken: what training cost vanishes from the sums until the first request."""
    add_release(world, "rel_a", 1)
    margin = Billing(world.db, world.ledger, world.clock, "Seller").margin(HALF_LIFE)
    assert by_id(margin.customers)[""].training_cost == 45 * UNIT
    assert margin.totals[0].gross_margin == -46 * UNIT


@given(st.integers(0, 10**15), st.lists(st.integers(0, 200 * 86400), min_size=2, max_size=5))
def test_amortisation_grows_to_the_whole_and_stops(amount: int, seconds: list[int]) -> None:
    """Broken: more than the whole cost is charged, or less after its life."""
    start = datetime.fromisoformat(RELEASED)
    at = [datetime.fromtimestamp(start.timestamp() + s, tz=start.tzinfo) for s in sorted(seconds)]
    parts = [amortised(amount, start, one, 90) for one in at]
    assert parts == sorted(parts)
    assert all(0 <= part <= amount for part in parts)
    assert amortised(amount, start, datetime.fromisoformat("2027-11-01T00:00:00+00:00"), 90) == amount


def test_a_request_traces_to_price_postings_release_and_invoice(world: World) -> None:
    """Broken: a customer asks about a line and nobody can say what made it."""
    plan = world.plan("business", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    add_release(world, "rel_a", 1)
    request = world.request(acme, plan, {"items": 4, "requests": 1})
    world.ledger.settle_now(request)
    billing = Billing(world.db, world.ledger, world.clock, "Seller")
    before = billing.request(request.event.request_id)
    assert before.event == request.event
    assert (before.amount, before.currency) == (4 * UNIT, "USD")
    assert [(line.price.params["amount"], line.invoice_number) for line in before.lines] == [("1", None)]
    assert {group.purpose for group in before.groups} == {"usage", "cost"}
    assert before.evidence is not None
    assert before.evidence.version == 1
    billing.issue_invoice(acme, "2026-11", datetime.fromisoformat("2026-12-01T00:00:00+00:00"))
    assert billing.request(request.event.request_id).lines[0].invoice_number == 1
    with pytest.raises(NotFound):
        billing.request("req_none")


def test_usage_is_summed_for_paying_and_internal_customers(world: World) -> None:
    """Broken: `usage show` is empty for an internal plan, or counts another customer's requests."""
    plan = world.plan("business", per_unit("items", "1", 1))
    internal = world.plan("own", billing="internal")
    acme, own = world.customer("Acme", plan), world.customer("Own", internal)
    for _ in range(3):
        world.ledger.settle_now(world.request(acme, plan, {"items": 2}))
        world.ledger.settle_now(world.request(own, internal, {"items": 5, "input_tokens": 7}))
    world.ledger.settle_now(world.request(acme, plan, {"items": 2}, period="2026-12"))
    billing = Billing(world.db, world.ledger, world.clock, "Seller")
    paid, free = billing.usage(acme, "2026-11"), billing.usage(own, "2026-11")
    assert (paid.n_requests, paid.amounts) == (3, {"USD": 6 * UNIT})
    assert [(line.meter, line.quantity, line.amount) for line in paid.lines] == [("items", 6, 6 * UNIT)]
    assert [(line.meter, line.quantity) for line in free.lines] == [("input_tokens", 21), ("items", 15)]
    assert free.amounts == {"USD": 0}
