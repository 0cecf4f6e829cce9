"""Operations on what was used, billed and earned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from pydantic import Field

from gristmill.app.billing import Billing
from gristmill.app.operations.base import Emit, Params, operation
from gristmill.app.platform import Platform
from gristmill.core.errors import Conflict, UsageError
from gristmill.core.invoice import Invoice
from gristmill.core.money import format_money
from gristmill.stages.access import queries
from gristmill.stages.monitor.margin import MarginLine

_DIGITS = 6


class UsageShow(Params):
    """Parameters of `usage show`."""

    positional: ClassVar[tuple[str, ...]] = ("customer",)
    customer: str = Field(description="Customer id, slug or name.")
    period: str | None = Field(None, description="Month, e.g. 2026-11; the present one when absent.")


@operation("usage", "show", UsageShow, is_read=True)
def usage_show(platform: Platform, params: UsageShow, _emit: Emit) -> dict[str, Any]:
    """Show what a customer used in a month, by model and meter."""
    owner = _customer(platform, params.customer)
    period = params.period or _month(platform.clock.now())
    summary = _billing(platform).usage(owner, period)
    meters: dict[str, int] = {}
    for line in summary.lines:
        meters[line.meter] = meters.get(line.meter, 0) + line.quantity
    amounts = {currency: format_money(nano, currency, _DIGITS) for currency, nano in summary.amounts.items()}
    lines = [
        {name: getattr(line, name) for name in ("model", "release_id", "meter", "quantity", "n_requests")}
        | {"amount": format_money(line.amount, line.currency, _DIGITS)}
        for line in summary.lines
    ]
    return {
        "id": owner,
        "period": period,
        "requests": summary.n_requests,
        "meters": meters,
        "amounts": amounts,
        "lines": lines,
    }


class RequestName(Params):
    """Parameters of `request show`."""

    positional: ClassVar[tuple[str, ...]] = ("request",)
    request: str = Field(description="Request id (the header x-request-id of an answer).")


@operation("request", "show", RequestName, is_read=True)
def request_show(platform: Platform, params: RequestName, _emit: Emit) -> dict[str, Any]:
    """Show everything behind one request: release, run, data, rated lines, postings, invoice."""
    trace: dict[str, Any] = msgspec.to_builtins(_billing(platform).request(params.request))
    return {"id": params.request} | trace


class InvoiceOf(Params):
    """Parameters of `invoice preview` and `invoice issue`."""

    positional: ClassVar[tuple[str, ...]] = ("customer",)
    customer: str = Field(description="Customer id, slug or name.")
    period: str | None = Field(None, description="Month of service, e.g. 2026-11.")
    as_of: str | None = Field(None, description="Day (or ISO time) that counts as now, e.g. 2026-12-01.")
    currency: str | None = Field(None, description="ISO 4217 code; the plan's when absent.")


@operation("invoice", "preview", InvoiceOf, is_read=True)
def invoice_preview(platform: Platform, params: InvoiceOf, _emit: Emit) -> dict[str, Any]:
    """Show the invoice of a month as it would be issued; the present month when none is named."""
    at = _instant(params.as_of)
    period = params.period or _month(at or platform.clock.now())
    owner = _customer(platform, params.customer)
    return _document(_billing(platform).preview_invoice(owner, period, at, params.currency))


@operation("invoice", "issue", InvoiceOf)
def invoice_issue(platform: Platform, params: InvoiceOf, _emit: Emit) -> dict[str, Any]:
    """Issue the invoice of a month that has ended (the last one when none is named); it cannot be changed."""
    at = _instant(params.as_of)
    last = (at or platform.clock.now()).replace(day=1) - timedelta(days=1)
    owner = _customer(platform, params.customer)
    issued = _billing(platform).issue_invoice(owner, params.period or _month(last), at, params.currency)
    return _document(issued)


class InvoiceList(Params):
    """Parameters of `invoice list`."""

    customer: str | None = Field(None, description="Only this customer's.")


@operation(
    "invoice",
    "list",
    InvoiceList,
    is_read=True,
    columns=("id", "number", "customer_name", "period", "total_shown"),
)
def invoice_list(platform: Platform, params: InvoiceList, _emit: Emit) -> list[dict[str, Any]]:
    """List issued invoices."""
    owner = None if params.customer is None else _customer(platform, params.customer)
    return [_document(each) for each in _billing(platform).list_invoices(owner)]


class InvoiceName(Params):
    """Parameters of `invoice show`."""

    positional: ClassVar[tuple[str, ...]] = ("invoice",)
    invoice: str = Field(description="Invoice id or number.")


@operation("invoice", "show", InvoiceName, is_read=True)
def invoice_show(platform: Platform, params: InvoiceName, _emit: Emit) -> dict[str, Any]:
    """Show an issued invoice."""
    return _document(_billing(platform).get_invoice(params.invoice))


class InvoicePdf(InvoiceName):
    """Parameters of `invoice pdf`."""

    output: Path = Field(description="File to write.")


@operation("invoice", "pdf", InvoicePdf, is_read=True)
def invoice_pdf(platform: Platform, params: InvoicePdf, _emit: Emit) -> dict[str, Any]:
    """Write an issued invoice as PDF."""
    if params.output.exists():
        raise Conflict(f"{params.output} exists already.", hint="Name another file.", param="output")
    billing = _billing(platform)
    found = billing.get_invoice(params.invoice)
    params.output.write_bytes(billing.invoice_pdf(found))
    return {"id": found.id, "path": str(params.output), "bytes": params.output.stat().st_size}


class MarginShow(Params):
    """Parameters of `margin show`."""

    customer: str | None = Field(None, description="Only this customer's line.")
    as_of: str | None = Field(None, description="Day (or ISO time) up to which bookings count.")


@operation("margin", "show", MarginShow, is_read=True)
def margin_show(platform: Platform, params: MarginShow, _emit: Emit) -> dict[str, Any]:
    """Show revenue, cost and gross margin by customer and by release."""
    found = _billing(platform).margin(_instant(params.as_of))
    if params.customer is not None:
        owner = _customer(platform, params.customer)
        lines = [_margin_line(line) for line in found.customers if line.id == owner]
        return {"as_of": found.as_of, "id": owner, "lines": lines}
    return {
        "as_of": found.as_of,
        "training_life_days": found.life_days,
        "customers": [_margin_line(line) for line in found.customers],
        "releases": [_margin_line(line) for line in found.releases],
        "totals": [_margin_line(line) for line in found.totals],
    }


def _margin_line(line: MarginLine) -> dict[str, Any]:
    money = (
        "revenue",
        "fees",
        "serving_cost",
        "training_cost",
        "training_total",
        "evaluation_cost",
        "gross_margin",
    )
    shown = {name: format_money(getattr(line, name), line.currency, _DIGITS) for name in money}
    ratio = None if line.ratio is None else f"{100 * line.ratio:.2f} %"
    return (
        {"id": line.id, "name": line.name, "requests": line.n_requests} | shown | {"margin_of_revenue": ratio}
    )


def _document(invoice: Invoice) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(invoice)
    money = ("subtotal", "prepaid", "rounding")
    shown = {f"{name}_shown": format_money(getattr(invoice, name), invoice.currency, 9) for name in money}
    return document | shown | {"total_shown": format_money(invoice.total, invoice.currency)}


def _billing(platform: Platform) -> Billing:
    return Billing(platform.db, platform.ledger, platform.clock, platform.settings.seller)


def _customer(platform: Platform, name: str) -> str:
    with platform.db.read() as connection:
        return queries.find_customer(connection, name).id


def _month(at: datetime) -> str:
    return at.strftime("%Y-%m")


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a day or time.", hint="Write 2026-12-01.", param="as_of") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
