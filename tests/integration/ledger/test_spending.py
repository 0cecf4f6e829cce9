"""Many gateways and threads on one wallet: it never goes below zero and nothing is lost between them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gristmill.core.errors import GristmillError
from gristmill.testing.money import World, per_unit

SPENDER = Path(__file__).with_name("spender.py")
UNIT = 10**9
ROUNDS = 2000 if os.environ.get("SOAK") == "full" else 25


@pytest.mark.parametrize("wallet_units", [0, 40, 100_000])
def test_processes_and_threads_never_overdraw_a_wallet(world: World, wallet_units: int) -> None:
    """Broken: concurrent requests spend the same money twice."""
    plan = world.plan("prepaid", per_unit("items", "1", 1), billing="prepaid")
    acme = world.customer("Acme", plan)
    if wallet_units:
        world.ledger.top_up_now(acme, wallet_units * UNIT, "USD", "pay_1")
    command = [sys.executable, str(SPENDER), "spend", str(world.path.parent), acme, plan.id]
    children = [
        subprocess.Popen([*command, str(seed), str(ROUNDS)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    charged = [0] * 4
    lowest = [0] * 4

    def spend(index: int) -> None:
        chance = random.Random(index)
        for _ in range(ROUNDS * 3):
            granted = world.ledger.open_lease_now(acme, "USD", chance.randint(0, 5) * UNIT)
            items = granted // UNIT + chance.choice([0, 0, 0, 1])
            try:
                charged[index] += world.ledger.settle_now(world.request(acme, plan, {"items": items})).amount
            except GristmillError:
                world.ledger.return_lease_now(acme, "USD", granted)
            lowest[index] = max(lowest[index], world.ledger.balance(f"wallet:{acme}", "USD"))

    threads = [threading.Thread(target=spend, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [child.communicate(timeout=120)[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    total = sum(charged) + sum(int(words[-1]) for words in said)
    assert max(lowest) <= 0
    wallet = world.ledger.balance(f"wallet:{acme}", "USD")
    leases = [
        world.ledger.balance(f"lease:{acme}:{name}", "USD") for name in ("gateway", "gateway-0", "gateway-1")
    ]
    assert wallet <= 0
    assert max(leases) <= 0
    assert -wallet - sum(leases) + total == wallet_units * UNIT
    assert world.broken() == []
