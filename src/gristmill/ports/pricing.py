"""The pricing port: a pure, cumulative function from a period's quantity to money."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Protocol


class Pricing(Protocol):
    """A pricing plug-in. Invariant: `amount(0) = 0`, and it depends on nothing but its arguments."""

    def check(self, params: dict[str, Any]) -> None:
        """Refuse wrong params (UsageError naming the field)."""
        ...

    def amount(self, quantity: int, params: dict[str, Any]) -> Decimal:
        """Price in currency units of the first `quantity` units of a period."""
        ...
