"""Deployments: switching, draining and failing without one dropped request."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psutil
import pytest
import uvloop

from gristmill.core.clock import SystemClock
from gristmill.core.errors import BrokenInvariant, Unavailable
from gristmill.core.op import Done, EngineSpec, Op, ServedModel
from gristmill.stages.serve.supervisor import Deployments, Supervision

KEY = ("unruly", "base-1")
OP = Op("generate", ("five words in this prompt",), {}, True)


@asynccontextmanager
async def deployed(spec: EngineSpec, **patience: Any) -> AsyncIterator[Deployments]:
    """One group deployed, closed at the end."""
    supervision = Supervision(**({"grace_s": 0.2, "ping_s": 0.1} | patience))
    deployments = Deployments(SystemClock(), supervision=supervision)
    try:
        await deployments.apply({KEY: spec})
        yield deployments
    finally:
        await deployments.close()
        left = [child for child in psutil.Process().children() if "serve.child" in " ".join(child.cmdline())]
        assert not left


def changed(spec: EngineSpec, release: str = "rel_1", **options: Any) -> EngineSpec:
    """The spec with one more release and other options."""
    more = ServedModel(release, "/nowhere", f"digest of {release}")
    models = spec.models if release == "rel_1" else (*spec.models, more)
    return msgspec.structs.replace(spec, models=models, options=spec.options | options)


async def answer(deployments: Deployments, release: str = "rel_1") -> Done:
    """One whole request."""
    async with deployments.open(release, OP) as call:
        await call.go()
        return await call.result()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_switch_under_load_drops_nothing(spec: EngineSpec, run: Any) -> None:
    """Broken: a deploy or a rollback fails requests of paying customers."""

    async def main() -> None:
        async with deployed(spec) as deployments:
            is_over = False
            n_done = 0

            async def client() -> None:
                nonlocal n_done
                while not is_over:
                    done = await answer(deployments)
                    assert done.results == [{"text": OP.inputs[0]}]
                    n_done += 1

            clients = [asyncio.create_task(client()) for _ in range(100)]
            pids = {deployments.status()[0].pid}
            for turn in range(4):
                await asyncio.sleep(0.3)
                await deployments.apply({KEY: changed(spec, f"rel_new{turn}")})
                pids.add(deployments.engine_for("rel_1").pid)
            await asyncio.sleep(0.3)
            is_over = True
            await asyncio.gather(*clients)
            await deployments.drained()
            assert len(pids) == 5
            assert n_done > 500
            assert {row.release for row in deployments.status()} == {"rel_1", "rel_new3"}

    run(main())


def test_an_open_stream_outlives_its_engine_replacement(spec: EngineSpec) -> None:
    """Broken: a long answer is cut when the model is updated."""

    async def main() -> None:
        async with deployed(spec) as deployments:
            long = Op("generate", ("word " * 500,), {}, True)
            async with deployments.open("rel_1", long) as call:
                await call.go()
                await call.next()
                await deployments.apply({KEY: changed(spec, "rel_2")})
                states = {(row.release, row.state) for row in deployments.status()}
                assert states == {("rel_1", "draining"), ("rel_1", "ready"), ("rel_2", "ready")}
                done = await call.result()
                assert done.usage["output_tokens"] == 500
            await deployments.drained()
            assert [row.state for row in deployments.status()] == ["ready", "ready"]

    asyncio.run(main())


def test_a_drain_has_a_limit(spec: EngineSpec) -> None:
    """Broken: one endless stream keeps an old engine's memory for ever."""

    async def main() -> None:
        async with deployed(spec, drain_s=0.3) as deployments:
            async with deployments.open("rel_1", Op("generate", ("word " * 50_000,))) as call:
                await call.go()
                await deployments.apply({KEY: changed(spec, "rel_2")})
                with pytest.raises(Unavailable):
                    await call.result()
            await deployments.drained()

    asyncio.run(main())


def test_a_failed_start_leaves_the_old_one_serving(spec: EngineSpec) -> None:
    """Broken: a release with a broken file takes down the one that works."""

    async def main() -> None:
        async with deployed(spec) as deployments:
            pid = deployments.engine_for("rel_1").pid
            other = EngineSpec("unruly", (ServedModel("rel_9", "/nowhere", "d9"),))
            with pytest.raises(BrokenInvariant, match="changed"):
                await deployments.apply({KEY: changed(spec, load="refuse"), ("unruly", "rel_9"): other})
            assert deployments.engine_for("rel_1").pid == pid
            assert (await answer(deployments)).finish_reason == "stop"
            assert (await answer(deployments, "rel_9")).finish_reason == "stop"
            rows = {(row.release, row.state): row.reason for row in deployments.status()}
            assert set(rows) == {("rel_1", "ready"), ("rel_1", "failed"), ("rel_9", "ready")}
            assert "changed" in rows["rel_1", "failed"]
            with pytest.raises(BrokenInvariant):
                await deployments.apply({("unruly", "rel_8"): changed(spec, load="refuse")})
            assert (await answer(deployments)).finish_reason == "stop"
            await deployments.apply({KEY: spec})
            assert deployments.engine_for("rel_1").pid == pid, "an unchanged group keeps its child"

    asyncio.run(main())


def test_a_release_taken_away_ends_after_its_grace(spec: EngineSpec) -> None:
    """Broken: a request routed a moment before the switch is refused, or the old model stays for ever."""

    async def main() -> None:
        async with deployed(spec) as deployments:
            key = ("unruly", "rel_2")
            await deployments.apply({key: EngineSpec("unruly", (ServedModel("rel_2", "/nowhere", "d2"),))})
            assert (await answer(deployments, "rel_2")).digest == "d2"
            assert (await answer(deployments)).digest == "digest-1"
            await deployments.drained()
            with pytest.raises(Unavailable):
                deployments.open("rel_1", OP)
            assert [row.release for row in deployments.status()] == ["rel_2"]
            await deployments.engine_for("rel_2").stats()
            stats = deployments.stats()
            assert stats[0].group == "rel_2"
            assert stats[0].counters["restarts"] == 0
            assert stats[0].counters["requests"] == 1

    asyncio.run(main())


def test_one_engine_dies_and_the_others_go_on(spec: EngineSpec) -> None:
    """Broken: a crash in one product stops another."""

    async def main() -> None:
        async with deployed(spec, backoff_s=0.05) as deployments:
            other = EngineSpec("unruly", (ServedModel("rel_2", "/nowhere", "d2"),))
            await deployments.apply({KEY: spec, ("unruly", "rel_2"): other})
            os.kill(deployments.engine_for("rel_1").pid or 0, signal.SIGKILL)
            for _ in range(20):
                assert (await answer(deployments, "rel_2")).finish_reason == "stop"
            async with asyncio.timeout(10):
                while deployments.status()[0].restarts != 1:
                    await asyncio.sleep(0.02)
            assert (await answer(deployments)).finish_reason == "stop"

    asyncio.run(main())


def test_closed_deployments_take_nothing(spec: EngineSpec) -> None:
    """Broken: a server that shuts down starts engines again."""

    async def main() -> None:
        async with deployed(spec) as deployments:
            await deployments.close()
            with pytest.raises(Unavailable):
                deployments.open("rel_1", OP)
            with pytest.raises(Unavailable):
                await deployments.apply({KEY: spec})
            assert deployments.status() == []

    asyncio.run(main())
