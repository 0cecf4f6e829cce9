"""What is charged: streams, cuts, disconnects, failures, and a small wallet under many streams at once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import structlog

from gristmill.core.errors import Unavailable
from gristmill.testing.shop import MemorySink, Shop, open_shop

PRICES = {"input_tokens": "0.001", "output_tokens": "0.002", "items": "0.01"}
INPUT, OUTPUT, ITEM = 10**6, 2 * 10**6, 10**7  # nano-units
DOLLAR = 10**9


async def stocked(shop: Shop, *, wallet: str = "1", token_s: float = 0.0, **terms: Any) -> tuple[str, str]:
    """Both models served and one prepaid customer; returns its id and key."""
    shop.release("parrot", "echo")
    shop.release("tagger", "tag")
    shop.plan("pay", PRICES, **terms)
    await shop.serve(token_s=token_s)
    customer, key = shop.customer("Ann", "pay", wallet=wallet)
    return customer.id, key


def test_streamed_and_unstreamed_cost_the_same_and_say_the_same(tmp_path: Path) -> None:
    """Broken: the same request has two prices, or metered tokens are not those the engine emitted."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, wallet="5")
            whole, stream = await shop.echo(key, 200), await shop.echo(key, 200, stream=True)
            assert (whole.status, stream.status) == (200, 200)
            assert whole.text == stream.text
            assert stream.events[-1] == "[DONE]"
            assert stream.events[-2]["usage"] == whole.json["usage"]
            first, second = shop.events(customer)
            assert first["meters"] == second["meters"] == {"input_tokens": 200, "output_tokens": 200}
            assert first["emitted_tokens"] == second["emitted_tokens"] == 200
            assert first["amount"] == second["amount"] == 200 * (INPUT + OUTPUT)
            assert shop.money(customer) == 5 * DOLLAR - 400 * (INPUT + OUTPUT)

    asyncio.run(main())


@pytest.mark.parametrize("after", [1, 2, 63, 64, 65, 100])
def test_a_client_that_hangs_up_pays_input_and_what_was_sent(tmp_path: Path, after: int) -> None:
    """Broken: who hangs up pays for tokens that were never written, or gets them for nothing."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, token_s=0.0005)
            reply = await shop.echo(key, 150, stream=True, sink=MemorySink(hang_up_after=after))
            assert len(reply.events) == after
            [event] = shop.events(customer)
            assert event["status"] == "disconnected"
            assert event["meters"] == {"input_tokens": 150, "output_tokens": after}
            assert event["emitted_tokens"] == after
            assert event["amount"] == 150 * INPUT + after * OUTPUT
            assert event["busy_s"] > 0
            await shop.gateway.close()
            assert shop.money(customer) == DOLLAR - event["amount"]

    asyncio.run(main())


def test_nothing_sent_is_free_whoever_left(tmp_path: Path) -> None:
    """Broken: a client pays for an answer it never got; or its seconds appear in no cost."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, token_s=0.002)
            for stream in (True, False):
                reply = await shop.echo(key, 40, stream=stream, sink=MemorySink(hang_up_after=0))
                assert reply.status == 0
            sink = MemorySink()
            asking = asyncio.create_task(shop.echo(key, 100, sink=sink))
            await asyncio.sleep(0.05)
            sink.hang_up()
            await asking
            events = shop.events(customer)
            assert [event["status"] for event in events] == ["unacknowledged"] * 3
            assert [event["amount"] for event in events] == [0, 0, 0]
            assert 0 < events[2]["busy_s"] < 0.2, "the engine went on for nobody"
            assert events[2]["cost"] > 0
            assert shop.money(customer) == DOLLAR
            assert [record.status for record in shop.records] == [499] * 3

    asyncio.run(main())


