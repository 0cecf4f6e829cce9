"""One admitted request on its engine: holds that grow slice by slice, chunks out, one settlement at the end.

Invariant: what is charged was held, and what was held or charged for output never runs ahead of the tokens
that the engine emitted; a streamed token is sent only when its hold stands, and the last byte only when the
charge is durable. Emitted = engine tokens whose text was written to the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Protocol

import structlog

from gristmill.app.gateway.idempotency import MAX_ANSWER_BYTES, Claim
from gristmill.app.gateway.parse import PaidEndpoint
from gristmill.app.gateway.purse import Funds
from gristmill.app.gateway.record import Visit
from gristmill.app.gateway.sink import DONE, EVENTS, JSON, Headers, Sink, encode, event
from gristmill.core.clock import Clock
from gristmill.core.errors import Exhausted, GristmillError, Unavailable
from gristmill.core.op import Chunk, Done
from gristmill.core.usage import Answer, Settled, Settlement, UsageEvent
from gristmill.ports.task import Exchange

SLICE_TOKENS = 64
_OUTPUT = "output_tokens"
_log = structlog.get_logger("gristmill.gateway")


class EngineCall(Protocol):
    """A call on an engine, as `stages.serve` has it."""

    usage: dict[str, int]

    @property
    def is_overflowed(self) -> bool:
        """Whether it was cancelled because the client did not keep up with reading."""
        ...

    async def go(self, max_tokens: int | None) -> None:
        """Run it."""
        ...

    async def next(self) -> Chunk | Done:
        """The next message."""
        ...

    def cancel(self) -> None:
        """Stop it; `next` then gives `Done`."""
        ...


class Ledger(Protocol):
    """What a run needs of the ledger writer."""

    async def settle(self, settlement: Settlement) -> Settled:
        """Commit a settlement."""
        ...

    async def journal(self, event: UsageEvent) -> None:
        """Make durable what a stream has been sent."""
        ...


class Run:
    """The state of one request from its first hold to its settlement."""

    def __init__(
        self,
        visit: Visit,
        paid: PaidEndpoint,
        exchange: Exchange,
        funds: Funds,
        ledger: Ledger,
        clock: Clock,
        *,
        claim: Claim | None,
        max_tokens: int | None,
        is_whole: bool,
        rate_headers: Callable[[], Headers],
    ) -> None:
        self._visit = visit
        self._paid = paid
        self._endpoint = paid.endpoint
        self._exchange = exchange
        self._funds = funds
        self._ledger = ledger
        self._clock = clock
        self._claim = claim
        self._max_tokens = max_tokens
        self._is_whole = is_whole
        self._rate_headers = rate_headers
        self._input: dict[str, int] = {}
        self._held = 0  # output tokens that may be charged
        self._emitted = 0
        self._journalled = 0
        self._journal: asyncio.Task[None] | None = None
        self._went_s: float | None = None
        self._busy_s = 0.0
        self._has_ended = False
        self._is_settling = False
        self._refusal: Exhausted | None = None

    @property
    def first_slice(self) -> int:
        """Output tokens held before the engine goes."""
        if not self._paid.has_output:
            return 0
        limit = self._max_tokens
        if self._is_whole and limit is not None:
            return limit
        return SLICE_TOKENS if limit is None else min(limit, SLICE_TOKENS)

    async def begin(self, call: EngineCall) -> None:
        """Hold the input and the first slice, then let the engine go.

        Raises:
            Exhausted: a quota is used up. WalletEmpty: the balance does not cover it.
        """
        counted = call.usage | {"requests": 1}
        meters = self._endpoint.meters
        self._input = {meter: counted.get(meter, 0) for meter in meters if meter != _OUTPUT}
        first = self.first_slice
        await self._funds.hold(self._input | {_OUTPUT: first})
        self._held = first
        self._went_s = self._clock.monotonic_s()
        await call.go(self._max_tokens)

    async def collect(self, call: EngineCall, sink: Sink) -> None:
        """Answer in one piece; free unless the whole answer is ready while the client still waits."""
        texts: list[str] = []
        done, is_cut = await self._drive(call, sink, texts)
        if sink.is_gone:
            await self._settle("unacknowledged", {})
            return
        results, usage, reason = done.results, self._usage(done, is_cut), done.finish_reason
        if is_cut:
            results, reason = [{"text": "".join(texts)}], "length"
        document = self._endpoint.from_results(self._exchange, results, usage, reason)
        body = encode(document)
        answer = self._claim.answer(200, body, is_stream=False) if self._claim else None
        await self._settle("cut" if is_cut else "done", self._meters(usage), answer)
        await sink.start(200, [JSON, (b"content-length", b"%d" % len(body)), *self._headers()])
        self._visit.status = 200
        await sink.send(body, is_last=True)

    async def stream(self, call: EngineCall, sink: Sink) -> None:
        """Answer as server-sent events; a client that hangs up pays for what was emitted."""
        kept = _Kept(self._claim is not None)
        n_sent, pending = 0, 0

        async def send(chunk: Chunk) -> None:
            nonlocal n_sent, pending
            pending += chunk.n_tokens
            if not chunk.text:  # part of a character: its tokens are emitted with the text they become
                return
            data = event(self._endpoint.from_chunk(self._exchange, chunk.text, n_sent))  # type: ignore[misc]
            await self._send(sink, data, kept)
            n_sent, self._emitted, pending = n_sent + 1, self._emitted + pending, 0
            self._journal_if_due()

        done, is_cut = await self._drive(call, sink, send)
        if sink.is_gone:
            is_free = not self._emitted  # nothing was answered yet
            emitted = {_OUTPUT: self._emitted}
            await self._settle(
                *(("unacknowledged", {}) if is_free else ("disconnected", self._meters(emitted)))
            )
            return
        usage = self._usage(done, is_cut)
        reason = "length" if is_cut else done.finish_reason
        closing = (
            self._endpoint.last_chunks(self._exchange, usage, reason) if self._endpoint.last_chunks else []
        )
        last = b"".join(map(event, closing)) + DONE
        kept.add(last)
        answer = self._claim.answer(200, kept.content, is_stream=True) if self._claim else None
        await self._settle("cut" if is_cut else "done", self._meters(usage), answer)
        if not self._visit.status:
            await self._start(sink)
        await sink.send(last, is_last=True)

    async def fail(self) -> None:
        """The engine or we failed after it went: free for the customer, its seconds are our cost."""
        if self._went_s is None or self._is_settling:
            return
        if not self._has_ended:
            self._busy_s = self._clock.monotonic_s() - self._went_s
        try:
            await self._settle("failed", {})
        except GristmillError as error:  # what failed first is what the client is told
            _log.error("failure_not_booked", request_id=self._visit.request_id, code=error.code)

    async def _drive(
        self, call: EngineCall, sink: Sink, out: list[str] | Callable[[Chunk], Awaitable[None]]
    ) -> tuple[Done, bool]:
        """Take messages until the end, extending the hold before anything beyond it; (end, was it cut)."""
        n_seen, is_cut = 0, False
        while True:
            message = await call.next()
            if isinstance(message, Done):
                break
            if is_cut or sink.is_gone:
                continue
            if not await self._covers(n_seen + message.n_tokens):
                is_cut = True
                call.cancel()
                continue
            n_seen += message.n_tokens
            if isinstance(out, list):
                out.append(message.text)
                self._emitted = n_seen
            else:
                await out(message)
            if sink.is_gone:
                call.cancel()
        self._busy_s, self._has_ended = message.busy_s, True
        self._visit.digest = message.digest or self._visit.digest
        if message.finish_reason == "cancelled" and not (is_cut or sink.is_gone):
            if not call.is_overflowed:
                raise Unavailable("The engine stopped this request.", hint="Send it again.")
            is_cut = True  # the client reads too slowly to be served further
        # Tokens without text (the end token) come with the end: what the hold lacks of those is not charged.
        # An engine that emitted no chunks is another matter: its answer cannot be cut, so it is refused.
        if not is_cut and not sink.is_gone and not await self._covers(message.usage.get(_OUTPUT, 0)):
            if not n_seen:
                raise self._refusal or Exhausted("The answer is longer than what is left to pay for it.")
            self._visit.cut_by = ""
        return message, is_cut

    async def _covers(self, n_tokens: int) -> bool:
        """Whether `n_tokens` of output are held, after holding another slice when they are not."""
        if n_tokens <= self._held or not self._paid.has_output:
            return True
        if not self._funds.is_bounded:
            await self._funds.hold({_OUTPUT: n_tokens - self._held})
            self._held = n_tokens
            return True
        least = n_tokens - self._held
        wanted = max(least, SLICE_TOKENS)
        if self._max_tokens is not None:
            wanted = max(least, min(wanted, self._max_tokens - self._held))
        try:
            more = await self._funds.hold_up_to(_OUTPUT, wanted, least)
        except Exhausted as error:
            self._refusal = error
            self._visit.cut_by = str(error.details.get("scope", error.code))
            return False
        self._held += more
        return True

    def _usage(self, done: Done, is_cut: bool) -> dict[str, int]:
        """What is told and charged: input as it was counted and held, output as far as it is held."""
        usage = done.usage | {m: n for m, n in self._input.items() if m in done.usage}
        if self._paid.has_output:
            usage[_OUTPUT] = self._emitted if is_cut else min(usage.get(_OUTPUT, self._emitted), self._held)
        return usage

    def _meters(self, usage: dict[str, int]) -> dict[str, int]:
        return self._input | ({_OUTPUT: usage.get(_OUTPUT, 0)} if self._paid.has_output else {})

    async def _send(self, sink: Sink, data: bytes, kept: _Kept) -> None:
        if not self._visit.status:
            await self._start(sink)
        kept.add(data)
        await sink.send(data)

    async def _start(self, sink: Sink) -> None:
        self._visit.status = 200
        self._visit.first_byte_s = self._clock.monotonic_s()
        await sink.start(200, [*EVENTS, *self._headers()])

    def _headers(self) -> Headers:
        return [*self._visit.headers(self._clock.monotonic_s()), *self._rate_headers()]

    def _journal_if_due(self) -> None:
        """After each slice sent, note what a crash would charge; the token path does not wait for it."""
        if self._emitted - self._journalled < SLICE_TOKENS or (self._journal and not self._journal.done()):
            return
        self._journalled = self._emitted
        assert self._went_s is not None
        self._busy_s = self._clock.monotonic_s() - self._went_s  # until the engine tells its own figure
        now = self._event("recovered", self._meters({_OUTPUT: self._emitted}))
        self._journal = asyncio.get_running_loop().create_task(self._write_journal(now))

    async def _write_journal(self, now: UsageEvent) -> None:
        try:
            await self._ledger.journal(now)
        except GristmillError as error:  # a crash would then charge less; the stream goes on
            _log.warning("stream_not_journalled", request_id=now.request_id, code=error.code)

    async def _settle(self, status: str, meters: dict[str, int], answer: Answer | None = None) -> None:
        self._is_settling = True
        if self._journal is not None:  # or its row would be written again after the settlement removed it
            await self._journal
        self._funds.trim(meters)
        self._visit.outcome = status
        self._visit.meters = meters
        settled = await self._ledger.settle(Settlement(self._event(status, meters), answer))
        self._funds.settle(settled.amount)
        self._visit.amount = settled.amount

    def _event(self, status: str, meters: dict[str, int]) -> UsageEvent:
        visit = self._visit
        caller, target = visit.caller, visit.target
        assert caller is not None and target is not None  # noqa: PT018 - both or neither
        ended: datetime = self._clock.now()
        return UsageEvent(
            request_id=visit.request_id,
            customer_id=caller.customer.id,
            key_id=caller.key_id,
            subscription_id=caller.subscription_id,
            plan_id=caller.plan.id,
            model=target.model,
            release_id=target.release_id,
            digest=visit.digest,
            endpoint=self._paid.path,
            meters=meters,
            emitted_tokens=meters.get(_OUTPUT, 0),
            status=status,
            started_at=visit.started_at.isoformat(timespec="microseconds"),
            ended_at=ended.isoformat(timespec="microseconds"),
            busy_s=self._busy_s,
            latency_ms=(self._clock.monotonic_s() - visit.started_s) * 1000,
            period=caller.period_start[:7],
        )


class _Kept:
    """The bytes of a stream with an Idempotency-Key, up to just over what is stored."""

    __slots__ = ("_is_wanted", "_parts", "_size")

    def __init__(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Keep `data`, while the whole can still be stored."""
        if self._is_wanted and self._size <= MAX_ANSWER_BYTES:
            self._parts.append(data)
            self._size += len(data)

    @property
    def content(self) -> bytes:
        """Everything kept."""
        return b"".join(self._parts)


def output_limit(options: dict[str, Any]) -> int | None:
    """The most output tokens an Op asks for; None when it sets no limit."""
    found = options.get("max_tokens")
    return found if isinstance(found, int) else None
