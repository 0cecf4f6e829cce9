"""Rating: a pure function from (usage, plan version, prior position) to lines.

Invariant: to_nano(amount(before + q)) − to_nano(amount(before)), so that any partition of a period's usage
sums to the same, to the nano-unit. Of the prices of a meter the most specific model pattern counts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from gristmill.core.account import Plan, Price
from gristmill.core.errors import Forbidden, NotFound, UsageError
from gristmill.core.money import to_nano
from gristmill.core.rating import RatedLine
from gristmill.ports.discovery import find, load
from gristmill.ports.pricing import Pricing


@functools.cache
def pricing_plugin(name: str) -> Pricing:
    """The pricing plug-in of this name, loaded once a process."""
    plugin: Pricing = load(find("pricing", name))
    return plugin


def rate(price: Price, quantity: int, position_before: int) -> int:
    """Nano-units that `quantity` more units cost after `position_before` units of the same period."""
    pricing = pricing_plugin(price.pricing)
    before = to_nano(pricing.amount(position_before, price.params)) if position_before else 0
    return to_nano(pricing.amount(position_before + quantity, price.params)) - before


def matched_length(pattern: str, model: str) -> int | None:
    """How specifically `pattern` names `model` (longer is more), None when it does not.

    An exact name outranks any pattern; of the patterns ("ft:*", "*") the longer prefix counts.
    """
    if pattern == model:
        return len(model) + 1
    if pattern.endswith("*") and model.startswith(pattern[:-1]):
        return len(pattern) - 1
    return None


def check_prices(plan: Plan) -> None:
    """Refuse a plan with a price that cannot be charged.

    Raises:
        UsageError: wrong params, by field. NotFound: no such pricing plug-in.
    """
    for index, price in enumerate(plan.prices):
        try:
            pricing_plugin(price.pricing).check(price.params)
        except UsageError as error:
            where = f"prices.{index}.{error.param}" if error.param else f"prices.{index}"
            raise type(error)(f"prices.{index}: {error.message}", hint=error.hint, param=where) from None


class PluginRater:
    """The rater that the ledger and the gateway share; remembers which price each meter has.

    Plans are immutable by id, so what was found once for (plan, model, meters) stays true.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, str, tuple[str, ...]], dict[str, str]] = {}

    def price_keys(self, plan: Plan, model: str, meters: Iterable[str]) -> dict[str, str]:
        """Meter → price key for the meters that have a price; see `core.rating.Rater`."""
        found = self._found(plan, model, tuple(meters))
        if not found and plan.is_sellable:
            raise Forbidden(
                f"The plan {plan.name} has no price for the model {model!r}.",
                hint="A model without a price is not sold; ask the operator to add one to the plan.",
                param="model",
            )
        return dict(found)

    def _found(self, plan: Plan, model: str, meters: tuple[str, ...]) -> dict[str, str]:
        found = self._keys.get((plan.id, model, meters))
        if found is None:
            indexes = {meter: _price_index(plan, model, meter) for meter in meters}
            found = {meter: f"{plan.id}/{index}" for meter, index in indexes.items() if index is not None}
            if len(self._keys) >= 65536:  # model names come from registered releases; a bound all the same
                self._keys.clear()
            self._keys[plan.id, model, meters] = found
        return found

    def amount(self, plan: Plan, price_key: str, quantity: int) -> int:
        """Nano-units of the first `quantity` units of a period; 0 on an internal plan."""
        if not plan.is_sellable:
            return 0
        return rate(_price(plan, price_key), quantity, 0)

    def lines(
        self, plan: Plan, model: str, meters: Mapping[str, int], positions: Mapping[str, int]
    ) -> list[RatedLine]:
        """Rate one request; see `core.rating.Rater`. A meter of quantity 0 or without a price makes no line.

        Raises:
            Forbidden: the plan has no price at all for this model. UsageError: a negative quantity.
        """
        found = self._found(plan, model, tuple(meters))
        if not found and any(meters.values()):
            self.price_keys(plan, model, [price.meter for price in plan.prices])
        rated = []
        for meter, key in found.items():
            quantity, before = meters[meter], positions.get(key, 0)
            if quantity < 0:
                raise UsageError(f"{meter} is {quantity}; a quantity is not negative.", param=meter)
            if quantity:
                amount = rate(_price(plan, key), quantity, before) if plan.is_sellable else 0
                rated.append(RatedLine(meter, quantity, key, before, amount))
        return rated


def _price_index(plan: Plan, model: str, meter: str) -> int | None:
    best, best_length = None, -1
    for index, price in enumerate(plan.prices):
        length = matched_length(price.model, model) if price.meter == meter else None
        if length is not None and length > best_length:
            best, best_length = index, length
    return best


def _price(plan: Plan, key: str) -> Price:
    plan_id, _, index = key.rpartition("/")
    if plan_id != plan.id or int(index) >= len(plan.prices):
        raise NotFound(f"The plan {plan.name} has no price {key}.")
    return plan.prices[int(index)]
