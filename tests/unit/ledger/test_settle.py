"""Settling requests: once, whole, exactly, and without taking a neighbour down."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from gristmill.core.errors import BrokenInvariant, Conflict, Forbidden, NotFound, UsageError
from gristmill.core.usage import Settled
from gristmill.stages.bill.rate import PluginRater
from gristmill.store.ledger.settle import serving_cost
from gristmill.store.tables.account import customer
from gristmill.store.tables.ledger import idempotency, usage_event
from gristmill.testing.money import World, graduated, per_unit

REUSED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_settlement_writes_usage_lines_postings_and_answer(world: World) -> None:
    """Broken: some part of the chain from request to money is missing."""
    plan = world.plan("pay", per_unit("input_tokens", "0.15"), per_unit("output_tokens", "0.60"))
    acme = world.customer("Acme", plan)
    request = world.request(acme, plan, {"input_tokens": 1000, "output_tokens": 10}, key="k")
    settled = world.ledger.settle_now(request)
    assert settled.amounts == {"input_tokens": 150_000, "output_tokens": 6_000}
    assert (settled.amount, settled.currency) == (156_000, "USD")
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 156_000
    assert world.ledger.balance("revenue:rel_a", "USD") == -156_000
    assert world.ledger.balance("cost:rel_a", "USD") == 50_000  # half a second at 0.36 an hour
    assert world.ledger.balance("accrued:hardware", "USD") == -50_000
    assert world.ledger.positions(f"sub_{acme}", "2026-11") == {f"{plan.id}/0": 1000, f"{plan.id}/1": 10}
    answer = world.ledger.find_answer(acme, "/v1/classify", "k")
    assert answer is not None
    assert (answer.request_id, answer.content) == (request.event.request_id, b"sealed")
    assert world.ledger.find_answer(acme, "/v1/other", "k") is None


def test_a_second_settlement_answers_as_the_first_and_writes_nothing(world: World) -> None:
    """Broken: a retry after a lost acknowledgement charges twice."""
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    request = world.request(acme, plan, {"items": 2})
    first = world.ledger.settle_now(request)
    changed = msgspec.structs.replace(request.event, meters={"items": 99})
    again = world.ledger.settle_now(msgspec.structs.replace(request, event=changed))
    assert again == first
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 2 * 10**9

    async def many() -> list[Settled]:
        other = world.request(acme, plan, {"items": 3})
        return await asyncio.gather(*[world.ledger.settle(other) for _ in range(20)])

    results = asyncio.run(many())
    assert len({result.amount for result in results}) == 1
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 5 * 10**9


def test_a_failing_settlement_takes_no_other_down(world: World) -> None:
    """Broken: one bad request in a group commit loses its neighbours' usage, or stops the writer."""
    plan = world.plan("pay", per_unit("items", "1", 1, model="reviewdesk"))
    acme = world.customer("Acme", plan)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}, key="taken"))
    good = [world.request(acme, plan, {"items": 1}) for _ in range(30)]
    bad: list[tuple[Any, type[Exception]]] = [
        (world.request(acme, plan, {"items": 1}, plan_id="plan_none"), NotFound),
        (world.request(acme, plan, {"items": 1}, model="unsold"), Forbidden),
        (world.request(acme, plan, {"items": 1}, key="taken"), Conflict),
        (world.request(acme, plan, {"items": -1}), UsageError),
        (world.request(acme, plan, {"items": 1}, busy_s=float("nan")), UsageError),
        (world.request(acme, plan, {"items": 10**12}), UsageError),
    ]
    mixed = [*good[:10], *[request for request, _ in bad], *good[10:]]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*[world.ledger.settle(r) for r in mixed], return_exceptions=True)

    results = asyncio.run(all_at_once())
    for result, (_, error) in zip(results[10 : 10 + len(bad)], bad, strict=True):
        assert isinstance(result, error)
    assert sum(isinstance(result, Settled) for result in results) == 30
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 31 * 10**9
    with world.db.read() as connection:
        assert len(connection.execute(select(usage_event.c.request_id)).all()) == 31
        assert len(connection.execute(select(idempotency.c.key)).all()) == 1


