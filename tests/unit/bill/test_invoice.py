"""Invoices: what a month costs, said once, numbered without a gap, and never changed."""

from __future__ import annotations

import threading
from datetime import datetime

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gristmill.app.billing import Billing
from gristmill.core.errors import BrokenInvariant, Conflict, NotFound, Unavailable, UsageError
from gristmill.core.invoice import Invoice
from gristmill.core.money import round_to_minor
from gristmill.testing.money import World, graduated, per_unit

UNIT = 10**9
CENT = 10**7
CLOSED = datetime.fromisoformat("2026-12-01T00:00:00+00:00")


def billing_of(world: World) -> Billing:
    """Billing over a world's ledger."""
    return Billing(world.db, world.ledger, world.clock, "Millstream Models")


def test_a_month_is_previewed_then_issued_as_previewed(world: World) -> None:
    """Broken: what is issued is not what was shown, or the ledger does not say the same."""
    plan = world.plan("business", graduated("items", 1000, "1.20", 1000), fee="49.00")
    acme = world.customer("Acme", plan)
    for quantity in (900, 400, 37):
        world.ledger.settle_now(world.request(acme, plan, {"items": quantity}))
    billing = billing_of(world)
    shown = billing.preview_invoice(acme, "2026-11", CLOSED)
    assert [(line.meter, line.quantity, line.amount, line.n_requests) for line in shown.lines] == [
        ("fee", 1, 49 * UNIT, 0),
        ("items", 1337, 404_400_000, 3),
    ]
    assert (shown.subtotal, shown.total, shown.rounding) == (49_404_400_000, 49_400_000_000, -4_400_000)
    assert (shown.number, shown.id, shown.issued_at) == (0, "", "")
    issued = billing.issue_invoice(acme, "2026-11", CLOSED)
    assert issued == msgspec.structs.replace(shown, id=issued.id, number=1, issued_at=issued.issued_at)
    assert issued.issued_at == "2026-12-01T00:00:00+00:00"
    assert billing.get_invoice("INV-000001") == billing.get_invoice(issued.id) == issued
    assert billing.list_invoices(acme) == [issued]
    assert world.ledger.balance(f"receivable:{acme}", "USD") == issued.total
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 0
    assert world.ledger.balance("revenue:fees", "USD") == -49 * UNIT
    assert world.ledger.balance("rounding:invoices", "USD") == -issued.rounding


def test_a_second_invoice_for_a_month_names_the_first(world: World) -> None:
    """Broken: a month is invoiced twice."""
    plan = world.plan("business", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}))
    billing = billing_of(world)
    draft = billing.preview_invoice(acme, "2026-11", CLOSED)
    billing.issue_invoice(acme, "2026-11", CLOSED)
    for again in (
        lambda: billing.issue_invoice(acme, "2026-11", CLOSED),
        lambda: billing.preview_invoice(acme, "2026-11", CLOSED),
        lambda: world.ledger.issue_now(draft, "2026-12-01"),
    ):
        with pytest.raises(Conflict, match="Invoice 1 was issued"):
            again()


def test_late_usage_goes_onto_the_next_invoice_with_its_service_period(world: World) -> None:
    """Broken: usage that arrives after the month was closed is lost, or billed as of another month."""
    plan = world.plan("business", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}))
    billing = billing_of(world)
    billing.issue_invoice(acme, "2026-11", CLOSED)
    world.ledger.settle_now(world.request(acme, plan, {"items": 5}))
    world.ledger.settle_now(world.request(acme, plan, {"items": 7}, period="2026-12"))
    world.clock.set("2027-01-02T00:00:00+00:00")
    december = billing.issue_invoice(acme, "2026-12")
    assert [(line.period, line.amount) for line in december.lines] == [
        ("2026-11", 5 * UNIT),
        ("2026-12", 7 * UNIT),
    ]
    assert "service period November 2026" in december.lines[0].description
    assert "service period" not in december.lines[1].description
    assert december.number == 2
    with pytest.raises(Conflict, match="nothing to invoice"):
        billing.issue_invoice(acme, "2026-10")


def test_prepaid_usage_is_shown_and_not_owed_again(world: World) -> None:
    """Broken: what the wallet paid is billed once more."""
    plan = world.plan("prepaid", per_unit("items", "0.001", 1), billing="prepaid", fee="5")
    acme = world.customer("Acme", plan)
    world.ledger.top_up_now(acme, 10 * UNIT, "USD", "pay_1")
    world.ledger.open_lease_now(acme, "USD", 10 * UNIT)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1234}))
    invoice = billing_of(world).issue_invoice(acme, "2026-11", CLOSED)
    assert [line.paid_from_wallet for line in invoice.lines] == [False, True]
    assert (invoice.subtotal, invoice.prepaid, invoice.total) == (6_234_000_000, 1_234_000_000, 5 * UNIT)
    assert world.ledger.balance(f"receivable:{acme}", "USD") == 5 * UNIT