@pytest.mark.parametrize("stream", [True, False])
def test_a_wallet_that_runs_out_cuts_the_answer_cleanly(tmp_path: Path, stream: bool) -> None:
    """Broken: tokens are given away, charged below zero, or the stream just breaks off."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            # 200 of input, then 90 tokens of output and a half: 64 in the first slice, 26 after it.
            customer, key = await stocked(shop, wallet="0.381", token_s=0.0005)
            reply = await shop.echo(key, 200, stream=stream)
            assert reply.status == 200
            assert len(reply.text.split()) == 90
            if stream:
                assert reply.events[-3]["choices"][0]["finish_reason"] == "length"
                assert reply.events[-1] == "[DONE]"
            else:
                assert reply.json["choices"][0]["finish_reason"] == "length"
                assert reply.json["usage"]["output_tokens"] == 90
            [event] = shop.events(customer)
            assert (event["status"], event["emitted_tokens"]) == ("cut", 90)
            assert event["amount"] == 200 * INPUT + 90 * OUTPUT
            await shop.gateway.close()
            assert shop.money(customer) == INPUT

    asyncio.run(main())


def test_fifty_streams_on_a_small_wallet_never_overdraw_it(tmp_path: Path) -> None:
    """Broken: parallel requests spend the same money twice and the wallet goes below zero."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, wallet="6", token_s=0.001)
            asks = [
                shop.echo(
                    key, 90, stream=n % 3 > 0, sink=MemorySink(hang_up_after=20) if n % 5 == 4 else None
                )
                for n in range(50)
            ]
            replies = await asyncio.gather(*asks)
            events = shop.events(customer)
            statuses = {reply.status for reply in replies}
            assert statuses <= {200, 402, 0}
            assert 402 in statuses, "the wallet was meant to be too small"
            spent = sum(event["amount"] for event in events)
            assert 5 * DOLLAR < spent <= 6 * DOLLAR
            for event in events:
                meters = event["meters"]
                due = meters.get("input_tokens", 0) * INPUT + meters.get("output_tokens", 0) * OUTPUT
                assert event["amount"] == due
            assert {event["status"] for event in events} <= {"done", "cut", "disconnected", "unacknowledged"}
            await shop.gateway.close()
            assert shop.world.ledger.balance(f"lease:{customer}:gateway", "USD") == 0
            assert shop.money(customer) == 6 * DOLLAR - spent >= 0
            for reply in replies:
                if reply.status == 402:
                    assert reply.error["code"] == "wallet_empty"
                    assert reply.error["scope"] == "wallet"

    asyncio.run(main())


def test_every_charge_comes_out_of_the_lease_that_was_held_for_it(tmp_path: Path) -> None:
    """Broken: gateway and ledger disagree on what is leased, and a charge meets an empty lease."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, wallet="50")
            with structlog.testing.capture_logs() as lines:

                async def client() -> None:
                    for _ in range(10):
                        await shop.ask("/v1/classify", {"model": "tagger", "input": ["a b c"]}, key)

                await asyncio.gather(*(client() for _ in range(32)))
            events = shop.events(customer)
            assert len(events) == 320
            assert [line for line in lines if line["event"] == "lease_short"] == []
            leased = -shop.world.ledger.balance(f"lease:{customer}:gateway", "USD")
            assert shop.gateway.leased(customer, "USD") == leased

    asyncio.run(main())


def test_an_engine_that_dies_charges_nothing(tmp_path: Path) -> None:
    """Broken: customers pay for answers that our crash took from them."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, token_s=0.005)
            asks = [asyncio.create_task(shop.echo(key, 200, stream=stream)) for stream in (True, False)]
            await asyncio.sleep(0.25)
            pid = shop.engines.status()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            streamed, whole = await asyncio.gather(*asks)
            assert whole.status == 503
            assert whole.error["code"] == Unavailable.code
            assert streamed.status == 200
            assert streamed.is_complete
            assert streamed.events[-1]["error"]["code"] == Unavailable.code
            assert [event["status"] for event in shop.events(customer)] == ["failed", "failed"]
            assert [event["amount"] for event in shop.events(customer)] == [0, 0]
            await shop.gateway.close()
            assert shop.money(customer) == DOLLAR

    asyncio.run(main())


