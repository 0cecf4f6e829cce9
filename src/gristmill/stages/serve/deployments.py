"""Deployments: which engine children should run, and the switch between them without a dropped request.

A group is what one child serves: all adapters on one base, or one release. `apply` compares the desired
groups with the running ones, starts what is new, moves the routes when it is ready, then drains the old.
Invariant: a route always leads to an engine that has loaded the release; a start that fails changes no route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import structlog

from gristmill.core.clock import Clock
from gristmill.core.errors import GristmillError, Unavailable
from gristmill.core.op import EngineSpec, Op, ServedModel
from gristmill.stages.serve.link import Call
from gristmill.stages.serve.process import EngineProcess, OnEvent, Supervision

GroupKey = tuple[str, str]
"""(engine, base digest) for adapters, (engine, release id) otherwise."""

_log = structlog.get_logger()


class Wanted(msgspec.Struct, frozen=True):
    """One release that should be served: its engine, files, options, and its base's digest if an adapter."""

    engine: str
    model: ServedModel
    options: dict[str, Any] = {}
    base_digest: str | None = None


class DeploymentStatus(msgspec.Struct, frozen=True):
    """A release on an engine child, as the operator sees it; `since` is an ISO 8601 time of the state."""

    release: str
    digest: str
    engine: str
    pid: int | None
    state: str
    since: str
    restarts: int
    open_calls: int
    reason: str


class EngineStats(msgspec.Struct, frozen=True):
    """Counters of one child for the metrics page: those of its last ping, restarts and open_calls."""

    engine: str
    group: str
    counters: dict[str, float]


def grouped(wanted: Iterable[Wanted]) -> dict[GroupKey, EngineSpec]:
    """Gather releases into groups, one child each; of two numbers for one option the larger counts."""
    models: dict[GroupKey, dict[str, ServedModel]] = {}
    options: dict[GroupKey, dict[str, Any]] = {}
    for one in sorted(wanted, key=lambda item: item.model.release):
        key = (one.engine, one.base_digest or one.model.release)
        models.setdefault(key, {})[one.model.release] = one.model
        merged = options.setdefault(key, {})
        for name, value in one.options.items():
            both_numbers = isinstance(value, int | float) and isinstance(merged.get(name), int | float)
            merged[name] = max(merged[name], value) if both_numbers else value
    return {key: EngineSpec(key[0], tuple(of.values()), options[key]) for key, of in models.items()}


