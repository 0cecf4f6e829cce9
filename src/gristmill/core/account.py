"""Customers, keys and plans: who may do what, and at what price.

Invariant: prices and plan terms are pinned by version id; a plan is never edited, a new version is added.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Price(msgspec.Struct, frozen=True):
    """How one meter of some models becomes money.

    Attributes:
        meter: input_tokens, output_tokens, items, requests, trained_tokens …
        model: public model name, or "*"; for fine-tunes also "ft:*". The most specific match counts.
        pricing: pricing plug-in, e.g. "per_unit" or "graduated". params: its settings (decimals as text).
    """

    meter: str
    pricing: str
    params: dict[str, Any]
    model: str = "*"


class Limits(msgspec.Struct, frozen=True):
    """Rate limits, None for none: requests and tokens a minute; quota: meter → hard limit per period."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    quota: dict[str, int] = {}


class Plan(msgspec.Struct, frozen=True):
    """One version of a plan.

    Attributes:
        id: version id `plan_…`; name; number 1, 2, …; currency ISO 4217.
        billing: "prepaid" (holds against the wallet) or "invoice" (in arrears) or "internal" (no revenue).
        fee: nano-units per calendar month (UTC), in advance. prices; limits.
        models: public names or patterns ("*", "ft:*") the plan includes.
    """

    id: str
    name: str
    number: int
    currency: str
    billing: str
    fee: int
    prices: tuple[Price, ...]
    limits: Limits
    models: tuple[str, ...]

    @property
    def is_sellable(self) -> bool:
        """Whether it earns revenue (the seeded `internal` plan does not)."""
        return self.billing != "internal"


class Customer(msgspec.Struct, frozen=True):
    """Who pays: id, display name, and slug (used in `ft:` model names)."""

    id: str
    name: str
    slug: str
    is_active: bool = True


class Caller(msgspec.Struct, frozen=True):
    """An authenticated key with everything a request needs to know: read once, from the key alone."""

    key_id: str
    customer: Customer
    plan: Plan
    subscription_id: str
    period_start: str
    period_end: str
