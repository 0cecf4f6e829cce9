"""The running parts of a server: engines, worker and gateway, started in order and stopped in reverse.

Invariant: a model is routed to once its engine has loaded it; a stop ends no request that can still finish.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
import structlog

from gristmill.app import deploy, overview
from gristmill.app.gateway.paid import Gateway
from gristmill.app.gateway.record import Record
from gristmill.app.gateway.routing import Routes
from gristmill.app.pipeline.worker import Worker
from gristmill.app.platform import Platform
from gristmill.core.errors import GristmillError
from gristmill.server.metrics import Metrics, Snapshot
from gristmill.stages.access.index import AccessIndex
from gristmill.stages.serve.supervisor import Deployments

_SERVING = frozenset({"ready", "half_open"})
_DRAIN_S = 20.0
_CHECK_S = 2.0
_RETRY_S = 5.0
_PROBE = "readyz"
log = structlog.get_logger("gristmill.server")


class Live:
    """What a server holds in memory for one platform.

    Attributes:
        access: keys and who holds them. routes: public model names. deployments: the engine children.
        gateway: what answers paid requests. worker: what executes runs. metrics: the server's registry.
    """

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.access = AccessIndex(platform.db, platform.clock)
        self.deployments = Deployments(platform.clock)
        self.routes = Routes(platform.db)
        self.worker = Worker(platform)
        self.metrics = Metrics(
            Snapshot(
                self.deployments.stats,
                lambda: overview.run_counts(platform.db),
                lambda: platform.ledger.counters,
            )
        )
        self.gateway = Gateway(
            access=self.access,
            routes=self.routes,
            engines=self.deployments,
            ledger=platform.ledger,
            rater=platform.rater,
            cipher=platform.cipher,
            clock=platform.clock,
            on_record=self._record,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._applying = asyncio.Lock()
        self._wanted: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Read the keys, take up runs; engines load in the background."""
        self._loop = asyncio.get_running_loop()
        platform = self.platform
        _remove_leftovers(platform)
        await asyncio.to_thread(self.access.refresh)
        await asyncio.to_thread(self.routes.refresh)
        self.gateway.start()
        platform.access_changed = self.access.refresh
        platform.release_changed = self._release_changed
        platform.deployments = self.statuses
        self._spawn(self.apply())
        self._spawn(self._retry())
        await asyncio.to_thread(self.worker.start)
        platform.worker = self.worker

    async def stop(self) -> None:
        """Give leases back, stop runs at their checkpoint, end the engines."""
        await self.gateway.close()
        await asyncio.to_thread(self.worker.close)
        for task in self._tasks:
            task.cancel()
        await self.deployments.close(_DRAIN_S)

    async def apply(self) -> None:
        """Make the engines serve what the aliases point at, then route to them; a failure is logged."""
        async with self._applying:
            await asyncio.to_thread(deploy.settle_waiting, self.platform)
            wanted = await asyncio.to_thread(deploy.wanted_releases, self.platform)
            self._wanted = {one.id for one in wanted}
            desired = await asyncio.to_thread(deploy.desired, self.platform, wanted)
            try:
                await self.deployments.apply(desired)
            except GristmillError as error:
                log.error("deployment_failed", reason=error.message, hint=error.hint)
            await asyncio.to_thread(self.routes.refresh, self._serving().__contains__)

    def statuses(self) -> list[dict[str, Any]]:
        """Every release on every engine child, as plain data."""
        return [msgspec.to_builtins(row) for row in self.deployments.status()]

    async def not_ready(self) -> list[str]:
        """What keeps the server from serving, by name."""
        missing = []
        try:
            await asyncio.wait_for(self.platform.ledger.drop_journal(_PROBE), _CHECK_S)
        except (GristmillError, TimeoutError):
            missing.append("ledger: cannot write")
        wanted = await asyncio.to_thread(deploy.wanted_releases, self.platform)
        serving = self._serving()
        missing += [f"deployment: {one.name} ({one.id})" for one in wanted if one.id not in serving]
        return missing

    async def _retry(self) -> None:
        """Serve fine-tunes whose training could not be settled before, once their wallet covers it."""
        while True:
            await asyncio.sleep(_RETRY_S)
            try:
                await asyncio.to_thread(deploy.settle_waiting, self.platform)
                wanted = await asyncio.to_thread(deploy.wanted_releases, self.platform)
                if {one.id for one in wanted} != self._wanted:
                    await self.apply()
            except Exception:  # a surface: whatever failed once is tried again
                log.exception("retry_failed")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serving(self) -> set[str]:
        return {row.release for row in self.deployments.status() if row.state in _SERVING}

    def _record(self, record: Record) -> None:
        model = record.model or ""
        self.metrics.observe(record.route, record.status, model, record.latency_s, record.first_byte_s)
        self.metrics.used(model, record.meters)

    def _release_changed(self) -> None:
        """Called by whoever moved an alias, in any thread; returns when the engines have switched."""
        assert self._loop is not None
        coroutine = self.apply()
        if _is_running_in(self._loop):
            self._spawn(coroutine)
            return
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _is_running_in(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _remove_leftovers(platform: Platform) -> None:
    """Plain training files that a killed process was reading."""
    folders: Iterable[Any] = (platform.home / "runs").glob(".files-*")
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
