"""Holds: what in-flight requests may still cost, held against a customer's lease. Pure, no I/O, no clock.

Invariant: required = Σ over prices of amount(position + in flight) − amount(position) and, on a prepaid plan,
required ≤ leased after every step. Prices are cumulative and never fall, so the charges of any interleaving
of requests sum to no more than what is held for them, and an abandoned request gives everything back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gristmill.core.account import Plan
from gristmill.core.errors import Exhausted

Amount = Callable[[Plan, str, int], int]
"""Price in nano-units of the first `quantity` units of a period: (plan, price key, quantity)."""


class Book:
    """One subscription in one period: what was settled and what is in flight, by price key."""

    __slots__ = ("inflight", "is_prepaid", "meters", "period_end", "plan", "positions")

    def __init__(self, plan: Plan, positions: Mapping[str, int], period_end: str) -> None:
        self.plan = plan
        self.is_prepaid = plan.billing == "prepaid"
        self.positions = dict(positions)
        self.inflight: dict[str, int] = {}
        self.period_end = period_end
        # The meter of a price key "<plan id>/<index>", for quotas; other plans' keys are not counted here.
        self.meters = {f"{plan.id}/{index}": price.meter for index, price in enumerate(plan.prices)}

    def used(self, meter: str) -> int:
        """Settled and in-flight quantity of a meter over all its prices."""
        return sum(
            self.positions.get(key, 0) + self.inflight.get(key, 0)
            for key, name in self.meters.items()
            if name == meter
        )

    def check_quota(self, quantities: Mapping[str, int]) -> None:
        """Refuse what would go over a hard limit of the plan.

        Raises:
            Exhausted: scope "quota.<meter>" with limit, used (in flight included) and reset (ISO 8601).
        """
        for meter, limit in self.plan.limits.quota.items():
            asked = sum(n for key, n in quantities.items() if self.meters.get(key) == meter)
            if asked and (used := self.used(meter)) + asked > limit:
                raise Exhausted(
                    f"The quota of {limit} {meter} for this period is used up.",
                    hint="It is renewed at the reset time; or change the plan.",
                    scope=f"quota.{meter}",
                    limit=limit,
                    used=used,
                    reset=self.period_end,
                )


class Hold:
    """What one request holds: quantities by price key in its book."""

    __slots__ = ("book", "is_open", "quantities")

    def __init__(self, book: Book) -> None:
        self.book = book
        self.quantities: dict[str, int] = {}
        self.is_open = True


class Account:
    """One customer's money in one currency, as this gateway sees it; all amounts in nano-units."""

    __slots__ = ("_amount", "_required", "leased")

    def __init__(self, amount: Amount) -> None:
        self._amount = amount
        self._required: dict[tuple[int, str], int] = {}
        self.leased = 0

    @property
    def required(self) -> int:
        """Nano-units that everything in flight may cost at most."""
        return sum(self._required.values())

    @property
    def free(self) -> int:
        """Leased nano-units that nothing in flight needs."""
        return self.leased - self.required

    def cost_of(self, book: Book, quantities: Mapping[str, int]) -> int:
        """What holding `quantities` more would require more, in nano-units (0 unless prepaid)."""
        if not book.is_prepaid:
            return 0
        return sum(
            self._span(book, key, book.inflight.get(key, 0) + n) - self._required.get((id(book), key), 0)
            for key, n in quantities.items()
        )

    def shortfall(self, book: Book, quantities: Mapping[str, int]) -> int:
        """Nano-units missing from the lease to hold `quantities` more; 0 or less when it is covered."""
        return self.cost_of(book, quantities) - self.free if book.is_prepaid else 0

    def add(self, hold: Hold, quantities: Mapping[str, int]) -> None:
        """Hold `quantities` more; the caller has made sure that `shortfall` is not positive."""
        assert hold.is_open, "a closed hold cannot grow"
        for key, n in quantities.items():
            hold.quantities[key] = hold.quantities.get(key, 0) + n
            self._move(hold.book, key, n)

    def trim(self, hold: Hold, charged: Mapping[str, int]) -> None:
        """Lower a hold to what will be charged, which must not exceed it."""
        for key, held in hold.quantities.items():
            rest = charged.get(key, 0)
            assert 0 <= rest <= held, f"charging {rest} of {key} but {held} are held"
            self._move(hold.book, key, rest - held)
            hold.quantities[key] = rest

    def settle(self, hold: Hold, amount: int) -> None:
        """What the (trimmed) hold stands for was charged as `amount`: it becomes position, the lease pays."""
        assert hold.is_open, "a hold settles once"
        book = hold.book
        for key, n in hold.quantities.items():
            book.positions[key] = book.positions.get(key, 0) + n
            self._move(book, key, -n)
        if book.is_prepaid:
            self.leased -= amount
        hold.is_open = False

    def release(self, hold: Hold) -> None:
        """Give everything back; a hold that is closed already has nothing to give."""
        if hold.is_open:
            for key, n in hold.quantities.items():
                self._move(hold.book, key, -n)
            hold.is_open = False

    def _move(self, book: Book, key: str, n: int) -> None:
        inflight = book.inflight.get(key, 0) + n
        if inflight:
            book.inflight[key] = inflight
        else:
            book.inflight.pop(key, None)
        if not book.is_prepaid:
            return
        required = self._span(book, key, inflight)
        if required:
            self._required[id(book), key] = required
        else:
            self._required.pop((id(book), key), None)

    def _span(self, book: Book, key: str, inflight: int) -> int:
        if not inflight:
            return 0
        position = book.positions.get(key, 0)
        return self._amount(book.plan, key, position + inflight) - self._amount(book.plan, key, position)
