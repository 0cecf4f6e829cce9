"""Rating: what usage costs, whatever way it is cut."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.core.account import Limits, Plan, Price
from gristmill.core.errors import Forbidden, GristmillError, UnknownField, UsageError
from gristmill.stages.bill.rate import PluginRater, check_prices, pricing_plugin, rate
from gristmill.testing.money import graduated, per_unit

RATER = PluginRater()
DECIMALS = st.decimals(min_value=0, max_value=50, places=6).map(str)
PERS = st.sampled_from([1, 3, 7, 1000, 10**6])
QUANTITIES = st.lists(st.integers(0, 10**7), min_size=1, max_size=12)


def plan_of(*prices: Price, billing: str = "invoice", plan_id: str = "plan_x") -> Plan:
    """A plan version in memory."""
    return Plan(plan_id, "basic", 1, "USD", billing, 0, prices, Limits(), ("*",))


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """A per-unit price, or a graduated one of up to four tiers."""
    if draw(st.booleans()):
        return per_unit("items", draw(DECIMALS), draw(PERS))
    bounds: list[int | None] = sorted(draw(st.sets(st.integers(1, 10**7), max_size=3)))  # type: ignore[assignment] # widened: the last is open
    tiers = [{"up_to": up_to, "amount": draw(DECIMALS), "per": draw(PERS)} for up_to in [*bounds, None]]
    return Price("items", "graduated", {"tiers": tiers})


def naive(price: Price, quantity: int) -> Fraction:
    """A second rater, unit interval by unit interval in exact fractions."""
    if price.pricing == "per_unit":
        return Fraction(price.params["amount"]) * quantity / price.params["per"]
    total, done = Fraction(0), 0
    for tier in price.params["tiers"]:
        room = quantity - done if tier["up_to"] is None else max(0, min(quantity, tier["up_to"]) - done)
        total += Fraction(tier["amount"]) * room / tier["per"]
        done += room
    return total


@given(prices(), QUANTITIES)
def test_any_partition_sums_to_the_same(price: Price, quantities: list[int]) -> None:
    """Broken: a customer could pay less or more by cutting the same usage into other requests."""
    position, charged = 0, 0
    for quantity in quantities:
        charged += rate(price, quantity, position)
        position += quantity
    assert charged == rate(price, sum(quantities), 0)


@given(prices(), st.integers(0, 10**8), st.integers(0, 10**6))
def test_it_agrees_with_a_naive_rater_and_never_falls(price: Price, quantity: int, more: int) -> None:
    """Broken: tiers are computed wrongly, or using more could cost less."""
    amount = rate(price, quantity, 0)
    assert abs(amount - naive(price, quantity) * 10**9) <= Fraction(1, 2)
    assert rate(price, more, quantity) >= 0


@given(prices(), QUANTITIES, st.randoms(use_true_random=False))
def test_order_changes_no_sum(price: Price, quantities: list[int], random: Any) -> None:
    """Broken: which of two requests settles first would change the invoice."""
    plan = plan_of(price, plan_id="plan_o")
    shuffled = list(quantities)
    random.shuffle(shuffled)
    totals = []
    for order in (quantities, shuffled):
        positions: dict[str, int] = {}
        total = 0
        for quantity in order:
            for line in PluginRater().lines(plan, "m", {"items": quantity}, positions):
                total += line.amount
                positions[line.price] = line.position_before + line.quantity
        totals.append(total)
    assert totals[0] == totals[1]


def test_an_included_quota_is_free_and_the_next_unit_is_not() -> None:
    """Broken: the included quota is charged, or the overage is not."""
    price = graduated("items", 1000, "1.20", 1000)
    assert rate(price, 1000, 0) == 0
    assert rate(price, 1, 1000) == 1_200_000
    assert rate(price, 2000, 500) == 1_800_000_000


def test_the_most_specific_price_counts() -> None:
    """Broken: a fine-tune or a named model is sold at the general price."""
    plan = plan_of(
        per_unit("items", "1", 1),
        per_unit("items", "2", 1, model="ft:*"),
        per_unit("items", "3", 1, model="ft:base:acme:x:1"),
        per_unit("items", "4", 1, model="ft:base:*"),
        plan_id="plan_s",
    )
    models = ["reviewdesk", "ft:other:acme:x:1", "ft:base:acme:x:1", "ft:base:acme:y:1"]
    keys = [RATER.price_keys(plan, model, ["items"])["items"] for model in models]
    assert keys == ["plan_s/0", "plan_s/1", "plan_s/2", "plan_s/3"]
    assert RATER.amount(plan, "plan_s/2", 5) == 15 * 10**9


def test_a_model_without_a_price_is_refused_never_free() -> None:
    """Broken: an unknown price is treated as zero, and usage is given away."""
    plan = plan_of(per_unit("items", "1", model="reviewdesk"), plan_id="plan_f")
    with pytest.raises(Forbidden, match="assistant"):
        RATER.price_keys(plan, "assistant", ["items"])
    with pytest.raises(Forbidden, match="assistant"):
        RATER.lines(plan, "assistant", {"items": 3}, {})
    assert RATER.lines(plan, "reviewdesk", {"items": 0}, {}) == []


def test_an_internal_plan_costs_nothing() -> None:
    """Broken: the operator's own use would be booked as revenue."""
    plan = plan_of(per_unit("items", "1", 1), billing="internal", plan_id="plan_i")
    assert RATER.amount(plan, "plan_i/0", 10) == 0
    assert [line.amount for line in RATER.lines(plan, "x", {"items": 10}, {})] == [0]
    assert RATER.lines(plan_of(billing="internal", plan_id="plan_j"), "x", {"items": 10}, {}) == []


