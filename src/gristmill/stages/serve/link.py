"""One life of an engine child as the gateway sees it: the link to it and the calls open on it.

The hot path: one protocol object cuts the stream into messages and hands each to its call by request id.
Invariant: a call ends exactly once: `Done`, an error of its own, or Unavailable the moment the child is gone.
"""

from __future__ import annotations

import asyncio
import collections
import signal
import subprocess
from collections.abc import Generator, Mapping
from typing import Any, Self, cast

from gristmill.core.errors import GristmillError, TooLarge, Unavailable, from_body
from gristmill.core.op import (
    AskStats,
    Cancel,
    Chunk,
    Counted,
    Done,
    EngineSpec,
    Failed,
    Go,
    Op,
    Open,
    Ready,
    Stats,
    ToChild,
)
from gristmill.stages.serve.frames import FrameError, append_frame, from_child_reader
from gristmill.stages.serve.spawn import spawn

QUEUE_CHUNKS = 1024
"""Chunks a call may lag behind; one that falls further behind is cancelled, it alone."""

_CONGESTED_BYTES = 16 << 20
_EXIT_S = 5.0
_LOG = "What it wrote is in the log under engine_stderr."


class Link(asyncio.Protocol):
    """The parent's end of one child: from its spawn to its death."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.calls: dict[int, Call] = {}
        self.digests: dict[str, str] = {}
        self.ended = asyncio.Event()
        self.is_congested = False
        self.reason = ""
        self.n_progress = 0
        self.loop = loop
        self._ready: asyncio.Future[dict[str, str]] = loop.create_future()
        self._stats: collections.deque[asyncio.Future[dict[str, float]]] = collections.deque()
        self._reader = from_child_reader()
        self._out = bytearray()
        self._is_flush_due = False
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(cls, spec: EngineSpec, environment: Mapping[str, str] | None, start_s: float) -> Self:
        """Spawn a child and wait until it has loaded.

        Raises:
            GristmillError: what the child said, by its code; Unavailable when it died or took over `start_s`.
        """
        process, sock = spawn(spec, environment)
        link, is_ready = cls(process), False
        try:
            await link.loop.create_unix_connection(lambda: link, sock=sock)
            link.send(spec)
            async with asyncio.timeout(start_s):
                link.digests = await link._ready
            is_ready = True
        except TimeoutError:
            raise Unavailable(
                f"The engine {spec.engine} did not start in {start_s:g} s.", hint=_LOG
            ) from None
        except ConnectionError:
            await link.reap()
            raise Unavailable(f"The engine {spec.engine} {link.reason} while it loaded.", hint=_LOG) from None
        finally:
            if not is_ready:
                link.kill("did not start")
                await link.reap()
        return link

    @property
    def is_alive(self) -> bool:
        """Whether messages can be exchanged."""
        return not self.ended.is_set()

    def send(self, message: ToChild | EngineSpec) -> None:
        """Send a message: the first of a loop iteration at once, those after it together at its end."""
        append_frame(self._out, message)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._write()
            self.loop.call_soon(self._flush)

    async def ask_stats(self, limit_s: float) -> dict[str, float]:
        """The child's counters.

        Raises:
            TimeoutError: no answer within `limit_s`. Unavailable: the child is gone.
        """
        if not self.is_alive:
            raise self.error()
        answer: asyncio.Future[dict[str, float]] = self.loop.create_future()
        self._stats.append(answer)
        self.send(AskStats())
        await asyncio.wait([answer], timeout=limit_s)
        if not answer.done():
            raise TimeoutError
        return answer.result()

    def kill(self, reason: str) -> None:
        """Kill the child; its calls fail in the next iteration of the loop."""
        self.reason = self.reason or reason
        self.process.kill()
        if self._transport is not None:
            self._transport.abort()

    async def end(self, reason: str) -> None:
        """Close our end, give the child a moment to exit by itself, kill it otherwise, and reap it."""
        self.reason = self.reason or reason
        if self._transport is not None:
            self._transport.close()
        await self.reap()
        if self._transport is not None:
            self._transport.abort()

    async def reap(self) -> None:
        """Wait for the process, killing it when it does not exit, and complete `reason`."""
        deadline = self.loop.time() + _EXIT_S
        while (code := self.process.poll()) is None:
            if self.loop.time() > deadline:
                self.process.kill()
            await asyncio.sleep(0.005)
        self.reason = self.reason or _describe(code)

    def error(self) -> Unavailable:
        """What a caller is told when the child is gone."""
        return Unavailable("The engine stopped while it was answering.", hint="Send the request again.")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self._transport.set_write_buffer_limits(high=_CONGESTED_BYTES)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: the child does not keep up with reading."""
        self.is_congested = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_congested = False

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol: hand every complete message to its call."""
        try:
            messages = self._reader.feed(data)
        except FrameError as error:
            self.kill(f"sent garbage: {error}")
            return
        calls = self.calls
        for message in messages:
            if isinstance(message, Stats):
                self._take_stats(message)
            elif isinstance(message, Ready):
                if not self._ready.done():
                    self._ready.set_result(message.digests)
            elif message.request < 0:
                if isinstance(message, Failed) and not self._ready.done():
                    self._ready.set_exception(_error(message))
            else:
                self.n_progress += 1
                call = calls.get(message.request)
                if call is not None:
                    call.receive(message)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol: fail everything that waits."""
        self.ended.set()
        if not self._ready.done():
            self._ready.set_exception(ConnectionResetError())
            self._ready.exception()  # marks it as seen: nobody may be waiting any more
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(self.error())
                answer.exception()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.fail(self.error())

    def _take_stats(self, message: Stats) -> None:
        if self._stats:
            answer = self._stats.popleft()
            if not answer.done():
                answer.set_result(message.counters)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self._out:
            self._write()

    def _write(self) -> None:
        data, self._out = self._out, bytearray()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


