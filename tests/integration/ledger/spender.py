"""A child process of the ledger's tests: settles (and journals) in a loop, saying what was acknowledged.

Usage: spender.py crash HOME CUSTOMER PLAN SEED, or spender.py spend HOME CUSTOMER PLAN SEED ROUNDS.
It imports nothing of the tests, so that it may be killed at any instant.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import msgspec
import structlog

from gristmill.core.account import Plan
from gristmill.core.errors import GristmillError
from gristmill.stages.bill.rate import PluginRater
from gristmill.testing.money import World

UNIT = 10**9


def main() -> None:
    """Run one of the two loops."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the parent
    mode, home, customer_id, plan_id, seed = sys.argv[1:6]
    gateway = "crash" if mode == "crash" else f"gateway-{seed}"
    world = World(Path(home), PluginRater(), gateway)
    with world.db.read() as connection:
        document = connection.exec_driver_sql("SELECT document FROM plan WHERE id = ?", (plan_id,)).scalar()
    plan = msgspec.json.decode(str(document), type=Plan)
    if mode == "crash":
        for settled in world.ledger.recover():
            say("recovered", settled.request_id, settled.amount)
        asyncio.run(settle_for_ever(world, customer_id, plan, random.Random(seed)))
    else:
        asyncio.run(spend(world, customer_id, plan, random.Random(seed), int(sys.argv[6])))
        world.close()


def say(*words: object) -> None:
    """One line to the parent, written at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def settle_for_ever(world: World, customer_id: str, plan: Plan, chance: random.Random) -> None:
    """Lease, journal and settle with eight requests in flight until killed."""

    async def requests() -> None:
        while True:
            granted = await world.ledger.open_lease(customer_id, "USD", chance.randint(1, 9) * UNIT)
            request = world.request(customer_id, plan, {"items": granted // UNIT})
            say("began", request.event.request_id, granted)
            if chance.random() < 0.5:
                await world.ledger.journal(request.event)
                say("journalled", request.event.request_id, granted)
            settled = await world.ledger.settle(request)
            say("settled", settled.request_id, settled.amount)

    say("ready")
    await asyncio.gather(*[requests() for _ in range(8)])


async def spend(world: World, customer_id: str, plan: Plan, chance: random.Random, rounds: int) -> None:
    """Lease and settle at random, some of it beyond what was leased; says the sum of what was charged."""
    charged = 0

    async def requests() -> None:
        nonlocal charged
        for _ in range(rounds):
            granted = await world.ledger.open_lease(customer_id, "USD", chance.randint(0, 6) * UNIT)
            items = granted // UNIT + (1 if chance.random() < 0.2 else 0)
            try:
                settled = await world.ledger.settle(world.request(customer_id, plan, {"items": items}))
                charged += settled.amount
            except GristmillError:
                continue
            if chance.random() < 0.3:
                await world.ledger.return_lease(customer_id, "USD", chance.randint(0, 3) * UNIT)

    await asyncio.gather(*[requests() for _ in range(6)])
    say("charged", charged)


if __name__ == "__main__":
    main()
