"""A session with one engine child from ordinary, synchronous code: how evaluation asks models for answers.

Invariant: the child ends with the session; a failure of one Op ends the run and is raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from gristmill.core.clock import Clock, SystemClock
from gristmill.core.op import Done, EngineSpec, Op
from gristmill.stages.serve.process import EngineProcess, Supervision

OnProgress = Callable[[int, int], None]
"""Called with (done, total) after every Op."""

_SUPERVISION = Supervision(crashes=1, pause_s=86_400.0)  # a child that dies during a run is not restarted


class EngineSession:
    """A child for several runs, on any of the releases in its spec.

    Use it as a context manager, within one thread that runs no event loop of its own: the child ends with
    the thread that started it.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
        supervision: Supervision = _SUPERVISION,
    ) -> None:
        self._spec = spec
        self._clock = clock or SystemClock()
        self._environment = environment
        self._supervision = supervision
        self._runner = asyncio.Runner()
        self._process: EngineProcess | None = None

    def __enter__(self) -> Self:
        try:
            self._process = self._runner.run(self._start())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            self._runner.run(process.close())
        self._runner.close()

    @property
    def digests(self) -> dict[str, str]:
        """Release id → artefact digest that the child verified."""
        return self._process.digests if self._process is not None else {}

    def run(
        self, release: str, ops: Sequence[Op], concurrency: int = 8, progress: OnProgress | None = None
    ) -> list[Done]:
        """Run all Ops on a release, `concurrency` at a time; returns their ends in the order of `ops`.

        Raises:
            GristmillError: the first Op that failed, by its code; Unavailable when the engine died.
        """
        if self._process is None:
            raise RuntimeError("enter the session first")
        return self._runner.run(_run_all(self._process, release, ops, concurrency, progress))

    async def _start(self) -> EngineProcess:
        process = EngineProcess(self._clock, environment=self._environment, supervision=self._supervision)
        await process.start(self._spec)
        return process


def run_ops(
    spec: EngineSpec,
    release: str,
    ops: Sequence[Op],
    concurrency: int = 8,
    *,
    clock: Clock | None = None,
    environment: Mapping[str, str] | None = None,
    progress: OnProgress | None = None,
) -> list[Done]:
    """Start a child, run all Ops on one release, end the child; see `EngineSession.run`."""
    with EngineSession(spec, clock=clock, environment=environment) as session:
        return session.run(release, ops, concurrency, progress)


async def _run_all(
    process: EngineProcess, release: str, ops: Sequence[Op], concurrency: int, progress: OnProgress | None
) -> list[Done]:
    ends: dict[int, Done] = {}
    queue = iter(range(len(ops)))

    async def work() -> None:
        for index in queue:
            async with process.open(release, ops[index]) as call:
                await call.go()
                ends[index] = await call.result()
            if progress is not None:
                progress(len(ends), len(ops))

    workers = [asyncio.create_task(work()) for _ in range(min(concurrency, len(ops)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [ends[index] for index in range(len(ops))]
