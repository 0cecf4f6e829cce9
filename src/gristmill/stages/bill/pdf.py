"""An invoice as PDF: Typst lays out what is formatted here; amounts add up on paper to the last digit.

Invariant: every amount is printed with the same number of decimals, as many as the finest needs, so that the
printed lines, prepaid part and rounding sum to the printed total. The same invoice gives the same bytes.
"""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import msgspec

from gristmill.core.invoice import Invoice, InvoiceLine
from gristmill.core.money import minor_digits, to_decimal
from gristmill.stages.bill.invoice import meter_label
from gristmill.stages.bill.period import bounds, month_name

_TEMPLATE = Path(__file__).parent / "templates" / "invoice.typ"


class Seller(msgspec.Struct, frozen=True):
    """Who issues: company name, and lines below it (address, registration, e-mail)."""

    name: str
    details: tuple[str, ...] = ()


def number_text(invoice: Invoice) -> str:
    """`INV-000007`, or "Preview" before it is issued."""
    return f"INV-{invoice.number:06d}" if invoice.number else "Preview"


def render(invoice: Invoice, seller: Seller) -> bytes:
    """Lay out an invoice; returns the PDF's bytes. Typst reads only the template's folder."""
    import typst

    issued_at = datetime.fromisoformat(invoice.issued_at) if invoice.issued_at else None
    pdf: bytes = typst.compile(
        str(_TEMPLATE),
        root=str(_TEMPLATE.parent),
        sys_inputs={"data": json.dumps(_data(invoice, seller, issued_at), ensure_ascii=False)},
        timestamp=int((issued_at or bounds(invoice.period)[0]).timestamp()),
    )
    return pdf


def _data(invoice: Invoice, seller: Seller, issued_at: datetime | None) -> dict[str, object]:
    start, end = bounds(invoice.period)
    last_day = datetime.fromtimestamp(end.timestamp() - 1, tz=end.tzinfo)
    digits = _digits(invoice)
    return {
        "seller": {"name": seller.name, "details": list(seller.details)},
        "customer": {"name": invoice.customer_name, "id": invoice.customer_id},
        "is_issued": issued_at is not None,
        "number": number_text(invoice),
        "date": _date(issued_at) if issued_at else "not issued",
        "period": f"{_date(start)} – {_date(last_day)}",
        "month": month_name(invoice.period),
        "currency": invoice.currency,
        "lines": [_line(line, digits) for line in invoice.lines],
        "subtotal": _money(invoice.subtotal, digits),
        "prepaid": _money(-invoice.prepaid, digits) if invoice.prepaid else "",
        "rounding": _money(invoice.rounding, digits) if invoice.rounding else "",
        "total": _money(invoice.total, minor_digits(invoice.currency)),
    }


def _line(line: InvoiceLine, digits: int) -> dict[str, str]:
    is_fee = line.meter == "fee"
    notes = [f"release {line.release_id}"] if line.release_id else []
    if line.n_requests:
        notes.append(f"{line.n_requests:,} request{'s' if line.n_requests > 1 else ''}")
    if line.paid_from_wallet:
        notes.append("paid from wallet")
    return {
        "description": line.description,
        "note": " · ".join(notes),
        "quantity": f"{line.quantity:,}",
        "unit": "month" if is_fee else meter_label(line.meter).split()[-1].lower(),
        "amount": _money(line.amount, digits),
    }


def _digits(invoice: Invoice) -> int:
    amounts = [line.amount for line in invoice.lines] + [invoice.rounding]
    needed = [-int(to_decimal(amount).normalize().as_tuple().exponent) for amount in amounts if amount]
    return max([minor_digits(invoice.currency), *needed])


def _money(nano: int, digits: int) -> str:
    text = f"{to_decimal(nano).quantize(Decimal(1).scaleb(-digits)):,}"
    return text.replace("-", "−")  # a minus sign, as wide as a digit


def _date(at: datetime) -> str:
    return f"{at.day} {at.strftime('%B %Y')}"
