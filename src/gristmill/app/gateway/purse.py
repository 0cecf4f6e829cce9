"""Purses: the customers' accounts in this gateway, joined to the ledger that leases them money.

Invariant: what a purse thinks is leased is never more than the ledger's lease of this gateway, and a hold is
taken without awaiting anything between the check and the taking. Only a lease that must grow costs a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from gristmill.core.account import Caller, Plan
from gristmill.core.clock import Clock
from gristmill.core.errors import Exhausted, WalletEmpty
from gristmill.core.money import to_decimal
from gristmill.core.rating import Rater
from gristmill.stages.meter.holds import Account, Book, Hold

_CHUNK = 64  # a lease grows by this many times what is asked, or doubles, so that it grows rarely
_REMEMBERED = 8192  # amounts
_AMPLE = 4  # an output is held whole only when it takes no more than this part of what is free


class Leases(Protocol):
    """What a purse needs of the ledger writer."""

    async def open_lease(self, customer_id: str, currency: str, amount: int) -> int:
        """Move up to `amount` from the wallet to this gateway."""
        ...

    async def return_lease(self, customer_id: str, currency: str, amount: int) -> None:
        """Give back `amount`."""
        ...

    def positions(self, subscription_id: str, period: str) -> dict[str, int]:
        """Price key → settled quantity of the period."""
        ...


class Purse:
    """One customer's account in one currency."""

    __slots__ = ("account", "books", "currency", "customer_id", "lock", "n_open", "used_s")

    def __init__(self, customer_id: str, currency: str, account: Account) -> None:
        self.customer_id = customer_id
        self.currency = currency
        self.account = account
        self.books: dict[tuple[str, str], Book] = {}
        self.lock = asyncio.Lock()
        self.n_open = 0
        self.used_s = 0.0


class Purses:
    """All purses of this gateway."""

    def __init__(self, ledger: Leases, rater: Rater, clock: Clock) -> None:
        self._ledger = ledger
        self._rater = rater
        self._clock = clock
        self._purses: dict[tuple[str, str], Purse] = {}
        self._amounts: dict[
            tuple[str, int], int
        ] = {}  # a price key names its plan version, so this stays true

    def funds(self, caller: Caller, keys: Mapping[str, str]) -> Funds:
        """An empty hold for one request of `caller`, to be closed; `keys` maps its meters to price keys."""
        where = (caller.customer.id, caller.plan.currency)
        purse = self._purses.get(where)
        if purse is None:
            purse = self._purses[where] = Purse(*where, Account(self._amount))
        purse.used_s = self._clock.monotonic_s()
        purse.n_open += 1
        return Funds(self._ledger, purse, self._book(purse, caller), dict(keys))

    def leased(self, customer_id: str, currency: str) -> int:
        """Nano-units leased for a customer now."""
        purse = self._purses.get((customer_id, currency))
        return purse.account.leased if purse is not None else 0

    async def return_idle(self, idle_s: float) -> None:
        """Give the leases of customers without a request for `idle_s` back to their wallets."""
        oldest = self._clock.monotonic_s() - idle_s
        for purse in list(self._purses.values()):
            if purse.n_open or purse.used_s > oldest:
                continue
            purse.books.clear()
            amount, purse.account.leased = purse.account.leased, 0
            if amount > 0:
                await self._ledger.return_lease(purse.customer_id, purse.currency, amount)

    def _book(self, purse: Purse, caller: Caller) -> Book:
        where = (caller.subscription_id, caller.period_start[:7])
        book = purse.books.get(where)
        if book is None:
            positions = self._ledger.positions(*where)
            book = purse.books[where] = Book(caller.plan, positions, caller.period_end)
        return book

    def _amount(self, plan: Plan, key: str, quantity: int) -> int:
        """The rater's amount; a hold asks for the same few quantities several times."""
        if not quantity:
            return 0
        found = self._amounts.get((key, quantity))
        if found is None:
            if len(self._amounts) >= _REMEMBERED:
                self._amounts.clear()
            found = self._amounts[key, quantity] = self._rater.amount(plan, key, quantity)
        return found


