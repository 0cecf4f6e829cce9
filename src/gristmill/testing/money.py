"""A world of money for tests: a clock set by hand, a migrated ledger, customers, plans and requests."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.account import Limits, Plan, Price
from gristmill.core.clock import SystemClock, encode_id
from gristmill.core.money import to_nano
from gristmill.core.rating import Rater
from gristmill.core.usage import Answer, Settlement, UsageEvent
from gristmill.store.ledger import audit
from gristmill.store.ledger.writer import LedgerWriter
from gristmill.store.migrate import migrate
from gristmill.store.session import Database
from gristmill.store.tables import account

MILLION = 10**6


class FakeClock:
    """A clock that stands still until told; its ids still differ between processes."""

    def __init__(self, at: str = "2026-11-15T12:00:00+00:00") -> None:
        self._at = datetime.fromisoformat(at)
        self._monotonic_s = 0.0
        self._system = SystemClock()
        self._count = itertools.count()
        self._seed = int.from_bytes(self._system.token(7)) << 20

    def set(self, at: str) -> None:
        """Move to an instant, ISO 8601 with offset."""
        self._at = datetime.fromisoformat(at)

    def now(self) -> datetime:
        """See `core.clock.Clock`."""
        return self._at.astimezone(UTC)

    def monotonic_s(self) -> float:
        """See `core.clock.Clock`; a millisecond more at each call."""
        self._monotonic_s += 0.001
        return self._monotonic_s

    def new_id(self, prefix: str) -> str:
        """See `core.clock.Clock`."""
        return encode_id(prefix, int(self._at.timestamp() * 1000), self._seed + next(self._count))

    def token(self, n_bytes: int) -> bytes:
        """See `core.clock.Clock`."""
        return self._system.token(n_bytes)


class World:
    """A home's ledger with what a test puts into it.

    Args:
        folder: where `ledger.db` lies (an existing one is opened). gateway: the writer's name.
    """

    def __init__(
        self, folder: Path, rater: Rater, gateway: str = "gateway", *, busy_timeout_s: float = 10
    ) -> None:
        self.clock = FakeClock()
        self.path = folder / "ledger.db"
        self.db = Database(self.path)
        migrate(self.db)
        self.rater = rater
        self.ledger = LedgerWriter(
            self.path, self.clock, gateway, rater, Decimal("0.36"), "USD", busy_timeout_s=busy_timeout_s
        )
        self.ledger.start()

    def close(self) -> None:
        """Stop the writer and close the database."""
        self.ledger.close()
        self.db.close()

    def plan(
        self, name: str, *prices: Price, billing: str = "invoice", fee: str = "0", currency: str = "USD"
    ) -> Plan:
        """Add a plan version 1."""
        plan = Plan(
            id=self.clock.new_id("plan"),
            name=name,
            number=1,
            currency=currency,
            billing=billing,
            fee=to_nano(Decimal(fee)),
            prices=prices,
            limits=Limits(),
            models=("*",),
        )
        with self.db.write() as connection:
            document = msgspec.to_builtins(plan)
            row = {"id": plan.id, "name": name, "number": 1, "document": document, "created_at": self._now()}
            connection.execute(account.plan.insert().values(row))
        return plan

    def customer(self, name: str, plan: Plan, started_at: str = "2026-01-01T00:00:00+00:00") -> str:
        """Add a customer with a subscription `sub_<customer id>`; returns the customer's id."""
        customer_id = self.clock.new_id("cust")
        with self.db.write() as connection:
            slug = f"{name.lower().replace(' ', '-')}-{customer_id[-6:]}"
            row = {"id": customer_id, "name": name, "slug": slug, "is_active": True}
            connection.execute(account.customer.insert().values(row | {"created_at": self._now()}))
            subscription = {"id": f"sub_{customer_id}", "customer_id": customer_id, "plan_id": plan.id}
            connection.execute(
                account.subscription.insert().values(subscription | {"started_at": started_at})
            )
        return customer_id

    def request(
        self,
        customer_id: str,
        plan: Plan,
        meters: dict[str, int],
        *,
        request_id: str | None = None,
        period: str = "2026-11",
        key: str | None = None,
        **fields: Any,
    ) -> Settlement:
        """A settlement of half an engine second on release `rel_a`; `key` adds an idempotent answer."""
        at = f"{period}-10T10:00:00.000000+00:00"
        event = UsageEvent(
            request_id=request_id or self.clock.new_id("req"),
            customer_id=customer_id,
            key_id="key_1",
            subscription_id=f"sub_{customer_id}",
            plan_id=plan.id,
            model="reviewdesk",
            release_id="rel_a",
            digest="d" * 64,
            endpoint="/v1/classify",
            meters=meters,
            emitted_tokens=0,
            status="done",
            started_at=at,
            ended_at=at,
            busy_s=0.5,
            latency_ms=9.0,
            period=period,
        )
        answer = None
        if key is not None:
            answer = Answer(customer_id, event.endpoint, key, "b" * 64, 200, b"sealed", is_stream=False)
        return Settlement(msgspec.structs.replace(event, **fields), answer)

    def sums(self) -> dict[str, int]:
        """Σ of all entries by currency; every one must be zero."""
        with self.db.read() as connection:
            return audit.sums(connection)

    def broken(self) -> list[str]:
        """Every ledger invariant that does not hold, in words; empty when all is well."""
        with self.db.read() as connection:
            return audit.broken(connection)

    def _now(self) -> str:
        return self.clock.now().isoformat(timespec="milliseconds")


def per_unit(meter: str, amount: str, per: int = MILLION, model: str = "*") -> Price:
    """A per-unit price."""
    return Price(meter=meter, pricing="per_unit", params={"amount": amount, "per": per}, model=model)


def graduated(meter: str, included: int, amount: str, per: int = 1000, model: str = "*") -> Price:
    """An included quota, then a price."""
    tiers = [{"up_to": included, "amount": "0", "per": 1}, {"up_to": None, "amount": amount, "per": per}]
    return Price(meter=meter, pricing="graduated", params={"tiers": tiers}, model=model)
