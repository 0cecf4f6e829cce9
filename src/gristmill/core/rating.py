"""Rating: what a rater answers, and the checks that every price's settings pass.

Invariant: a price is written as decimal text, never as a float, and a line's amount is
to_nano(amount(position before + quantity)) − to_nano(amount(position before)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any, Protocol

import msgspec

from gristmill.core.account import Plan
from gristmill.core.errors import UnknownField, UsageError, did_you_mean

_CONTEXT = Context(prec=50, rounding=ROUND_HALF_EVEN)


class RatedLine(msgspec.Struct, frozen=True):
    """One meter of one request as money.

    Attributes:
        meter, quantity: what is charged. price: key "<plan id>/<index of the price in the plan>".
        position_before: quantity of this price settled earlier in the period. amount: nano-units.
    """

    meter: str
    quantity: int
    price: str
    position_before: int
    amount: int


class Rater(Protocol):
    """Turns quantities into money; the ledger writer and the gateway's holds share one."""

    def price_keys(self, plan: Plan, model: str, meters: Iterable[str]) -> dict[str, str]:
        """Meter → key of its price, for the meters that have one.

        Raises:
            Forbidden: no meter of this model has a price (and the plan is not internal).
        """
        ...

    def amount(self, plan: Plan, price_key: str, quantity: int) -> int:
        """Nano-units of the first `quantity` units of a period under one price."""
        ...

    def lines(
        self, plan: Plan, model: str, meters: Mapping[str, int], positions: Mapping[str, int]
    ) -> list[RatedLine]:
        """Rate one request.

        Args:
            plan: pinned version.
            model: public name.
            meters: meter → quantity.
            positions: price key → quantity settled before in the period (absent: 0).
        """
        ...


def prorated(amount: Decimal, quantity: int, per: int) -> Decimal:
    """`amount` × `quantity` / `per` to 50 significant digits, whatever the thread's decimal context is."""
    return _CONTEXT.divide(_CONTEXT.multiply(amount, quantity), per)


def decimal_field(value: Any, param: str) -> Decimal:
    """Read a price written as text, such as "0.15".

    Raises:
        UsageError: not text, not a finite decimal, or negative.
    """
    if not isinstance(value, str):
        raise UsageError(
            f"{param} is {value!r}, a {type(value).__name__}; a price is decimal text.",
            hint=f'Write it in quotes: {param} = "{value}".',
            param=param,
        )
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise UsageError(f"{param} is {value!r}, which is not a decimal number.", param=param) from None
    if not amount.is_finite() or amount < 0:
        raise UsageError(f"{param} is {value!r}; a price is finite and not negative.", param=param)
    return amount


def count_field(value: Any, param: str) -> int:
    """Read a whole number of at least 1, such as `per`.

    Raises:
        UsageError: anything else, floats included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{param} is {value!r}; it is a whole number of at least 1.", param=param)
    return value


def known_fields(document: Any, known: tuple[str, ...], param: str) -> dict[str, Any]:
    """Check that a document is a table with no key but `known`.

    Raises:
        UsageError: not a table. UnknownField: a key nobody reads, with the nearest known one.
    """
    if not isinstance(document, dict):
        raise UsageError(f"{param} is {document!r}; it is a table with {', '.join(known)}.", param=param)
    for name in document:
        if name not in known:
            hint = did_you_mean(str(name), known, f"Known: {', '.join(known)}.")
            raise UnknownField(f"{param} has an unknown key {name!r}.", hint=hint, param=f"{param}.{name}")
    return document
