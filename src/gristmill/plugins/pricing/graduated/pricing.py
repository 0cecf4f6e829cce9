"""Graduated: the part of a period's quantity that falls into a tier is charged at that tier's price.

Invariant: continuous and never decreasing in quantity; an included quota is a first tier at "0".
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gristmill.core.errors import UsageError
from gristmill.core.rating import count_field, decimal_field, known_fields, prorated


class Graduated:
    """Params: `tiers`, each {"up_to": last unit of the tier, "amount": decimal text, "per": units}.

    `up_to` grows from tier to tier; the last tier is open (null, or no `up_to`, as TOML has no null).
    """

    def check(self, params: dict[str, Any]) -> None:
        """See `gristmill.ports.pricing.Pricing`."""
        known_fields(params, ("tiers",), "params")
        tiers = params.get("tiers")
        if not isinstance(tiers, list) or not tiers:
            raise UsageError("tiers is empty; give at least one open tier.", param="tiers")
        reached = 0
        for index, tier in enumerate(tiers):
            where = f"tiers.{index}"
            known_fields(tier, ("up_to", "amount", "per"), where)
            decimal_field(tier.get("amount"), f"{where}.amount")
            count_field(tier.get("per", 1), f"{where}.per")
            up_to, is_last = tier.get("up_to"), index == len(tiers) - 1
            if (up_to is None) != is_last:
                problem = "the last tier is open" if is_last else "only the last tier is open"
                raise UsageError(f"{where}.up_to is {up_to!r}; {problem}.", param=f"{where}.up_to")
            if up_to is not None:
                if count_field(up_to, f"{where}.up_to") <= reached:
                    raise UsageError(
                        f"{where}.up_to is {up_to}; it must exceed the tier before it ({reached}).",
                        param=f"{where}.up_to",
                    )
                reached = up_to

    def amount(self, quantity: int, params: dict[str, Any]) -> Decimal:
        """See `gristmill.ports.pricing.Pricing`."""
        total, reached = Decimal(0), 0
        for tier in params["tiers"]:
            up_to = tier.get("up_to")
            end = quantity if up_to is None else min(quantity, up_to)
            if end > reached:
                total += prorated(Decimal(tier["amount"]), end - reached, tier.get("per", 1))
                reached = end
        return total