class Call:
    """One request on an engine: awaiting it admits it, `go` runs it, `next` gives its messages.

    Use it as `async with process.open(release, op) as call:` (leaving early cancels), or await it.

    Attributes:
        usage: what the input measures, by meter, exactly. is_running: told to go.
        is_overflowed: cancelled for lagging behind.
    """

    __slots__ = (
        "_error",
        "_is_cancelled",
        "_is_over",
        "_link",
        "_open",
        "_queue",
        "_queue_chunks",
        "_waiter",
        "is_overflowed",
        "is_running",
        "request",
        "usage",
    )

    def __init__(
        self, link: Link, request: int, release: str, op: Op, queue_chunks: int = QUEUE_CHUNKS
    ) -> None:
        self.request = request
        self.usage: dict[str, int] = {}
        self.is_overflowed = self.is_running = False
        self._link = link
        self._open: Open | None = Open(request, release, op)
        self._queue: collections.deque[Counted | Chunk | Done | Failed] = collections.deque()
        self._queue_chunks = queue_chunks
        self._waiter: asyncio.Future[None] | None = None
        self._error: GristmillError | None = None
        self._is_over = False
        self._is_cancelled = False

    def __await__(self) -> Generator[Any, None, Self]:
        return self._admit().__await__()

    async def __aenter__(self) -> Self:
        return await self._admit()

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    async def go(self, max_tokens: int | None = None) -> None:
        """Run it, with at most `max_tokens` output tokens when given."""
        if not self._is_over:
            self.is_running = True
            self._link.send(Go(self.request, max_tokens))

    async def next(self) -> Chunk | Done:
        """The next chunk, or the end.

        Raises:
            GristmillError: the engine's refusal by its code. Unavailable: the engine is gone.
        """
        while True:
            message = await self._take()
            if isinstance(message, Chunk | Done):
                return message
            if isinstance(message, Failed):
                raise _error(message)

    async def result(self) -> Done:
        """The end; chunks on the way are dropped."""
        while True:
            message = await self.next()
            if isinstance(message, Done):
                return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk | Done:
        if self._is_over and not self._queue and self._error is None:
            raise StopAsyncIteration
        return await self.next()

    def cancel(self) -> None:
        """Stop it at once: chunks not yet taken are dropped, and `next` gives `Done` "cancelled"."""
        if self._is_over or self._is_cancelled:
            return
        self._is_cancelled = True
        self._queue.clear()
        self._link.send(Cancel(self.request))

    def leave(self) -> None:
        """End all interest in it: cancels what still runs and forgets the call."""
        if self._link.calls.pop(self.request, None) is not None and not self._is_cancelled:
            self._link.send(Cancel(self.request))
        self._is_over = True

    def receive(self, message: Counted | Chunk | Done | Failed) -> None:
        """Take a message from the link."""
        if type(message) is Chunk:
            if self._is_cancelled:
                return
            if len(self._queue) >= self._queue_chunks:
                self.is_overflowed = self._is_cancelled = True
                self._link.send(Cancel(self.request))
                return
        elif type(message) is not Counted:
            self._is_over = True
            self._link.calls.pop(self.request, None)
        self._queue.append(message)
        self._wake()

    def fail(self, error: GristmillError) -> None:
        """End it with an error, at once."""
        self._error, self._is_over = error, True
        self._queue.clear()
        self._wake()

    async def _admit(self) -> Self:
        if self._open is None:
            return self
        opening, self._open = self._open, None
        if not self._link.is_alive:
            raise self._link.error()
        self._link.calls[self.request] = self
        try:
            self._link.send(opening)
            message = await self._take()
        except FrameError:
            self._link.calls.pop(self.request, None)
            raise TooLarge("The request is too large for an engine.", hint="Send fewer inputs.") from None
        except asyncio.CancelledError:
            self.leave()
            raise
        if isinstance(message, Failed):
            raise _error(message)
        if isinstance(message, Counted):
            self.usage = message.usage
        else:  # cancelled before it was counted
            self._queue.appendleft(message)
        return self

    async def _take(self) -> Counted | Chunk | Done | Failed:
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise RuntimeError("this call is over; nothing more comes")
            self._waiter = self._link.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _error(message: Failed) -> GristmillError:
    return from_body({"error": {"message": message.message, "param": message.param, "code": message.code}})


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else ""
    return f"was killed by signal {-code} {name}".rstrip()
