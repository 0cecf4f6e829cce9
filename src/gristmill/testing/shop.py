"""A shop for tests: a real ledger, real keys and a real engine child behind the gateway; two small tasks.

`/v1/completions` (task echo) repeats the prompt's words, one token a word, in one piece or streamed;
`/v1/classify` (task tag) labels texts. Needs the fake engine of `gristmill.testing.engines` installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from gristmill.app.gateway.paid import Gateway, Incoming
from gristmill.app.gateway.parse import PaidEndpoint
from gristmill.app.gateway.record import Record
from gristmill.app.gateway.routing import Routes
from gristmill.app.gateway.sink import Headers
from gristmill.core.account import Customer, Plan
from gristmill.core.errors import TooLarge
from gristmill.core.money import to_nano
from gristmill.core.op import EngineSpec, Op, ServedModel
from gristmill.core.recipe import PlanSpec, PriceSpec
from gristmill.core.release import Release
from gristmill.ports.task import Endpoint, Exchange
from gristmill.stages.access import queries as access
from gristmill.stages.access.index import AccessIndex
from gristmill.stages.bill.rate import PluginRater
from gristmill.stages.registry import queries as registry
from gristmill.stages.serve.supervisor import Deployments
from gristmill.store.cipher import Cipher
from gristmill.testing.money import World
from gristmill.testing.queries import usage_events


class EchoRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/completions`."""

    model: str
    prompt: str
    max_tokens: int | None = None
    stream: bool = False


class TagRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/classify`."""

    model: str
    input: list[str]


def _echo_op(request: EchoRequest) -> Op:
    limit = {} if request.max_tokens is None else {"max_tokens": request.max_tokens}
    return Op("generate", (request.prompt,), limit, request.stream)


def _echoed(exchange: Exchange, results: list[Any], usage: dict[str, int], reason: str) -> dict[str, Any]:
    choice = {"text": results[0]["text"], "finish_reason": reason}
    return {"id": exchange.request_id, "model": exchange.model, "choices": [choice], "usage": usage}


def _chunk(exchange: Exchange, text: str, index: int) -> dict[str, Any]:
    return {"id": exchange.request_id, "index": index, "choices": [{"text": text, "finish_reason": None}]}


def _closing(exchange: Exchange, usage: dict[str, int], reason: str) -> list[dict[str, Any]]:
    return [
        {"id": exchange.request_id, "choices": [{"text": "", "finish_reason": reason}]},
        {"id": exchange.request_id, "choices": [], "usage": usage},
    ]


def _tagged(exchange: Exchange, results: list[Any], usage: dict[str, int], reason: str) -> dict[str, Any]:
    return {"object": "list", "model": exchange.model, "data": results, "usage": usage}


ECHO = Endpoint(
    "/v1/completions",
    EchoRequest,
    _echo_op,
    _echoed,
    ("input_tokens", "output_tokens"),
    _chunk,
    _closing,
    "Supported: model, prompt, max_tokens, stream.",
)
TAG = Endpoint(
    "/v1/classify",
    TagRequest,
    lambda request: Op("classify", tuple(request.input)),
    _tagged,
    ("input_tokens", "items", "requests"),
)
ENDPOINTS = (("echo", ECHO), ("tag", TAG))


class Reply:
    """What came back on a `MemorySink`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in the body."""
        found: dict[str, Any] = self.json["error"]
        return found

    @property
    def events(self) -> list[Any]:
        """The server-sent events; the last of a whole stream is the text "[DONE]"."""
        data = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        return ["[DONE]" if one == b"[DONE]" else msgspec.json.decode(one) for one in data]

    @property
    def text(self) -> str:
        """The text of an echo, streamed or not."""
        documents = [one for one in self.events if one != "[DONE]"] if self.is_stream else [self.json]
        return "".join(choice["text"] for one in documents for choice in one.get("choices", []))

    @property
    def is_stream(self) -> bool:
        """Whether it was streamed."""
        return self.headers.get("content-type", "").startswith("text/event-stream")


class MemorySink:
    """A client that takes everything and, when told to, hangs up after some writes or seconds."""

    def __init__(self, hang_up_after: int | None = None) -> None:
        self.reply = Reply()
        self.is_gone = False
        self._callbacks: list[Callable[[], None]] = []
        self._left = hang_up_after

    def when_gone(self, callback: Callable[[], None]) -> None:
        """See `app.gateway.sink.Sink`."""
        self._callbacks.append(callback)
        if self._left == 0:
            self.hang_up()

    async def start(self, status: int, headers: Headers) -> None:
        """See `app.gateway.sink.Sink`."""
        assert not self.reply.status, "an answer starts once"
        self.reply.status = status
        self.reply.headers = {name.decode(): value.decode() for name, value in headers}

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """See `app.gateway.sink.Sink`."""
        assert self.reply.status, "an answer starts before its body"
        assert not self.reply.is_complete, "nothing follows the last byte"
        self.reply.body += data
        self.reply.is_complete = is_last
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self.hang_up()

    def hang_up(self) -> None:
        """Leave now."""
        self.is_gone = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Shop:
    """See the module; build it with `open_shop`.

    Attributes:
        world: ledger, database and a clock set by hand. paid: path → endpoint.
        records: what the metrics hook was told.
    """

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, PluginRater())
        self.clock = self.world.clock
        self.cipher = Cipher(b"k" * 32, self.clock)
        self.access = AccessIndex(self.world.db, self.clock)
        self.routes = Routes(self.world.db)
        self.engines = Deployments(self.clock)
        self.records: list[Record] = []
        self.gateway = self.new_gateway()
        self.paid = {endpoint.path: PaidEndpoint(task, endpoint) for task, endpoint in ENDPOINTS}
        with self.world.db.write() as c:
            access.seed_internal_plan(c, self.clock)

    def new_gateway(self) -> Gateway:
        """A gateway over this shop's parts."""
        return Gateway(
            access=self.access,
            routes=self.routes,
            engines=self.engines,
            ledger=self.world.ledger,
            rater=self.world.rater,
            cipher=self.cipher,
            clock=self.clock,
            on_record=self.records.append,
        )

    async def serve(self, **options: Any) -> None:
        """(Re)start the engine with every release; `token_s` makes it slow."""
        with self.world.db.read() as c:
            models = tuple(ServedModel(one.id, "/nowhere", one.digest) for one in registry.list_releases(c))
        await self.engines.apply({("fake", "all"): EngineSpec("fake", models, options)})
        self.routes.refresh()

    def plan(self, name: str, prices: dict[str, str], **terms: Any) -> Plan:
        """Add a prepaid plan; `prices` maps a meter to its price for a single unit."""
        specs = [
            PriceSpec(meter=meter, pricing="per_unit", params={"amount": amount})
            for meter, amount in prices.items()
        ]
        spec = PlanSpec(name=name, prices=specs, **({"billing": "prepaid"} | terms))
        with self.world.db.write() as c:
            return access.create_plan(c, self.clock, spec)

    def customer(self, name: str, plan: str | None = None, *, wallet: str = "0") -> tuple[Customer, str]:
        """Add a customer with a key and money in its wallet; returns it and the key."""
        with self.world.db.write() as c:
            made = access.create_customer(c, self.clock, name=name, plan_name=plan)
            _, key = access.create_key(c, self.clock, customer_id=made.id)
        if Decimal(wallet):
            self.world.ledger.top_up_now(made.id, to_nano(Decimal(wallet)), "USD", self.clock.new_id("pay"))
        self.access.refresh()
        return made, key

    def release(
        self, product: str, task: str, *, owner: str | None = None, public_name: str | None = None
    ) -> Release:
        """Register a release and promote it to production."""
        values: dict[str, Any] = {
            "product": product, "task": task, "engine": "fake", "kind": "model", "base": "none",
            "base_digest": None, "digest": f"digest-{product}", "customer_id": owner,
            "public_name": public_name, "run_id": None, "report_id": None, "licence": "Apache-2.0",
            "card": "", "facts": {},
        }  # fmt: skip
        with self.world.db.write() as c:
            made = registry.add_release(c, self.clock, **values)
            registry.promote(c, self.clock, made.id)
        return made

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | bytes,
        key: str | None,
        *,
        idempotency_key: str | None = None,
        sink: MemorySink | None = None,
        max_body_bytes: int = 2**20,
    ) -> Reply:
        """Send one request through the gateway."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sink = sink or MemorySink()

        async def read_body() -> bytes:
            if len(data) > max_body_bytes:
                raise TooLarge("The body is over the limit.")
            return data

        authorization = None if key is None else f"Bearer {key}".encode()
        once = None if idempotency_key is None else idempotency_key.encode()
        request_id = self.clock.new_id("req")
        await self.gateway.handle(Incoming(self.paid[path], request_id, authorization, once, read_body), sink)
        return sink.reply

    async def echo(self, key: str, n_words: int, model: str = "parrot", **fields: Any) -> Reply:
        """Ask `/v1/completions` to repeat `n_words` words; takes `sink` and `idempotency_key` too."""
        around = {name: fields.pop(name) for name in ("sink", "idempotency_key") if name in fields}
        prompt = " ".join(f"w{n}" for n in range(n_words))
        return await self.ask("/v1/completions", {"model": model, "prompt": prompt, **fields}, key, **around)

    def events(self, customer_id: str) -> list[dict[str, Any]]:
        """The usage events of a customer, oldest first, as rows."""
        with self.world.db.read() as c:
            return usage_events(c, customer_id)

    def money(self, customer_id: str) -> int:
        """Nano-units a customer has left: wallet and lease together."""
        wallet = self.world.ledger.balance(f"wallet:{customer_id}", "USD")
        return -wallet - self.world.ledger.balance(f"lease:{customer_id}:gateway", "USD")


@asynccontextmanager
async def open_shop(folder: Path) -> AsyncIterator[Shop]:
    """A shop, closed in order at the end."""
    shop = Shop(folder)
    try:
        yield shop
    finally:
        await shop.gateway.close()
        await shop.engines.close()
        await asyncio.to_thread(shop.world.close)
