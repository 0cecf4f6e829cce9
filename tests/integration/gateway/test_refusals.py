"""Who is refused what, and in which shape; idempotency; and what never reaches a log line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from gristmill.app.gateway.idempotency import MAX_ANSWER_BYTES
from gristmill.testing.shop import MemorySink, Reply, Shop, open_shop

PRICES = {"input_tokens": "0.001", "output_tokens": "0.002", "items": "0.01"}


def refused(reply: Reply, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """Check OpenAI's error shape; returns the error."""
    assert reply.status == status, reply.body
    assert reply.is_complete
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    error = reply.error
    assert {"message", "type", "param", "code"} <= set(error)
    assert (error["code"], error["param"]) == (code, param)
    return error


async def stocked(shop: Shop, **terms: Any) -> tuple[str, str]:
    """Both models served and one prepaid customer; returns its id and key."""
    shop.release("parrot", "echo")
    shop.release("tagger", "tag")
    shop.plan("pay", PRICES, **terms)
    await shop.serve()
    customer, key = shop.customer("Ann", "pay", wallet="1")
    return customer.id, key


def test_without_a_good_key_nothing_is_read_and_nothing_told(tmp_path: Path) -> None:
    """Broken: the body of a stranger is parsed, or an error tells whether a model exists."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            _, key = await stocked(shop)
            for bad in (None, "gm-nonsense", key[:-1] + ("x" if key[-1] != "x" else "y")):
                reply = await shop.ask("/v1/completions", b"not json", bad, max_body_bytes=1)
                refused(reply, 401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
            with shop.world.db.write() as c:
                c.exec_driver_sql("UPDATE api_key SET revoked_at = '2026-11-15'")
            shop.access.refresh()
            refused(await shop.echo(key, 3), 401, "invalid_api_key")

    asyncio.run(main())


def test_bodies_are_refused_by_field(tmp_path: Path) -> None:
    """Broken: a client's field reaches an engine, or a wrong body is a 500."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)
            for field in ("lora", "id_slot", "cache_prompt", "grammar"):
                reply = await shop.echo(key, 3, **{field: 1})
                assert field in refused(reply, 400, "unknown_field", field)["message"]
            refused(await shop.ask("/v1/completions", b"{", key), 400, "invalid_value")
            refused(await shop.echo(key, 3, max_tokens="9"), 400, "invalid_value", "max_tokens")
            refused(await shop.echo(key, 3, max_tokens=0), 400, "invalid_value", "max_tokens")
            reply = await shop.ask("/v1/completions", b" " * 2000, key, max_body_bytes=1000)
            refused(reply, 413, "too_large")
            assert shop.events(customer) == []

    asyncio.run(main())


def test_models_that_are_not_yours_do_not_exist(tmp_path: Path) -> None:
    """Broken: a customer uses, or learns of, another customer's fine-tune."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            await stocked(shop, models=["tagger"])
            ann, ann_key = shop.customer("Ann B", "pay", wallet="1")
            _, bob_key = shop.customer("Bob", "pay", wallet="1")
            name = f"ft:parrot:{ann.slug}:mine:1"
            shop.release("parrot-1", "echo", owner=ann.id, public_name=name)
            await shop.serve()
            assert (await shop.echo(ann_key, 3, name)).status == 200
            foreign, unknown = await shop.echo(bob_key, 3, name), await shop.echo(bob_key, 3, name[:-1] + "2")
            refused(foreign, 404, "not_found", "model")
            refused(unknown, 404, "not_found", "model")
            assert foreign.error["message"].replace(name, "") == unknown.error["message"].replace(
                name[:-1] + "2", ""
            )
            assert set(foreign.headers) == set(unknown.headers)
            refused(await shop.echo(bob_key, 3, "parrot"), 403, "not_allowed", "model")
            refused(await shop.echo(bob_key, 3, "tagger"), 400, "invalid_value", "model")

    asyncio.run(main())


def test_a_model_without_a_price_is_refused_never_free(tmp_path: Path) -> None:
    """Broken: forgetting a price gives the model away."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            shop.release("parrot", "echo")
            shop.release("tagger", "tag")
            shop.plan("items-only", {"items": "0.01"})
            await shop.serve()
            customer, key = shop.customer("Ann", "items-only", wallet="1")
            refused(await shop.echo(key, 3), 403, "not_allowed", "model")
            reply = await shop.ask("/v1/classify", {"model": "tagger", "input": ["a", "b"]}, key)
            assert (reply.status, len(reply.json["data"])) == (200, 2)
            [event] = shop.events(customer.id)
            assert event["amount"] == 2 * 10**7
            assert event["meters"] == {"input_tokens": 2, "items": 2, "requests": 1}

    asyncio.run(main())


