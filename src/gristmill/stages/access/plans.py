"""Plans from their specification: every price checked by its pricing plug-in before a version exists.

Invariant: a plan that cannot be rated is never stored, and a quota names a meter that has a price (usage is
counted by price, so a quota on anything else would never bite).
"""

from __future__ import annotations

from gristmill.core.account import Limits, Plan, Price
from gristmill.core.errors import UsageError
from gristmill.core.money import to_nano
from gristmill.core.recipe import PlanSpec
from gristmill.ports import discovery

INTERNAL = "internal"


def to_plan(spec: PlanSpec, plan_id: str, number: int) -> Plan:
    """Check a specification and freeze it as one version.

    Raises:
        NotFound: an unknown pricing plug-in. UsageError: params it refuses, or a quota without a price.
    """
    if spec.name == INTERNAL:
        raise UsageError(
            f"The plan name {INTERNAL!r} is kept for the seeded plan.",
            hint="Choose another name.",
            param="name",
        )
    for price in spec.prices:
        discovery.load(discovery.find("pricing", price.pricing)).check(price.params)
    if spec.billing != "internal" and not spec.prices:
        raise UsageError(f"Plan {spec.name!r} has no price, so nothing could be sold on it.", param="prices")
    priced = {price.meter for price in spec.prices}
    for meter, limit in spec.quota.items():
        if meter not in priced:
            raise UsageError(
                f"The quota on {meter!r} has no price to count by.",
                hint=f"Add a price for {meter} (it may be zero).",
                param=f"quota.{meter}",
            )
        if limit < 0:
            raise UsageError(f"The quota on {meter!r} is negative.", param=f"quota.{meter}")
    return Plan(
        id=plan_id,
        name=spec.name,
        number=number,
        currency=spec.currency,
        billing=spec.billing,
        fee=to_nano(spec.fee),
        prices=tuple(Price(p.meter, p.pricing, p.params, p.model) for p in spec.prices),
        limits=Limits(spec.requests_per_minute, spec.tokens_per_minute, dict(spec.quota)),
        models=tuple(spec.models),
    )


def internal_plan(plan_id: str, currency: str) -> Plan:
    """The seeded plan: everything included at a declared price of zero, no limits, kept out of revenue."""
    return Plan(
        id=plan_id,
        name=INTERNAL,
        number=1,
        currency=currency,
        billing="internal",
        fee=0,
        prices=(),
        limits=Limits(),
        models=("*",),
    )
