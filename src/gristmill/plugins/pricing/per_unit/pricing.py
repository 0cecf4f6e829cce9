"""Per unit: quantity × amount / per, in currency units.

Invariant: linear, so the price of a period depends on its total quantity alone.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gristmill.core.rating import count_field, decimal_field, known_fields, prorated


class PerUnit:
    """Params: `amount`, decimal text, for each `per` units (1 by default)."""

    def check(self, params: dict[str, Any]) -> None:
        """See `gristmill.ports.pricing.Pricing`."""
        known_fields(params, ("amount", "per"), "params")
        decimal_field(params.get("amount"), "amount")
        count_field(params.get("per", 1), "per")

    def amount(self, quantity: int, params: dict[str, Any]) -> Decimal:
        """See `gristmill.ports.pricing.Pricing`."""
        return prorated(Decimal(params["amount"]), quantity, params.get("per", 1))
