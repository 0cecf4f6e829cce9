"""The books: what every command of the ledger works on inside the writer's transaction; nothing here commits.

Invariant: entries reach the database together with the balances they change, a group at a time, each summing
to zero per currency; the CHECK on `balance` makes an overdrawn wallet impossible.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from decimal import Decimal

import msgspec

from gristmill.core.account import Plan
from gristmill.core.clock import Clock
from gristmill.core.errors import NotFound, WalletEmpty
from gristmill.core.posting import Entry, PostingGroup
from gristmill.core.rating import Rater
from gristmill.store.ledger import sql
from gristmill.store.ledger.accounts import WALLET

Deltas = dict[tuple[str, str], int]  # (account, currency) → nano-units


class Books:
    """A cursor of the writer's connection with what rating and posting need.

    Attributes:
        gateway: name under which leases and journals are kept. hourly_rate: of the machine, in `currency`.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        clock: Clock,
        gateway: str,
        rater: Rater,
        hourly_rate: Decimal,
        currency: str,
    ) -> None:
        self.cursor = connection.cursor()
        self.clock = clock
        self.gateway = gateway
        self.rater = rater
        self.hourly_rate = hourly_rate
        self.currency = currency
        self._plans: dict[str, Plan] = {}

    def now(self) -> str:
        """Booking time, ISO 8601 UTC."""
        return self.clock.now().isoformat(timespec="microseconds")

    def plan(self, plan_id: str) -> Plan:
        """A plan version; versions never change, so it is read once."""
        plan = self._plans.get(plan_id)
        if plan is None:
            row = sql.one(self.cursor, sql.GET_PLAN, plan_id)
            if row is None:
                raise NotFound(f"There is no plan version {plan_id}.", param="plan_id")
            plan = self._plans[plan_id] = msgspec.json.decode(row[0], type=Plan)
        return plan

    def balance(self, account: str, currency: str) -> int:
        """Balance in nano-units; 0 for an account without entries."""
        row = sql.one(self.cursor, sql.GET_BALANCE, account, currency)
        return int(row[0]) if row else 0

    def group(self, source: str, purpose: str, entries: Sequence[Entry]) -> PostingGroup:
        """A new group, booked now; entries of amount 0 are left out."""
        kept = tuple(entry for entry in entries if entry.amount)
        return PostingGroup(self.clock.new_id("grp"), source, purpose, kept, self.now())

    def post(self, group: PostingGroup) -> bool:
        """Write a group and move its balances; False when (source, purpose) was posted before.

        Raises:
            BrokenInvariant: it does not sum to zero. WalletEmpty: it would overdraw a wallet.
        """
        group.check()
        sql.write(self.cursor, sql.GROUP_ONCE, [(group.id, group.source, group.purpose, group.at)])
        if self.cursor.rowcount == 0:
            return False
        sql.write(self.cursor, sql.ENTRY, entry_rows(group))
        deltas: Deltas = {}
        add_deltas(deltas, group.entries)
        self.move(deltas)
        return True

    def move(self, deltas: Mapping[tuple[str, str], int]) -> None:
        """Add to balances. Wallets go by UPDATE: a CHECK judges an upsert's new row before it meets the old.

        Raises:
            WalletEmpty: a wallet does not cover it.
        """
        plain = []
        for (account, currency), amount in sorted(deltas.items()):
            if not account.startswith(WALLET):
                plain.append((account, currency, amount))
                continue
            try:
                self.cursor.execute(sql.MOVE_BALANCE, (amount, account, currency))
                if self.cursor.rowcount == 0:
                    sql.write(self.cursor, sql.BALANCE, [(account, currency, amount)])
            except sqlite3.IntegrityError:
                raise WalletEmpty(
                    "The prepaid balance does not cover it.",
                    hint="Top up: gristmill wallet topup.",
                    scope="wallet",
                ) from None
        sql.write(self.cursor, sql.BALANCE, plain)


def entry_rows(group: PostingGroup) -> list[sql.Row]:
    """Rows of table `entry` for one group."""
    return [
        (group.id, str(position), entry.account, entry.amount, entry.currency)
        for position, entry in enumerate(group.entries)
    ]


def add_deltas(deltas: Deltas, entries: Sequence[Entry]) -> None:
    """Sum entries by account and currency into `deltas`."""
    for entry in entries:
        where = (entry.account, entry.currency)
        deltas[where] = deltas.get(where, 0) + entry.amount