class Deployments:
    """All engines of this server."""

    def __init__(
        self,
        clock: Clock,
        on_event: OnEvent | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self._clock = clock
        self._on_event = on_event
        self._environment = environment
        self._supervision = supervision or Supervision()
        self._live: dict[GroupKey, EngineProcess] = {}
        self._failed: dict[GroupKey, EngineProcess] = {}
        self._starting: dict[GroupKey, EngineProcess] = {}
        self._draining: dict[EngineProcess, asyncio.Task[None]] = {}
        self._routes: dict[str, EngineProcess] = {}
        self._lock = asyncio.Lock()
        self._is_closed = False

    async def apply(self, desired: Mapping[GroupKey, EngineSpec]) -> None:
        """Make the running groups the desired ones; returns when all routes are switched.

        Old children are drained in the background. Each group stands for itself: one that cannot start
        leaves its predecessor serving, and then no group is retired.

        Raises:
            GristmillError: the first group that could not start, after all others were switched.
        """
        async with self._lock:
            if self._is_closed:
                raise Unavailable("The server is shutting down.")
            for key in [key for key in self._failed if key not in desired]:
                del self._failed[key]
            new = [(key, spec) for key, spec in desired.items() if self._spec_of(key) != spec]
            outcomes = await asyncio.gather(*(self._replace(*each) for each in new), return_exceptions=True)
            errors = [outcome for outcome in outcomes if outcome is not None]
            if errors:
                raise errors[0]
            for key in [key for key in self._live if key not in desired]:
                self._retire(self._live.pop(key))

    def engine_for(self, release: str) -> EngineProcess:
        """The engine that serves a release now; open a call on it without waiting for anything else first.

        Raises:
            Unavailable: none does.
        """
        process = self._routes.get(release)
        if process is None:
            raise Unavailable(
                "This model is not being served now.",
                hint="The operator sees the reason with: gristmill deployment list.",
            )
        return process

    def open(self, release: str, op: Op) -> Call:
        """A call on the engine that serves a release now; see `EngineProcess.open`."""
        return self.engine_for(release).open(release, op)

    def status(self) -> list[DeploymentStatus]:
        """Every release on every child, draining ones included, sorted by release."""
        rows: list[DeploymentStatus] = []
        for process in (*self._live.values(), *self._starting.values(), *self._failed.values()):
            rows += _rows(process, process.state)
        for process in self._draining:
            rows += _rows(process, "draining")
        return sorted(rows, key=lambda row: (row.release, row.since))

    def stats(self) -> list[EngineStats]:
        """Counters of every child that serves or drains."""
        groups = {process: key[1] for key, process in self._live.items()}
        groups |= dict.fromkeys(self._draining, "draining")
        return [
            EngineStats(
                process.spec.engine if process.spec else "",
                group,
                {**process.counters, "restarts": process.restarts, "open_calls": process.open_calls},
            )
            for process, group in groups.items()
        ]

    async def drained(self) -> None:
        """Wait until every replaced child has ended."""
        await asyncio.gather(*self._draining.values())

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new calls, wait up to `drain_s` for open ones, end every child."""
        self._is_closed = True
        async with self._lock:
            tasks = list(self._draining.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            processes = [*self._live.values(), *self._draining]
            self._live, self._draining, self._routes = {}, {}, {}
            await asyncio.gather(*(process.close(drain_s) for process in processes))

    def _spec_of(self, key: GroupKey) -> EngineSpec | None:
        process = self._live.get(key)
        return process.spec if process is not None else None

    async def _replace(self, key: GroupKey, spec: EngineSpec) -> None:
        process = EngineProcess(
            self._clock,
            environment=self._environment,
            supervision=self._supervision,
            on_event=self._on_event,
        )
        self._starting[key] = process
        try:
            await process.start(spec)
        except GristmillError as error:
            self._failed[key] = process
            self._tell("engine_start_failed", key, reason=error.message)
            raise
        finally:
            del self._starting[key]
        self._failed.pop(key, None)
        old = self._live.get(key)
        self._live[key] = process
        for model in spec.models:
            self._routes[model.release] = process
        self._tell("engine_switched", key, releases=[model.release for model in spec.models])
        if old is not None:
            self._retire(old)

    def _retire(self, process: EngineProcess) -> None:
        self._draining[process] = asyncio.create_task(self._drain(process))

    async def _drain(self, process: EngineProcess) -> None:
        await asyncio.sleep(self._supervision.grace_s)
        for release in [release for release, to in self._routes.items() if to is process]:
            del self._routes[release]
        await process.close(self._supervision.drain_s)
        self._draining.pop(process, None)
        _log.info("engine_drained", engine=process.spec.engine if process.spec else "")

    def _tell(self, event: str, key: GroupKey, **facts: Any) -> None:
        _log.info(event, engine=key[0], group=key[1], **facts)
        if self._on_event is not None:
            self._on_event(event, {"engine": key[0], "group": key[1], **facts})


def _rows(process: EngineProcess, state: str) -> list[DeploymentStatus]:
    if process.spec is None:
        return []
    return [
        DeploymentStatus(
            release=model.release,
            digest=model.digest,
            engine=process.spec.engine,
            pid=process.pid,
            state=state,
            since=process.since.isoformat(),
            restarts=process.restarts,
            open_calls=process.open_calls,
            reason=process.reason,
        )
        for model in process.spec.models
    ]
