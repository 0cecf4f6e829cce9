"""A third-party price: a flag fall for the first unit of a period, then so much for each."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gristmill.core.rating import decimal_field, known_fields
from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="flagfall",
    kind="pricing",
    summary='A flag fall, then a price for each unit: {"fall": "0.5", "each": "0.001"}.',
    implementation="mirror_pricing:FlagFall",
)


class FlagFall:
    """Params: `fall` and `each`, decimal texts."""

    def check(self, params: dict[str, Any]) -> None:
        """See `ports.pricing.Pricing`."""
        known_fields(params, ("fall", "each"), "params")
        for name in ("fall", "each"):
            decimal_field(params.get(name), name)

    def amount(self, quantity: int, params: dict[str, Any]) -> Decimal:
        """See `ports.pricing.Pricing`."""
        return Decimal(params["fall"]) + Decimal(params["each"]) * quantity if quantity else Decimal(0)
