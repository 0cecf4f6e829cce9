"""One paid request, top to bottom: authenticate, parse, entitle, open, hold, run, settle, last byte.

Invariant: nothing reaches an engine that was not authenticated, entitled and held for; whatever happens the
hold is closed, and each request id is settled at most once. Source: design.md, "The paid request".
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import structlog

from gristmill.app.gateway.idempotency import Answers, Claim, Idempotency, Replay
from gristmill.app.gateway.parse import PaidEndpoint
from gristmill.app.gateway.purse import Funds, Leases, Purses
from gristmill.app.gateway.record import OnRecord, Visit
from gristmill.app.gateway.routing import Routes, Target
from gristmill.app.gateway.run import SLICE_TOKENS, Ledger, Run, output_limit
from gristmill.app.gateway.sink import EVENTS, JSON, Sink, encode, error_headers, event
from gristmill.core.clock import Clock
from gristmill.core.errors import BrokenInvariant, Forbidden, GristmillError
from gristmill.core.op import Op
from gristmill.core.rating import Rater
from gristmill.ports.task import Exchange
from gristmill.stages.access.index import AccessIndex
from gristmill.stages.meter.limits import RateLimits
from gristmill.stages.serve.supervisor import Call
from gristmill.store.cipher import Cipher

_IDLE_S = 30.0
_log = structlog.get_logger("gristmill.gateway")


class LedgerPort(Ledger, Leases, Answers, Protocol):
    """The ledger writer, as far as the gateway uses it."""


class Engines(Protocol):
    """The deployments, as far as the gateway uses them."""

    def open(self, release: str, op: Op) -> Call:
        """A call on the engine that serves a release now."""
        ...


class Incoming(msgspec.Struct, frozen=True):
    """A request as its adapter hands it over; the body is read only once the key is known to be good."""

    paid: PaidEndpoint
    request_id: str
    authorization: bytes | None
    idempotency_key: bytes | None
    read_body: Callable[[], Awaitable[bytes]]


class Gateway:
    """Serves paid requests until it is closed."""

    def __init__(
        self,
        *,
        access: AccessIndex,
        routes: Routes,
        engines: Engines,
        ledger: LedgerPort,
        rater: Rater,
        cipher: Cipher,
        clock: Clock,
        on_record: OnRecord | None = None,
    ) -> None:
        self._access = access
        self._routes = routes
        self._engines = engines
        self._ledger = ledger
        self._rater = rater
        self._clock = clock
        self._on_record = on_record
        self._limits = RateLimits(clock)
        self._purses = Purses(ledger, rater, clock)
        self._idempotency = Idempotency(ledger, cipher)
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to give idle leases back from time to time."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def close(self) -> None:
        """After the last request: give all leases back."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        await self._purses.return_idle(0.0)

    def leased(self, customer_id: str, currency: str) -> int:
        """Nano-units of a customer's wallet that this gateway holds; the ledger has the same sum."""
        return self._purses.leased(customer_id, currency)

    async def handle(self, incoming: Incoming, sink: Sink) -> Visit:
        """Answer one request on `sink`, errors included; returns what is known of it."""
        clock = self._clock
        visit = Visit(incoming.request_id, incoming.paid.path, clock.now(), clock.monotonic_s())
        try:
            await self._answer(incoming, sink, visit)
        except GristmillError as error:
            await self._refuse(sink, visit, error)
        except Exception as error:  # noqa: BLE001 - a surface: a defect of ours or of a plug-in reaches nobody raw
            _log.error("paid_request_broke", request_id=visit.request_id, **_places(error))
            text = f"Something went wrong on the server (request {visit.request_id}); nothing was charged."
            await self._refuse(sink, visit, BrokenInvariant(text))
        finally:
            visit.finish(clock.monotonic_s(), self._on_record)
        return visit

    async def _answer(self, incoming: Incoming, sink: Sink, visit: Visit) -> None:
        paid = incoming.paid
        caller = visit.caller = self._access.authenticate(incoming.authorization, visit.started_at)
        if not caller.customer.is_active:
            raise Forbidden("This customer's account is closed or parked.", hint="Ask the operator.")
        body = await incoming.read_body()
        request = paid.decode(body)
        if incoming.idempotency_key is None:
            await self._entitle(paid, request, sink, visit, None)
            return
        claim = self._idempotency.begin(caller, paid.path, incoming.idempotency_key, body)
        if isinstance(claim, Replay):
            await self._replay(claim, sink, visit)
            return
        try:
            await self._entitle(paid, request, sink, visit, claim)
        finally:
            claim.release()

    async def _entitle(
        self, paid: PaidEndpoint, request: Any, sink: Sink, visit: Visit, claim: Claim | None
    ) -> None:
        """What the caller may do, before anything is spent: model, price, rate, a request that can be run."""
        caller = visit.caller
        assert caller is not None
        target = self._routes.find(caller, request.model, paid.task, paid.path)
        visit.target, visit.digest = target, target.digest
        keys = self._rater.price_keys(caller.plan, target.model, paid.endpoint.meters)
        op = paid.endpoint.to_op(request)
        self._limits.take_request(caller)
        funds = self._purses.funds(caller, keys)
        try:
            await self._run(paid, request, op, target, funds, sink, visit, claim)
        finally:
            funds.close()

    async def _run(
        self,
        paid: PaidEndpoint,
        request: Any,
        op: Op,
        target: Target,
        funds: Funds,
        sink: Sink,
        visit: Visit,
        claim: Claim | None,
    ) -> None:
        caller, limit = visit.caller, output_limit(op.options)
        assert caller is not None
        is_stream = bool(getattr(request, "stream", False)) and paid.endpoint.from_chunk is not None
        # An answer in one piece runs without chunks when all that it may emit can be held at no one's cost.
        is_whole = not paid.has_output or not funds.is_bounded
        is_whole = is_whole or (limit is not None and funds.is_ample("output_tokens", limit))
        op = msgspec.structs.replace(op, stream=is_stream or not is_whole)
        run = Run(
            visit,
            paid,
            Exchange(target.model, visit.request_id, int(visit.started_at.timestamp()), op.options),
            funds,
            self._ledger,
            self._clock,
            claim=claim,
            max_tokens=limit,
            is_whole=is_whole and not is_stream,
            rate_headers=lambda: self._limits.headers(caller),
        )
        async with self._engines.open(target.release_id, op) as call:
            sink.when_gone(call.cancel)
            taken = call.usage.get("input_tokens", 0) + min(run.first_slice, SLICE_TOKENS)
            taken_s = self._limits.take_tokens(caller, taken)
            try:
                await run.begin(call)
                await (run.stream(call, sink) if is_stream else run.collect(call, sink))
            except Exception:
                await run.fail()
                raise
            finally:
                used = visit.meters.get("input_tokens", 0) + visit.meters.get("output_tokens", 0)
                self._limits.correct_tokens(caller, taken_s, taken, used)

    async def _replay(self, replay: Replay, sink: Sink, visit: Visit) -> None:
        visit.status, visit.outcome = replay.status, "replayed"
        kind = EVENTS if replay.is_stream else [JSON, (b"content-length", b"%d" % len(replay.content))]
        mark = (b"idempotent-replayed", b"true")
        await sink.start(replay.status, [*kind, mark, *visit.headers(self._clock.monotonic_s())])
        await sink.send(replay.content, is_last=True)

    async def _refuse(self, sink: Sink, visit: Visit, error: GristmillError) -> None:
        visit.refused(error)
        if isinstance(error, BrokenInvariant):
            self._access.refresh()  # the ledger may have parked the account: its keys are refused from now on
        if sink.is_gone:
            return
        if visit.status:  # a stream that has begun ends with the error as its last event
            await sink.send(event(error.body()), is_last=True)
            return
        visit.status = error.status
        body = encode(error.body())
        headers = [JSON, (b"content-length", b"%d" % len(body)), *visit.headers(self._clock.monotonic_s())]
        limits = self._limits.headers(visit.caller) if visit.caller is not None else []
        await sink.start(error.status, [*headers, *limits, *error_headers(error)])
        await sink.send(body, is_last=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_IDLE_S)
            try:
                await self._purses.return_idle(_IDLE_S)
            except GristmillError as error:  # what was not returned is returned at the next start
                _log.warning("leases_not_returned", code=error.code)


def _places(error: Exception) -> dict[str, str]:
    """Type and places of an exception; its text may quote a prompt, so it stays out of the log."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return {
        "error": type(error).__name__,
        "at": " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames)),
    }
