"""The invoice as PDF: one page on which every amount adds up."""

from __future__ import annotations

import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from gristmill.core.invoice import Invoice, InvoiceLine
from gristmill.stages.bill.pdf import Seller, render

FEE = InvoiceLine("Plan business, monthly fee, November 2026", "fee", 1, 49 * 10**9, period="2026-11")
USAGE = InvoiceLine(
    "reviewdesk: items", "items", 1337, 404_400_001, 3, "reviewdesk", "rel_a", period="2026-11"
)
PREPAID = InvoiceLine(
    "ft:x: output tokens", "output_tokens", 5, 8_000, 1, "ft:x", "rel_b", paid_from_wallet=True
)
INVOICE = Invoice(
    customer_id="cust_1",
    customer_name="北京示例科技有限公司 #strong[x] $1 @y",
    period="2026-11",
    currency="USD",
    lines=(FEE, USAGE, PREPAID),
    subtotal=49_404_408_001,
    prepaid=8_000,
    rounding=-4_400_001,
    total=49_400_000_000,
    id="inv_1",
    number=7,
    issued_at="2026-12-01T00:00:00+00:00",
)
SELLER = Seller("Millstream Models GmbH", ("Mühlenweg 4, 10115 Berlin",))


def printed(pdf: bytes, folder: Path) -> str:
    """The text of a PDF as laid out."""
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    path = folder / "invoice.pdf"
    path.write_bytes(pdf)
    done = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True)
    return done.stdout


def test_it_shows_everything_and_adds_up(tmp_path: Path) -> None:
    """Broken: a figure is missing or cut, or the printed lines do not sum to the printed total."""
    pdf = render(INVOICE, SELLER)
    assert pdf.startswith(b"%PDF-")
    text = printed(pdf, tmp_path)
    for needed in (
        "Millstream Models GmbH",
        "INV-000007",
        "1 December 2026",
        "30 November 2026",
        "page 1 of 1",
    ):
        assert needed in text
    for needed in ("1,337", "3 requests", "paid from wallet", "49.40 USD", "release rel_a"):
        assert needed in text
    assert "#strong[x]" in text  # a customer's name is text, never markup
    amounts = ["49.000000000", "0.404400001", "0.000008000"]
    deductions = ["−0.000008000", "−0.004400001"]
    for amount in amounts + deductions:
        assert amount in text
    total = sum(Decimal(amount.replace("−", "-")) for amount in amounts + deductions)
    assert total == Decimal("49.40")


def test_the_same_invoice_gives_the_same_bytes() -> None:
    """Broken: an issued invoice's PDF changes from one download to the next."""
    assert render(INVOICE, SELLER) == render(INVOICE, SELLER)


def test_a_preview_says_that_it_is_one(tmp_path: Path) -> None:
    """Broken: a preview could be taken for an invoice."""
    empty = Invoice("cust_1", "Acme", "2026-11", "JPY", (), 0, 0, 0, 0)
    text = printed(render(empty, SELLER), tmp_path)
    assert "Invoice preview" in text
    assert "not issued" in text
    assert "0 JPY" in text