def test_a_crash_charges_at_most_what_was_journalled_as_sent(tmp_path: Path) -> None:
    """Broken: after `kill -9` a stream is free, charged twice, or charged beyond what was sent."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, token_s=0.001)
            sink = MemorySink()
            asking = asyncio.create_task(shop.echo(key, 150, stream=True, sink=sink))
            while sink.reply.body.count(b"data:") < 100:
                await asyncio.sleep(0.001)
            asking.cancel()  # the nearest to a crash: no settlement is made
            await asyncio.gather(asking, return_exceptions=True)
            sent = sink.reply.body.count(b"data:")
            [settled] = await asyncio.to_thread(shop.world.ledger.recover)
            [event] = shop.events(customer)
            assert event["status"] == "recovered"
            assert 64 <= event["emitted_tokens"] <= sent
            assert settled.amount == 150 * INPUT + event["emitted_tokens"] * OUTPUT
            assert await asyncio.to_thread(shop.world.ledger.recover) == []
            assert shop.money(customer) == DOLLAR - settled.amount

    asyncio.run(main())


def test_a_stream_that_ends_leaves_no_journal(tmp_path: Path) -> None:
    """Broken: the next start charges a finished stream again."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            _, key = await stocked(shop)
            for n_words in (64, 65, 128, 150):
                await shop.echo(key, n_words, stream=True)
            with shop.world.db.read() as c:
                assert c.exec_driver_sql("SELECT count(*) FROM stream_journal").scalar_one() == 0

    asyncio.run(main())


def test_idle_money_goes_back_to_the_wallet(tmp_path: Path) -> None:
    """Broken: a lease keeps a customer's money away from it for ever."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)
            await shop.echo(key, 10)
            assert shop.world.ledger.balance(f"lease:{customer}:gateway", "USD") < 0
            await shop.gateway.close()
            assert shop.world.ledger.balance(f"lease:{customer}:gateway", "USD") == 0
            assert (await shop.echo(key, 10)).status == 200, "and is leased again when needed"

    asyncio.run(main())


def test_a_top_up_counts_at_once(tmp_path: Path) -> None:
    """Broken: a customer pays and is still refused."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop, wallet="0.01")
            assert (await shop.echo(key, 20)).status == 402
            await shop.world.ledger.top_up(customer, DOLLAR, "USD", "pay_2")
            assert (await shop.echo(key, 20)).status == 200

    asyncio.run(main())


def test_a_quota_is_hard_and_in_flight_requests_count(tmp_path: Path) -> None:
    """Broken: a hard limit is passed by many requests at once, or by a stream that began below it."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            quota = {"output_tokens": 300}
            customer, key = await stocked(shop, billing="invoice", quota=quota, token_s=0.001)
            replies = await asyncio.gather(*(shop.echo(key, 100, stream=True) for _ in range(5)))
            assert sum(event["emitted_tokens"] for event in shop.events(customer)) <= 300
            assert {reply.status for reply in replies} <= {200, 429}
            while (reply := await shop.echo(key, 10)).status == 200:
                pass
            assert reply.status == 429
            wanted = {"scope": "quota.output_tokens", "limit": 300, "reset": "2026-12-01T00:00:00+00:00"}
            assert reply.error.items() >= wanted.items()
            used = sum(event["meters"]["output_tokens"] for event in shop.events(customer))
            assert reply.error["used"] == used <= 300
            assert reply.headers["x-should-retry"] == "false"
            shop.clock.set("2026-12-01T00:00:01+00:00")
            assert (await shop.echo(key, 10)).status == 200, "a new period begins by itself"

    asyncio.run(main())


def test_the_internal_plan_is_free_and_still_measured(tmp_path: Path) -> None:
    """Broken: the operator's own use is charged, or invisible in usage and cost."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            shop.release("parrot", "echo")
            await shop.serve(token_s=0.001)
            customer, key = shop.customer("Me")
            assert (await shop.echo(key, 100)).status == 200
            assert len((await shop.echo(key, 100, stream=True)).text.split()) == 100
            events = shop.events(customer.id)
            assert [event["meters"]["output_tokens"] for event in events] == [100, 100]
            assert [event["amount"] for event in events] == [0, 0]
            assert all(event["cost"] > 0 for event in events)

    asyncio.run(main())
