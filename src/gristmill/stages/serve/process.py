"""A supervised engine: restarted when it dies, killed when it hangs, given a rest when it dies too often.

States: starting → ready ⇄ restarting; ready → broken (the breaker is open) → half_open → ready; closing →
closed. Invariant: while the state is not ready or half_open every new call is refused with Unavailable at
once, so nobody waits for an engine that may never come back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
import structlog

from gristmill.core.clock import Clock
from gristmill.core.errors import GristmillError, Unavailable
from gristmill.core.op import EngineSpec, Op
from gristmill.stages.serve.link import QUEUE_CHUNKS, Call, Link

OnEvent = Callable[[str, dict[str, Any]], None]
"""Told of engine_started, engine_crashed, engine_switched, engine_drained … with their facts."""

_STALL_CPU_S = 0.05
_log = structlog.get_logger()


class Supervision(msgspec.Struct, frozen=True):
    """The patience of a supervisor, in seconds unless said otherwise.

    Attributes:
        start_s: to load all models. ping_s: between two pings. hang_s: for the answer to one.
        stall_s: without any message or processor time while requests run, before it counts as deadlocked.
        backoff_s, backoff_max_s: first and longest pause before a restart; it doubles in between.
        crashes, window_s: this many within this time open the breaker. pause_s: until it is tried again
            (doubling up to ten times as long when that fails).
        drain_s: for open calls when a deployment is replaced. grace_s: a replaced engine still takes
            calls of requests that were routed to it a moment before.
        queue_chunks: chunks a call may lag behind.
    """

    start_s: float = 180.0
    ping_s: float = 5.0
    hang_s: float = 20.0
    stall_s: float = 60.0
    backoff_s: float = 0.2
    backoff_max_s: float = 10.0
    crashes: int = 5
    window_s: float = 60.0
    pause_s: float = 30.0
    drain_s: float = 120.0
    grace_s: float = 2.0
    queue_chunks: int = QUEUE_CHUNKS


class EngineProcess:
    """One engine child after another, as one thing that serves calls.

    Attributes:
        spec: what it was started with. state, since, reason: see the module; why it is not ready.
        restarts: children started after the first. counters: the child's answer to the last ping.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        environment: Mapping[str, str] | None = None,
        supervision: Supervision | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.spec: EngineSpec | None = None
        self.state = "new"
        self.since: datetime = clock.now()
        self.reason = ""
        self.restarts = 0
        self.counters: dict[str, float] = {}
        self._clock = clock
        self._environment = environment
        self._supervision = supervision or Supervision()
        self._on_event = on_event
        self._link: Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._crashed_at: collections.deque[float] = collections.deque()
        self._n_opened = 0
        self._n_requests = 0

    @property
    def is_alive(self) -> bool:
        """Whether it takes calls now."""
        return self.state in {"ready", "half_open"} and self._link is not None and self._link.is_alive

    @property
    def digests(self) -> dict[str, str]:
        """Release id → artefact digest that the child verified."""
        return {} if self._link is None else self._link.digests

    @property
    def pid(self) -> int | None:
        """Process id of the present child."""
        return self._link.process.pid if self._link is not None and self._link.is_alive else None

    @property
    def open_calls(self) -> int:
        """Calls not yet ended."""
        return 0 if self._link is None else len(self._link.calls)

    async def start(self, spec: EngineSpec) -> None:
        """Start the first child and supervise it from then on.

        Raises:
            GristmillError: it did not load, by its own code; nothing is left running then.
        """
        self.spec = spec
        self._enter("starting")
        try:
            self._link = await Link.start(spec, self._environment, self._supervision.start_s)
        except BaseException as error:
            self._enter(
                "failed", error.message if isinstance(error, GristmillError) else type(error).__name__
            )
            raise
        self._enter("ready")
        self._tell("engine_started", pid=self.pid)
        self._supervisor = asyncio.create_task(self._supervise(self._link))

    def open(self, release: str, op: Op) -> Call:
        """A call for one Op; awaiting or entering it sends it and waits until it is counted.

        Raises:
            Unavailable: the engine is not ready or does not keep up.
        """
        link = self._link
        if link is None or not self.is_alive:
            raise self._refusal()
        if link.is_congested:
            raise Unavailable("The engine is overloaded.", hint="Send the request again.")
        self._n_requests += 1
        return Call(link, self._n_requests, release, op, self._supervision.queue_chunks)

    async def stats(self) -> dict[str, float]:
        """Counters asked from the child now.

        Raises:
            Unavailable: no child, or it does not answer.
        """
        if self._link is None or not self._link.is_alive:
            raise self._refusal()
        try:
            self.counters = await self._link.ask_stats(self._supervision.hang_s)
        except TimeoutError:
            raise Unavailable("The engine does not answer.") from None
        return self.counters

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new calls, wait up to `drain_s` for the open ones, end the child. Safe to call again."""
        if self.state == "closed":
            return
        self._enter("closing")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        deadline = self._clock.monotonic_s() + drain_s
        while self.open_calls and self._clock.monotonic_s() < deadline:
            await asyncio.sleep(0.01)
        if self._link is not None:
            await self._link.end("was closed")
        self._enter("closed")

    def _refusal(self) -> Unavailable:
        if self.state == "broken":
            return Unavailable(
                f"The engine of this model is resting after {self._supervision.crashes} crashes.",
                hint="It is tried again soon; the operator sees the reason with: gristmill deployment list.",
            )
        state = "restarting" if self.state in {"ready", "half_open"} else self.state
        return Unavailable(f"The engine of this model is {state}.", hint="Send the request again shortly.")

    async def _supervise(self, link: Link) -> None:
        while True:
            await self._watch(link)
            await link.reap()
            self._note_crash(link.reason)
            link = await self._restart()

    async def _watch(self, link: Link) -> None:
        """Ping a child until it is dead, and kill it when it hangs or stalls."""
        started_at = progress_at = self._clock.monotonic_s()
        n_progress, cpu_s = -1, 0.0
        while link.is_alive:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._supervision.ping_s):
                    await link.ended.wait()
            try:
                self.counters = await link.ask_stats(self._supervision.hang_s)
            except TimeoutError:
                link.kill(f"did not answer a ping within {self._supervision.hang_s:g} s")
                await link.ended.wait()
                return
            except Unavailable:
                return
            now = self._clock.monotonic_s()
            now_cpu_s = self.counters.get("cpu_s", 0.0)
            has_moved = link.n_progress != n_progress or now_cpu_s - cpu_s > _STALL_CPU_S
            if has_moved or not any(call.is_running for call in link.calls.values()):
                n_progress, cpu_s, progress_at = link.n_progress, now_cpu_s, now
            elif now - progress_at > self._supervision.stall_s:
                link.kill(f"did nothing for {self._supervision.stall_s:g} s with requests open")
            if self._crashed_at and now - started_at > self._supervision.window_s:
                self._crashed_at.clear()
                self._n_opened = 0
                self._enter("ready")

    def _note_crash(self, reason: str) -> None:
        now = self._clock.monotonic_s()
        self._crashed_at.append(now)
        while now - self._crashed_at[0] > self._supervision.window_s:
            self._crashed_at.popleft()
        was_half_open = self.state in {"half_open", "broken"}
        is_broken = was_half_open or len(self._crashed_at) >= self._supervision.crashes
        self._n_opened += is_broken
        self._enter("broken" if is_broken else "restarting", reason)
        self._tell("engine_crashed", reason=reason, crashes=len(self._crashed_at))
        if is_broken:
            self._tell("engine_breaker_opened", reason=reason, pause_s=self._pause_s())

    def _pause_s(self) -> float:
        patience = self._supervision
        if self.state == "broken":
            return min(patience.pause_s * 2.0 ** (self._n_opened - 1), patience.pause_s * 10)
        return min(patience.backoff_s * 2.0 ** (len(self._crashed_at) - 1), patience.backoff_max_s)

    async def _restart(self) -> Link:
        assert self.spec is not None
        while True:
            await asyncio.sleep(self._pause_s())
            was_broken = self.state == "broken"
            try:
                link = await Link.start(self.spec, self._environment, self._supervision.start_s)
            except GristmillError as error:
                self._note_crash(error.message)
                continue
            self._link = link
            self.restarts += 1
            self._enter("half_open" if was_broken else "ready")
            self._tell("engine_restarted", pid=self.pid, restarts=self.restarts)
            return link

    def _enter(self, state: str, reason: str = "") -> None:
        if state != self.state:
            self.since = self._clock.now()
        self.state, self.reason = state, reason

    def _tell(self, event: str, **facts: Any) -> None:
        name = self.spec.engine if self.spec is not None else ""
        _log.info(event, engine=name, **facts)
        if self._on_event is not None:
            self._on_event(event, {"engine": name, **facts})