@REUSED
@given(
    quantities=st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    in_flight=st.integers(1, 12),
    is_prepaid=st.booleans(),
)
def test_partition_and_concurrency_change_no_sum(
    world: World, quantities: list[int], in_flight: int, is_prepaid: bool
) -> None:
    """Broken: the ledger's total depends on how usage is cut into requests or which commits first."""
    billing = "prepaid" if is_prepaid else "invoice"
    plan = world.plan(world.clock.new_id("p"), graduated("items", 1000, "0.000777", 7), billing=billing)
    acme = world.customer("Acme", plan)
    expected = world.rater.amount(plan, f"{plan.id}/0", sum(quantities))
    if is_prepaid:
        world.ledger.top_up_now(acme, max(expected, 1), "USD", world.clock.new_id("pay"))
        world.ledger.open_lease_now(acme, "USD", max(expected, 1))
    waiting = iter([world.request(acme, plan, {"items": quantity}) for quantity in quantities])

    async def worker() -> int:
        return sum([(await world.ledger.settle(request)).amount for request in waiting])

    async def all_workers() -> int:
        return sum(await asyncio.gather(*[worker() for _ in range(in_flight)]))

    assert asyncio.run(all_workers()) == expected
    account = f"lease:{acme}:gateway" if is_prepaid else f"unbilled:{acme}"
    before = -max(expected, 1) if is_prepaid else 0
    assert world.ledger.balance(account, "USD") == before + expected
    assert world.sums() == {"USD": 0} or not any(quantities)


def test_what_was_not_held_is_not_billed_and_parks_the_account(world: World) -> None:
    """Broken: a wallet is overdrawn, or a broken hold goes unnoticed."""
    plan = world.plan("prepaid", per_unit("items", "1", 1), billing="prepaid")
    acme = world.customer("Acme", plan)
    world.ledger.top_up_now(acme, 5 * 10**9, "USD", "pay_1")
    world.ledger.open_lease_now(acme, "USD", 2 * 10**9)
    world.ledger.settle_now(world.request(acme, plan, {"items": 3}))  # the wallet covers what the lease lacks
    assert world.ledger.balance(f"wallet:{acme}", "USD") == -2 * 10**9
    with pytest.raises(BrokenInvariant):
        world.ledger.settle_now(world.request(acme, plan, {"items": 3}))
    assert world.ledger.balance(f"wallet:{acme}", "USD") == -2 * 10**9
    with world.db.read() as connection:
        reason = connection.scalar(select(customer.c.parked_reason).where(customer.c.id == acme))
    assert "costs 3000000000" in str(reason)


def test_a_period_starts_at_zero(world: World) -> None:
    """Broken: an included quota is not given again in the next month."""
    plan = world.plan("quota", graduated("items", 10, "1", 1))
    acme = world.customer("Acme", plan)
    amounts = [
        world.ledger.settle_now(world.request(acme, plan, {"items": 11}, period=period)).amount
        for period in ("2026-11", "2026-12", "2026-11")
    ]
    assert amounts == [10**9, 10**9, 11 * 10**9]


@pytest.mark.parametrize(
    ("busy_s", "rate", "nano"),
    [
        (0.0, "0.10", 0),
        (3600.0, "0.10", 10**8),
        (0.1, "0.36", 10_000),
        (1e-9, "3600", 1),
        (7.0, "0.10", 194_444),
    ],
)
def test_serving_cost_is_exact(busy_s: float, rate: str, nano: int) -> None:
    """Broken: measured seconds become money through a float."""
    assert serving_cost(busy_s, Decimal(rate)) == nano


def test_the_answer_of_another_customer_is_not_found(world: World) -> None:
    """Broken: an Idempotency-Key answers across customers."""
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme, other = world.customer("Acme", plan), world.customer("Other", plan)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}, key="same"))
    assert world.ledger.find_answer(other, "/v1/classify", "same") is None
    world.ledger.settle_now(world.request(other, plan, {"items": 1}, key="same"))


def test_internal_usage_costs_but_earns_nothing(world: World) -> None:
    """Broken: the operator's own use counts as revenue."""
    plan = world.plan("own", per_unit("items", "1", 1), billing="internal")
    own = world.customer("Own", plan)
    assert world.ledger.settle_now(world.request(own, plan, {"items": 7})).amount == 0
    assert world.ledger.balance("revenue:rel_a", "USD") == 0
    assert world.ledger.balance("cost:rel_a", "USD") > 0


def test_a_ledger_reopened_is_the_same(tmp_path: Path) -> None:
    """Broken: what was acknowledged is gone after a restart."""
    first = World(tmp_path, PluginRater())
    plan = first.plan("pay", per_unit("items", "1", 1))
    acme = first.customer("Acme", plan)
    request = first.request(acme, plan, {"items": 4})
    settled = first.ledger.settle_now(request)
    first.close()
    second = World(tmp_path, PluginRater())
    assert second.ledger.settle_now(request) == settled
    assert second.broken() == []
    second.close()
