"""`kill -9` at any instant: what was acknowledged is there once, and the books balance."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import func, select

from gristmill.stages.bill.rate import PluginRater
from gristmill.store.tables.ledger import posting_group, stream_journal, usage_event
from gristmill.testing.money import World, per_unit

SPENDER = Path(__file__).with_name("spender.py")
UNIT = 10**9
KILLS = 300 if os.environ.get("SOAK") == "full" else 15


def killed_at_random(home: Path, customer_id: str, plan_id: str, chance: random.Random) -> list[list[str]]:
    """Run a spender, kill it at a random instant once it works, return the whole lines that it said."""
    command = [sys.executable, str(SPENDER), "crash", str(home), customer_id, plan_id, str(chance.random())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = []
        for line in child.stdout:
            said.append(line)
            if line == "ready\n":
                break
        time.sleep(chance.random() * 0.25)
        child.kill()
        rest = child.stdout.read()
    said += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    assert "ready\n" in said, "the child died before it was killed"
    return [line.split() for line in said]


def test_no_acknowledged_settlement_is_lost_or_doubled(tmp_path: Path) -> None:
    """Broken: a crash loses usage that was acknowledged, charges it twice, or unbalances the books."""
    chance = random.Random(7)
    world = World(tmp_path, PluginRater())
    plan = world.plan("prepaid", per_unit("items", "1", 1), billing="prepaid")
    acme = world.customer("Acme", plan)
    topped_up = 10**6 * UNIT
    world.ledger.top_up_now(acme, topped_up, "USD", "pay_1")
    acknowledged: dict[str, int] = {}
    journalled: dict[str, int] = {}
    began: set[str] = set()
    for _ in range(KILLS):
        for words in killed_at_random(tmp_path, acme, plan.id, chance):
            if words[0] in ("settled", "recovered"):
                assert words[1] not in acknowledged, "settled twice"
                acknowledged[words[1]] = int(words[2])
            elif words[0] == "journalled":
                journalled[words[1]] = int(words[2])
            elif words[0] == "began":
                began.add(words[1])
    world.close()

    last = World(tmp_path, PluginRater(), "crash")
    for settled in last.ledger.recover():
        assert settled.request_id not in acknowledged
        acknowledged[settled.request_id] = settled.amount
    with last.db.read() as connection:
        rows = connection.execute(select(usage_event.c.request_id, usage_event.c.amount)).all()
        groups = select(func.count()).where(posting_group.c.purpose == "usage")
        n_groups = connection.scalar(groups)
        assert connection.scalar(select(func.count()).select_from(stream_journal)) == 0
    stored = {row.request_id: row.amount for row in rows}
    assert len(stored) == len(rows) == n_groups
    assert len(acknowledged) > KILLS
    assert acknowledged.items() <= stored.items()
    assert journalled.items() <= stored.items(), "a stream that was sent and journalled went free"
    assert stored.keys() <= began | acknowledged.keys()
    assert last.broken() == []
    assert last.sums() == {"USD": 0}
    assert last.ledger.balance(f"lease:{acme}:crash", "USD") == 0
    assert last.ledger.balance(f"wallet:{acme}", "USD") == -(topped_up - sum(stored.values()))
    last.close()