@pytest.mark.parametrize(
    ("pricing", "params", "field"),
    [
        ("per_unit", {"amount": 0.15, "per": 1}, "amount"),
        ("per_unit", {"amount": 1, "per": 1}, "amount"),
        ("per_unit", {"amount": "-1"}, "amount"),
        ("per_unit", {"amount": "NaN"}, "amount"),
        ("per_unit", {"amount": "1", "per": 1.5}, "per"),
        ("per_unit", {"amount": "1", "per": 0}, "per"),
        ("per_unit", {"amount": "1", "pr": 1}, "params.pr"),
        ("graduated", {}, "tiers"),
        ("graduated", {"tiers": [{"up_to": 5, "amount": "1"}]}, "tiers.0.up_to"),
        ("graduated", {"tiers": [{"amount": "1"}, {"amount": "1"}]}, "tiers.0.up_to"),
        ("graduated", {"tiers": [{"up_to": 5, "amount": 0.5}, {"amount": "1"}]}, "tiers.0.amount"),
        (
            "graduated",
            {"tiers": [{"up_to": 5, "amount": "1"}, {"up_to": 5, "amount": "1"}, {"amount": "1"}]},
            "tiers.1.up_to",
        ),
    ],
)
def test_wrong_params_are_refused_by_field(pricing: str, params: dict[str, Any], field: str) -> None:
    """Broken: a float, a hole in the tiers or a misspelt key becomes a price."""
    with pytest.raises(UsageError) as caught:
        pricing_plugin(pricing).check(params)
    assert caught.value.param == field
    with pytest.raises(GristmillError) as in_plan:
        check_prices(plan_of(per_unit("items", "1"), Price("items", pricing, params)))
    assert in_plan.value.param == f"prices.1.{field}"


def test_an_unknown_key_names_the_nearest() -> None:
    """Broken: the operator has to guess what was meant."""
    with pytest.raises(UnknownField) as caught:
        pricing_plugin("per_unit").check({"amont": "1"})
    assert "'amount'" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["per_unit", "graduated"])
def test_nothing_costs_nothing(name: str) -> None:
    """Broken: the port's promise amount(0) = 0, on which cumulative rounding rests."""
    params = {"amount": "1"} if name == "per_unit" else {"tiers": [{"amount": "1"}]}
    pricing_plugin(name).check(params)
    assert pricing_plugin(name).amount(0, params) == Decimal(0)