def test_internal_usage_and_foreign_currency_stay_off_the_invoice(world: World) -> None:
    """Broken: the operator invoices itself, or two currencies are added up."""
    own_plan = world.plan("own", per_unit("items", "1", 1), billing="internal")
    own = world.customer("Own", own_plan)
    world.ledger.settle_now(world.request(own, own_plan, {"items": 3}))
    billing = billing_of(world)
    assert billing.preview_invoice(own, "2026-11", CLOSED).lines == ()
    with pytest.raises(Conflict, match="nothing to invoice"):
        billing.issue_invoice(own, "2026-11", CLOSED)

    euro = world.plan("euro", per_unit("items", "2", 1), currency="EUR")
    dollar = world.plan("dollar", per_unit("items", "1", 1))
    acme = world.customer("Acme", dollar)
    world.ledger.settle_now(world.request(acme, euro, {"items": 3}))
    world.ledger.settle_now(world.request(acme, dollar, {"items": 3}))
    invoices = [billing.issue_invoice(acme, "2026-11", CLOSED, currency) for currency in (None, "EUR")]
    assert [(one.currency, one.total) for one in invoices] == [("USD", 3 * UNIT), ("EUR", 6 * UNIT)]


def test_a_month_that_has_not_ended_or_is_no_month_is_refused(world: World) -> None:
    """Broken: an invoice is issued for usage still to come, or for a typing slip."""
    acme = world.customer("Acme", world.plan("business", fee="9"))
    billing = billing_of(world)
    with pytest.raises(Conflict, match="has not ended") as caught:
        billing.issue_invoice(acme, "2026-11")
    assert "--as-of 2026-12-01" in str(caught.value.hint)
    assert billing.preview_invoice(acme, "2026-11").total == 9 * UNIT
    with pytest.raises(UsageError, match="not begun"):
        billing.preview_invoice(acme, "2026-12")
    for wrong in ("2026-13", "november", "2026-1", "2026-11-01"):
        with pytest.raises(UsageError, match="not a month"):
            billing.preview_invoice(acme, wrong)
    with pytest.raises(NotFound):
        billing.preview_invoice("cust_none", "2026-11")
    with pytest.raises(NotFound):
        billing.get_invoice("7")


def test_a_stale_or_false_draft_is_refused_whole(world: World) -> None:
    """Broken: lines that arrived meanwhile are marked as invoiced without being on the invoice."""
    plan = world.plan("business", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}))
    draft = billing_of(world).preview_invoice(acme, "2026-11", CLOSED)
    with pytest.raises(BrokenInvariant, match="add up"):
        world.ledger.issue_now(msgspec.structs.replace(draft, total=draft.total + CENT), "2026-12-01")
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}))
    with pytest.raises(Unavailable, match="arrived"):
        world.ledger.issue_now(draft, "2026-12-01")
    assert billing_of(world).issue_invoice(acme, "2026-11", CLOSED).number == 1


def test_numbers_have_no_gap_when_many_issue_at_once(world: World) -> None:
    """Broken: two invoices share a number, or a number is missing, when periods close together."""
    plan = world.plan("business", per_unit("items", "1", 1), fee="1")
    customers = [world.customer(f"C{index}", plan) for index in range(12)]
    issued: list[Invoice] = []
    refused: list[Conflict] = []

    def close_all(order: list[str]) -> None:
        billing = billing_of(world)
        for customer_id in order:
            world.ledger.settle_now(world.request(customer_id, plan, {"items": 1}))
            try:
                issued.append(billing.issue_invoice(customer_id, "2026-11", CLOSED))
            except Conflict as error:
                refused.append(error)

    orders = [customers, customers[::-1], customers[6:] + customers[:6]]
    threads = [threading.Thread(target=close_all, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(invoice.number for invoice in issued) == list(range(1, 13))
    assert len(refused) == 24


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    usage=st.lists(st.tuples(st.integers(1, 5000), st.sampled_from(["rel_a", "rel_b"])), max_size=8),
    fee=st.decimals(0, 100, places=4).map(str),
    currency=st.sampled_from(["USD", "JPY", "KWD"]),
    is_prepaid=st.booleans(),
)
def test_total_is_the_rounded_sum_of_lines(
    world: World, usage: list[tuple[int, str]], fee: str, currency: str, is_prepaid: bool
) -> None:
    """Broken: an invoice does not add up, or rounding happens anywhere but once."""
    plan = world.plan(
        world.clock.new_id("p"),
        per_unit("items", "0.0123457", 7),
        billing="prepaid" if is_prepaid else "invoice",
        fee=fee,
        currency=currency,
    )
    acme = world.customer("Acme", plan)
    if is_prepaid:
        world.ledger.top_up_now(acme, 1000 * UNIT, currency, acme)
        world.ledger.open_lease_now(acme, currency, 1000 * UNIT)
    for quantity, release_id in usage:
        world.ledger.settle_now(world.request(acme, plan, {"items": quantity}, release_id=release_id))
    try:
        invoice = billing_of(world).issue_invoice(acme, "2026-11", CLOSED)
    except Conflict:
        assert not usage
        assert not plan.fee
        return
    due = sum(line.amount for line in invoice.lines if not line.paid_from_wallet)
    assert invoice.total == round_to_minor(due, currency) == due + invoice.rounding
    assert invoice.subtotal - invoice.prepaid + invoice.rounding == invoice.total
    assert world.ledger.balance(f"receivable:{acme}", currency) == invoice.total
    assert world.ledger.balance(f"unbilled:{acme}", currency) == 0
