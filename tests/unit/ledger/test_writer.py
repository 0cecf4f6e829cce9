"""The writer's thread: wallets and leases, journals and recovery, full disks and locked files."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from gristmill.core.errors import BrokenInvariant, Unavailable, UsageError, WalletEmpty
from gristmill.core.posting import PostingGroup, transfer
from gristmill.stages.bill.rate import PluginRater
from gristmill.store.tables.ledger import stream_journal, usage_event
from gristmill.testing.money import World, per_unit

UNIT = 10**9


def test_a_lease_grants_at_most_what_is_there(world: World) -> None:
    """Broken: more is leased than was paid, so it can be spent twice."""
    acme = world.customer("Acme", world.plan("prepaid", billing="prepaid"))
    assert world.ledger.open_lease_now(acme, "USD", 5) == 0
    assert world.ledger.top_up_now(acme, 10, "USD", "pay_1") == 10
    assert world.ledger.top_up_now(acme, 10, "USD", "pay_1") == 10  # the same payment counts once
    assert [world.ledger.open_lease_now(acme, "USD", 6) for _ in range(3)] == [6, 4, 0]
    assert world.ledger.open_lease_now(acme, "EUR", 6) == 0
    world.ledger.return_lease_now(acme, "USD", 3)
    world.ledger.return_lease_now(acme, "USD", 100)  # never more than is left of it
    assert world.ledger.balance(f"wallet:{acme}", "USD") == -10
    assert world.ledger.balance(f"lease:{acme}:gateway", "USD") == 0
    with pytest.raises(UsageError, match="positive"):
        world.ledger.top_up_now(acme, -1, "USD", "pay_2")


def test_a_group_posts_once_sums_to_zero_and_never_overdraws(world: World) -> None:
    """Broken: money appears, a retried posting counts twice, or a wallet goes below zero."""
    acme = world.customer("Acme", world.plan("prepaid", billing="prepaid"))
    entries = transfer("capitalised:rel_a", "accrued:hardware", 7, "USD")
    group = PostingGroup("grp_1", "run_1", "training-cost", entries, "2026-11-15T00:00:00+00:00")
    assert world.ledger.post_now(group) is True
    assert world.ledger.post_now(msgspec.structs.replace(group, id="grp_2")) is False
    assert world.ledger.balance("capitalised:rel_a", "USD") == 7
    with pytest.raises(BrokenInvariant, match="sum to zero"):
        world.ledger.post_now(msgspec.structs.replace(group, id="grp_3", source="x", entries=entries[:1]))
    overdraft = transfer(f"wallet:{acme}", "cash:bank", 1, "USD")
    with pytest.raises(WalletEmpty):
        world.ledger.post_now(msgspec.structs.replace(group, id="grp_4", source="y", entries=overdraft))
    world.ledger.top_up_now(acme, 5, "USD", "pay_1")
    assert world.ledger.post_now(msgspec.structs.replace(group, id="grp_5", source="z", entries=overdraft))


def test_recovery_charges_what_was_sent_and_gives_leases_back(tmp_path: Path) -> None:
    """Broken: after a crash a stream is free, charged twice or above what was sent, or credit is lost."""
    world = World(tmp_path, PluginRater())
    plan = world.plan("prepaid", per_unit("output_tokens", "1", 1), billing="prepaid")
    acme = world.customer("Acme", plan)
    world.ledger.top_up_now(acme, 100 * UNIT, "USD", "pay_1")
    world.ledger.open_lease_now(acme, "USD", 40 * UNIT)
    sent = world.request(acme, plan, {"output_tokens": 3}).event
    world.ledger.journal_now(sent)
    world.ledger.journal_now(msgspec.structs.replace(sent, meters={"output_tokens": 5}))
    settled = world.request(acme, plan, {"output_tokens": 1})
    world.ledger.journal_now(settled.event)
    world.ledger.settle_now(settled)
    failed = world.request(acme, plan, {"output_tokens": 9}).event
    world.ledger.journal_now(failed)
    world.ledger.drop_journal_now(failed.request_id)
    world.close()  # without settling: as after a crash

    again = World(tmp_path, PluginRater())
    recovered = again.ledger.recover()
    assert [one.request_id for one in recovered] == [sent.request_id]
    assert recovered[0].amount == 5 * UNIT
    assert again.ledger.balance(f"wallet:{acme}", "USD") == -94 * UNIT
    assert again.ledger.recover() == []
    with again.db.read() as connection:
        status = select(usage_event.c.status).where(usage_event.c.request_id == sent.request_id)
        assert connection.scalar(status) == "recovered"
        assert connection.execute(select(stream_journal.c.request_id)).all() == []
    assert again.broken() == []
    again.close()


def test_another_gateway_keeps_its_lease_and_journal(tmp_path: Path) -> None:
    """Broken: a gateway that starts takes the credit that another is spending."""
    one, two = World(tmp_path, PluginRater(), "one"), World(tmp_path, PluginRater(), "two")
    plan = one.plan("prepaid", per_unit("output_tokens", "1", 1), billing="prepaid")
    acme = one.customer("Acme", plan)
    one.ledger.top_up_now(acme, 10, "USD", "pay_1")
    one.ledger.open_lease_now(acme, "USD", 4)
    two.ledger.open_lease_now(acme, "USD", 3)
    two.ledger.journal_now(two.request(acme, plan, {"output_tokens": 0}).event)
    assert one.ledger.recover() == []
    assert one.ledger.balance(f"lease:{acme}:one", "USD") == 0
    assert one.ledger.balance(f"lease:{acme}:two", "USD") == -3
    assert len(two.ledger.recover()) == 1
    one.close()
    two.close()


def test_a_full_disk_is_said_so_and_the_writer_goes_on(world: World) -> None:
    """Broken: a full disk loses an acknowledged request, or kills the writer for good."""
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    writer_connection: sqlite3.Connection = world.ledger._connection
    pages = writer_connection.execute("PRAGMA page_count").fetchone()[0]
    writer_connection.execute(f"PRAGMA max_page_count = {pages}")
    acknowledged, refused, said = [], [], []
    for _ in range(400):
        request = world.request(acme, plan, {"items": 1}, digest="d" * 400)
        try:
            world.ledger.settle_now(request)
            acknowledged.append(request.event.request_id)
        except Unavailable as error:
            said.append(f"{error.message} {error.hint}")
            refused.append(request)
            if len(refused) == 5:
                break
    assert len(refused) == 5
    assert all("is full" in text and "Free space" in text for text in said)
    writer_connection.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    for request in refused:
        world.ledger.settle_now(request)
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == (len(acknowledged) + 5) * UNIT


def test_a_locked_database_is_said_so_and_the_writer_goes_on(tmp_path: Path) -> None:
    """Broken: a backup or another process that holds the file hangs every request."""
    world = World(tmp_path, PluginRater(), busy_timeout_s=0.05)
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)
    request = world.request(acme, plan, {"items": 1})
    blocker = sqlite3.connect(world.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        world.ledger.settle_now(request)
    blocker.execute("ROLLBACK")
    blocker.close()
    assert world.ledger.settle_now(request).amount == UNIT
    world.close()


def test_a_cancelled_wait_harms_nobody(world: World) -> None:
    """Broken: a client that hangs up while its request commits breaks the others' answers."""
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)

    async def some_leave() -> list[object]:
        tasks = [
            asyncio.create_task(world.ledger.settle(world.request(acme, plan, {"items": 1})))
            for _ in range(40)
        ]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(some_leave())
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 14
    world.ledger.settle_now(world.request(acme, plan, {"items": 1}))
    assert world.ledger.balance(f"unbilled:{acme}", "USD") == 41 * UNIT


def test_a_closed_ledger_answers_unavailable_and_closing_writes_what_waits(tmp_path: Path) -> None:
    """Broken: a request at shutdown hangs for ever, or one handed over before is lost."""
    world = World(tmp_path, PluginRater())
    plan = world.plan("pay", per_unit("items", "1", 1))
    acme = world.customer("Acme", plan)

    async def hand_over_and_close() -> None:
        waiting = [
            asyncio.create_task(world.ledger.settle(world.request(acme, plan, {"items": 1})))
            for _ in range(50)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(world.ledger.close)
        await asyncio.gather(*waiting)
        with pytest.raises(Unavailable):
            await world.ledger.settle(world.request(acme, plan, {"items": 1}))

    asyncio.run(hand_over_and_close())
    assert world.broken() == []
    world.close()
    again = World(tmp_path, PluginRater())
    assert again.ledger.balance(f"unbilled:{acme}", "USD") == 50 * UNIT
    again.close()