def test_limits_refuse_with_when_to_come_back(tmp_path: Path) -> None:
    """Broken: a client is throttled without a word on which limit and until when."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            _, key = await stocked(shop, requests_per_minute=3, tokens_per_minute=100)
            first = await shop.echo(key, 20, max_tokens=20)
            assert first.headers["x-ratelimit-limit-requests"] == "3"
            assert first.headers["x-ratelimit-remaining-requests"] == "2"
            assert (await shop.echo(key, 20, max_tokens=20)).status == 200
            error = refused(await shop.echo(key, 20, max_tokens=20), 429, "quota_exceeded")
            assert (error["scope"], error["limit"], error["used"]) == ("tokens_per_minute", 100, 80)
            reply = await shop.echo(key, 1)
            error = refused(reply, 429, "quota_exceeded")
            assert (error["scope"], error["limit"], error["used"]) == ("requests_per_minute", 3, 3)
            assert error["reset"] > "2026-11-15T12:00:00"
            assert 0 < int(reply.headers["retry-after"]) <= 61

    asyncio.run(main())


def test_an_inactive_or_parked_customer_is_refused(tmp_path: Path) -> None:
    """Broken: an account that broke an invariant goes on being served and billed."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            _, key = await stocked(shop)
            with shop.world.db.write() as c:
                c.exec_driver_sql("UPDATE customer SET parked_reason = 'broken'")
            shop.access.refresh()
            refused(await shop.echo(key, 3), 403, "not_allowed")

    asyncio.run(main())


def test_without_an_engine_it_is_503_and_free(tmp_path: Path) -> None:
    """Broken: a model that is not served hangs, or charges."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)
            await shop.engines.close()
            reply = await shop.echo(key, 3)
            refused(reply, 503, "unavailable")
            assert reply.headers["retry-after"] == "1"
            assert shop.events(customer) == []

    asyncio.run(main())


@pytest.mark.parametrize("stream", [True, False])
def test_the_same_key_answers_the_same_and_charges_once(tmp_path: Path, stream: bool) -> None:
    """Broken: a client that retries pays twice or gets another answer."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)
            first = await shop.echo(key, 70, stream=stream, idempotency_key="k 1")
            assert first.status == 200
            again = await shop.echo(key, 70, stream=stream, idempotency_key="k 1")
            assert again.status == 200
            assert again.body == first.body
            assert again.headers["content-type"] == first.headers["content-type"]
            assert again.headers["idempotent-replayed"] == "true"
            assert len(shop.events(customer)) == 1
            shop.gateway = shop.new_gateway()  # after a restart too
            assert (await shop.echo(key, 70, stream=stream, idempotency_key="k 1")).body == first.body
            other = await shop.echo(key, 71, stream=stream, idempotency_key="k 1")
            refused(other, 409, "conflict", "Idempotency-Key")
            assert other.headers["x-should-retry"] == "false"
            _, bob = shop.customer("Bob", "pay", wallet="1")
            assert (await shop.echo(bob, 70, stream=stream, idempotency_key="k 1")).body != first.body

    asyncio.run(main())


