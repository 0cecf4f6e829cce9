"""The plain-ASGI adapter behind a real uvicorn, spoken to over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import uvicorn

from gristmill.server.openai.paid import PaidApp
from gristmill.testing.shop import ENDPOINTS, Shop, open_shop

PRICES = {"input_tokens": "0.001", "output_tokens": "0.002", "items": "0.01"}
LIMIT_BYTES = 20_000


@asynccontextmanager
async def served(shop: Shop, token_s: float = 0.0) -> AsyncIterator[tuple[int, str, str]]:
    """The shop on a free port: (port, customer id, key)."""
    shop.release("parrot", "echo")
    shop.release("tagger", "tag")
    shop.plan("pay", PRICES)
    await shop.serve(token_s=token_s)
    customer, key = shop.customer("Ann", "pay", wallet="9")
    app = PaidApp(shop.gateway, ENDPOINTS, shop.clock, LIMIT_BYTES)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1], customer.id, key
    finally:
        server.should_exit = True
        await serving


def client(port: int, key: str) -> httpx.AsyncClient:
    """A client with the key."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=30
    )


def test_answers_in_one_piece_and_as_events(tmp_path: Path) -> None:
    """Broken: the gateway works only in memory."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop, served(shop) as (port, _, key), client(port, key) as http:
            body = {"model": "parrot", "prompt": "one two three"}
            whole = await http.post("/v1/completions", json=body)
            assert whole.status_code == 200
            assert whole.json()["choices"][0]["text"] == "one two three"
            stream = await http.post("/v1/completions", json=body | {"stream": True})
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert stream.text.endswith("data: [DONE]\n\n")
            tagged = await http.post("/v1/classify", json={"model": "tagger", "input": ["a", "b"]})
            assert len(tagged.json()["data"]) == 2

    asyncio.run(main())


def test_other_paths_methods_and_sizes_are_json_errors(tmp_path: Path) -> None:
    """Broken: a client's SDK meets an error it cannot read, or a large body is read whole."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    async def main() -> None:
        async with open_shop(tmp_path) as shop, served(shop) as (port, _, key), client(port, key) as http:
            cases = [
                (await http.post("/v1/nothing", json={}), 404),
                (await http.get("/v1/completions"), 405),
                (await http.post("/v1/completions", content=b" " * (LIMIT_BYTES + 1)), 413),
                (await http.post("/v1/completions", content=pieces()), 413),
                (await http.post("/v1/completions", json={}, headers={"authorization": "Bearer x"}), 401),
                (await http.post("/v1/completions", content=b"{"), 400),
            ]
            for response, status in cases:
                assert response.status_code == status
                assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
            assert cases[1][0].headers["allow"] == "POST"

    asyncio.run(main())


def test_a_client_that_closes_its_socket_mid_stream_pays_what_was_sent(tmp_path: Path) -> None:
    """Broken: the engine works on for a client that is gone, and the customer pays for all of it."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop, served(shop, 0.003) as (port, customer, key):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            prompt = " ".join(f"w{n}" for n in range(300))
            body = msgspec.json.encode({"model": "parrot", "prompt": prompt, "stream": True})
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            seen = b""
            while seen.count(b"data:") < 20:
                seen += await reader.read(4096)
            writer.close()
            async with asyncio.timeout(10):
                while not shop.events(customer):
                    await asyncio.sleep(0.01)
            [event] = shop.events(customer)
            assert event["status"] == "disconnected"
            assert 20 <= event["emitted_tokens"] < 150
            assert event["amount"] == 300 * 10**6 + event["emitted_tokens"] * 2 * 10**6
            assert shop.engines.status()[0].open_calls == 0

    asyncio.run(main())


def test_a_client_that_leaves_before_its_answer_stops_the_engine(tmp_path: Path) -> None:
    """Broken: abandoned requests occupy the engine to their end."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop, served(shop, 0.01) as (port, customer, key):
            async with client(port, key) as http:
                prompt = " ".join(f"w{n}" for n in range(300))
                asking = http.post("/v1/completions", json={"model": "parrot", "prompt": prompt}, timeout=0.3)
                try:
                    await asking
                except httpx.ReadTimeout:
                    pass
                else:
                    raise AssertionError("it was meant to take longer")
            async with asyncio.timeout(2):
                while not shop.events(customer):
                    await asyncio.sleep(0.01)
            [event] = shop.events(customer)
            assert (event["status"], event["amount"]) == ("unacknowledged", 0)

    asyncio.run(main())


def test_a_client_that_hangs_up_while_sending_is_forgotten(tmp_path: Path) -> None:
    """Broken: half a body is answered, or logged as an error of ours."""

    async def main() -> None:
        async with open_shop(tmp_path) as shop, served(shop) as (port, customer, key):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            writer.write(head.encode() + b"Content-Length: 100\r\n\r\n{")
            await writer.drain()
            await asyncio.sleep(0.1)
            writer.close()
            async with asyncio.timeout(2):
                while not shop.records:
                    await asyncio.sleep(0.01)
            assert (shop.records[0].status, shop.records[0].outcome) == (499, "refused")
            assert shop.events(customer) == []

    asyncio.run(main())