class Funds:
    """What one request holds, by meter; growing it may wait for the ledger, everything else is immediate."""

    __slots__ = ("_account", "_book", "_hold", "_keys", "_ledger", "_purse")

    def __init__(self, ledger: Leases, purse: Purse, book: Book, keys: dict[str, str]) -> None:
        self._ledger = ledger
        self._purse = purse
        self._account = purse.account
        self._book = book
        self._keys = keys
        self._hold = Hold(book)

    @property
    def is_bounded(self) -> bool:
        """Whether anything can run out: a wallet or a quota."""
        return self._book.is_prepaid or bool(self._book.plan.limits.quota)

    def is_ample(self, meter: str, n: int) -> bool:
        """Whether `n` of a meter take but a small part of what is free, so that holding them hurts nobody."""
        asked = self._by_key({meter: n * _AMPLE})
        try:
            self._book.check_quota(asked)
        except Exhausted:
            return False
        return self._account.shortfall(self._book, asked) <= 0

    async def hold(self, meters: Mapping[str, int]) -> None:
        """Hold more.

        Raises:
            Exhausted: a quota would be passed. WalletEmpty: lease and wallet together do not cover it.
        """
        asked = self._by_key(meters)
        self._book.check_quota(asked)
        if self._account.shortfall(self._book, asked) > 0:
            async with self._purse.lock:
                await self._grow(asked)
                self._book.check_quota(asked)
                self._account.add(self._hold, asked)
        else:
            self._account.add(self._hold, asked)

    async def hold_up_to(self, meter: str, wanted: int, least: int) -> int:
        """Hold `wanted` more of a meter, or what can be had of it but at least `least`; returns how much.

        Raises:
            Exhausted, WalletEmpty: not even `least` can be held.
        """
        try:
            await self.hold({meter: wanted})
        except Exhausted:
            n = wanted
            while n > least:  # the wallet's rest is leased by now, so this asks nobody
                n = max(least, n // 2)
                if self._is_covered(meter, n):
                    await self.hold({meter: n})
                    return n
            raise
        return wanted

    def trim(self, meters: Mapping[str, int]) -> None:
        """Lower the hold to what is going to be charged."""
        self._account.trim(self._hold, self._by_key(meters))

    def settle(self, amount: int) -> None:
        """The ledger charged `amount` nano-units for the trimmed hold."""
        self._account.settle(self._hold, amount)

    def close(self) -> None:
        """The request is over: give back what was not settled. Exactly once."""
        self._account.release(self._hold)
        self._purse.n_open -= 1

    def _by_key(self, meters: Mapping[str, int]) -> dict[str, int]:
        return {self._keys[meter]: n for meter, n in meters.items() if meter in self._keys}

    def _is_covered(self, meter: str, n: int) -> bool:
        asked = self._by_key({meter: n})
        try:
            self._book.check_quota(asked)
        except Exhausted:
            return False
        return self._account.shortfall(self._book, asked) <= 0

    async def _grow(self, asked: dict[str, int]) -> None:
        account, purse = self._account, self._purse
        missing = account.shortfall(self._book, asked)
        if missing <= 0:
            return
        wanted = max(account.cost_of(self._book, asked) * _CHUNK, account.leased)
        granted = await self._ledger.open_lease(purse.customer_id, purse.currency, wanted)
        account.leased += granted  # in two steps: `+= await` would forget what is charged meanwhile
        missing = account.shortfall(self._book, asked)
        if missing > 0:
            raise WalletEmpty(
                "The prepaid balance does not cover this request.",
                hint="Top up the wallet.",
                scope="wallet",
                limit=f"{to_decimal(account.leased):f}",
                used=f"{to_decimal(account.required):f}",
                currency=purse.currency,
                reset=None,
            )