def test_a_key_in_flight_is_409_and_free_again_after_a_failure(tmp_path: Path) -> None:
    """Broken: two requests of one key run at once, or a failed one blocks its key for ever."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)
            await shop.serve(token_s=0.002)
            sink = MemorySink()
            slow = asyncio.create_task(shop.echo(key, 100, stream=True, idempotency_key="k", sink=sink))
            await asyncio.sleep(0.05)
            conflict = await shop.echo(key, 100, stream=True, idempotency_key="k")
            refused(conflict, 409, "conflict", "Idempotency-Key")
            assert "x-should-retry" not in conflict.headers
            sink.hang_up()
            await slow
            assert (await shop.echo(key, 100, stream=True, idempotency_key="k")).status == 200
            assert [event["status"] for event in shop.events(customer)] == ["disconnected", "done"]

    asyncio.run(main())


def test_an_erased_or_oversized_answer_is_gone_and_encrypted_ones_are_unreadable(tmp_path: Path) -> None:
    """Broken: an erased answer runs again, or answers lie readable in the database."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            _, key = await stocked(shop, billing="invoice")
            await shop.echo(key, 40, idempotency_key="k")
            with shop.world.db.read() as c:
                content = c.exec_driver_sql("SELECT content FROM idempotency").scalar_one()
            assert b"w39" not in content
            with shop.world.db.write() as c:
                c.exec_driver_sql("UPDATE idempotency SET content = NULL")
            refused(await shop.echo(key, 40, idempotency_key="k"), 410, "gone", "Idempotency-Key")
            body = {"model": "parrot", "prompt": "x" * (MAX_ANSWER_BYTES + 10)}
            big = await shop.ask("/v1/completions", body, key, idempotency_key="big", max_body_bytes=2**22)
            assert big.status == 200
            big = await shop.ask("/v1/completions", body, key, idempotency_key="big", max_body_bytes=2**22)
            refused(big, 410, "gone", "Idempotency-Key")
            refused(await shop.echo(key, 1, idempotency_key="é"), 400, "invalid_value", "Idempotency-Key")

    asyncio.run(main())


def test_no_prompt_answer_or_key_is_ever_logged(tmp_path: Path) -> None:
    """Broken: a log file leaks what customers wrote, or their keys."""

    async def main() -> list[Any]:
        with structlog.testing.capture_logs() as lines:
            async with open_shop(tmp_path) as shop:
                _, key = await stocked(shop)
                await shop.serve(token_s=0.001)
                ask = shop.ask
                for body in (
                    {"model": "parrot", "prompt": "my secret prompt"},
                    {"model": "parrot", "prompt": "my secret prompt", "stream": True},
                    {"model": "my secret model", "prompt": "a"},
                    {"model": "parrot", "prompt": "a", "my secret field": 1},
                    {"model": "parrot", "prompt": ["my secret prompt"]},
                    {"model": "parrot", "prompt": "my secret prompt", "max_tokens": 0},
                ):
                    await ask("/v1/completions", body, key, idempotency_key=f"my secret id {len(str(body))}")
                gone = MemorySink(hang_up_after=1)
                await ask("/v1/completions", {"model": "parrot", "prompt": "secret " * 50}, key, sink=gone)
                await ask("/v1/completions", {"model": "parrot", "prompt": "a"}, key[:-1] + "!")
            return [*lines, key]

    *lines, key = asyncio.run(main())
    text = str(lines)
    assert sum(line["event"] == "paid_request" for line in lines) == 8
    assert "secret" not in text
    assert key.split("-")[2][:10] not in text


def test_a_defect_in_a_plug_in_says_nothing_and_charges_nothing(tmp_path: Path) -> None:
    """Broken: a traceback or a prompt reaches a client or the log through an exception nobody foresaw."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop:
            customer, key = await stocked(shop)

            def broken(*_: Any) -> Any:
                raise ValueError("my secret prompt")

            endpoint = shop.paid["/v1/completions"]
            endpoint.endpoint = type(endpoint.endpoint)(
                **{
                    name: getattr(endpoint.endpoint, name) for name in endpoint.endpoint.__struct_fields__
                } | {"from_results": broken}
            )  # fmt: skip
            with structlog.testing.capture_logs() as lines:
                reply = await shop.echo(key, 10)
            error = refused(reply, 500, "broken_invariant")
            assert "secret" not in error["message"]
            assert "secret" not in str(lines)
            assert any(line["event"] == "paid_request_broke" for line in lines)
            [event] = shop.events(customer)
            assert (event["status"], event["amount"]) == ("failed", 0)
            await shop.gateway.close()
            assert shop.money(customer) == 10**9

    asyncio.run(main())
