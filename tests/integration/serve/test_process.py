"""One supervised engine child: calls, cancellation, crashes, hangs, the breaker, and what it may see."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import structlog
import uvloop

from gristmill.core.clock import SystemClock
from gristmill.core.errors import BrokenInvariant, GristmillError, NotFound, TooLarge, Unavailable, UsageError
from gristmill.core.op import Chunk, Done, EngineSpec, Op
from gristmill.stages.serve.supervisor import Call, EngineProcess, EngineSession, Supervision, run_ops

LONG = Op("generate", ("word " * 4000,), {}, True)
SHORT = Op("generate", ("three words here",), {}, True)


@asynccontextmanager
async def running(spec: EngineSpec, **patience: Any) -> AsyncIterator[EngineProcess]:
    """A started engine with little patience, closed at the end."""
    supervision = Supervision(**({"ping_s": 0.1, "hang_s": 5.0, "backoff_s": 0.05} | patience))
    process = EngineProcess(SystemClock(), supervision=supervision)
    await process.start(spec)
    try:
        yield process
    finally:
        await process.close()


async def until(condition: Callable[[], bool], limit_s: float = 30.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


async def answer(process: EngineProcess, op: Op = SHORT) -> Done:
    """One whole request."""
    async with process.open("rel_1", op) as call:
        await call.go()
        return await call.result()


def test_a_stream_is_counted_then_runs(spec: EngineSpec) -> None:
    """Broken: the gateway cannot hold before it runs, or a stream loses text."""

    async def main() -> None:
        async with running(spec) as process:
            assert process.digests == {"rel_1": "digest-1"}
            async with process.open("rel_1", SHORT) as call:
                assert call.usage == {"input_tokens": 3}
                await call.go(2)
                messages = [message async for message in call]
            *chunks, done = messages
            assert isinstance(done, Done)
            assert done.finish_reason == "length"
            assert "".join(c.text for c in chunks if isinstance(c, Chunk)) == "three words"
            assert done.results == [{"text": "three words"}]
            assert (await process.stats())["requests"] == 1.0
            assert process.counters["rss_bytes"] > 1e6
            assert process.open_calls == 0

    asyncio.run(main())


def test_refusals_keep_their_class(spec: EngineSpec) -> None:
    """Broken: a client's mistake is answered as a server error, or brings the engine down."""

    async def main() -> None:
        async with running(spec) as process:
            with pytest.raises(NotFound):
                await process.open("rel_other", SHORT)
            with pytest.raises(UsageError) as caught:
                await process.open("rel_1", Op("generate", ("a",), {"max_tokens": 0}))
            assert caught.value.param == "max_tokens"
            with pytest.raises(TooLarge):
                await process.open("rel_1", Op("generate", ("a" * (65 << 20),)))
            with pytest.raises(GristmillError, match="cannot be sent"):
                await answer(process, Op("unsendable", ()))
            assert (await answer(process)).finish_reason == "stop"
            assert process.open_calls == 0

    asyncio.run(main())


def test_an_engine_error_tells_no_prompt(spec: EngineSpec) -> None:
    """Broken: a prompt quoted by a library's exception reaches the log or another reader."""

    async def main() -> None:
        async with running(spec) as process:
            with pytest.raises(GristmillError) as caught:
                await process.open("rel_1", Op("raise", ("SECRET-PROMPT",)))
            assert "SECRET" not in caught.value.message
            assert (await answer(process)).finish_reason == "stop"

    with structlog.testing.capture_logs() as lines:
        asyncio.run(main())
    said = [line["line"] for line in lines if line["event"] == "engine_stderr"]
    assert "loaded well" in said
    assert any("ValueError at" in line for line in said)
    assert "SECRET" not in str(lines)
    assert "goes nowhere" not in str(lines)


def test_cancel_and_leaving_early(spec: EngineSpec) -> None:
    """Broken: a client that hung up keeps the engine busy."""

    async def main() -> None:
        async with running(spec) as process:
            async with process.open("rel_1", LONG) as call:
                await call.go()
                assert isinstance(await call.next(), Chunk)
                call.cancel()
                done = await call.next()
                assert isinstance(done, Done)
                assert done.finish_reason == "cancelled"
            async with process.open("rel_1", LONG) as call:
                await call.go()
                await call.next()
            await until(lambda: process.counters.get("queue") == 0)
            task = asyncio.create_task(answer(process, LONG))
            await until(lambda: process.counters.get("queue") == 1)
            task.cancel()
            await until(lambda: process.counters.get("queue") == 0)
            assert process.open_calls == 0

    asyncio.run(main())


def test_overflow_cancels_that_call_only(spec: EngineSpec) -> None:
    """Broken: one client that does not read fills the memory, or stops everybody's stream."""

    async def main() -> None:
        async with running(spec) as process:
            slow = await process.open("rel_1", Op("flood", ()))
            assert (await answer(process)).finish_reason == "stop"
            await until(lambda: slow.is_overflowed)
            messages = [message async for message in slow]
            assert 1024 <= len(messages) <= 1025
            done = messages[-1]
            assert isinstance(done, Done)
            assert done.finish_reason == "cancelled"

    asyncio.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("how", [signal.SIGKILL, "segfault"])
def test_a_killed_engine_fails_its_calls_and_comes_back(spec: EngineSpec, how: Any, run: Any) -> None:
    """Broken: a crash leaves clients waiting, or needs an operator."""

    async def main() -> None:
        async with running(spec) as process:
            calls: list[Call] = [await process.open("rel_1", LONG) for _ in range(5)]
            for call in calls:
                await call.go()
                await call.next()
            first_pid = process.pid
            assert first_pid is not None
            if isinstance(how, signal.Signals):
                os.kill(first_pid, how)
                killed_at = time.monotonic()
            else:
                killed_at = time.monotonic()
                with pytest.raises(Unavailable):
                    await process.open("rel_1", Op("segfault", ()))
            for call in calls:
                with pytest.raises(Unavailable):
                    await call.result()
            assert time.monotonic() - killed_at < 2.0
            with pytest.raises(Unavailable):
                process.open("rel_1", SHORT)
            await until(lambda: process.is_alive)
            assert process.pid != first_pid
            assert process.restarts == 1
            assert (await answer(process)).finish_reason == "stop"

    run(main())


@pytest.mark.parametrize(
    ("how", "run"),
    [("stopped", asyncio.run), ("stopped", uvloop.run), ("blocked", asyncio.run), ("stalled", asyncio.run)],
)
def test_a_hang_is_killed(spec: EngineSpec, how: str, run: Any) -> None:
    """Broken: a deadlocked engine hangs its clients for ever."""

    async def main() -> None:
        async with running(spec, hang_s=0.5, stall_s=0.6) as process:
            pid = process.pid
            assert pid is not None
            if how == "stopped":
                call = await process.open("rel_1", LONG)
                await call.go()
                os.kill(pid, signal.SIGSTOP)
                with pytest.raises(Unavailable):
                    await call.result()
            elif how == "blocked":
                with pytest.raises(Unavailable):
                    await process.open("rel_1", Op("block", ()))
            else:
                call = await process.open("rel_1", Op("stall", ()))
                await asyncio.sleep(1.2)
                assert process.pid == pid, "a call that waits for its hold is not a stall"
                await call.go()
                with pytest.raises(Unavailable):
                    await call.result()
            await until(lambda: process.is_alive)
            assert process.pid != pid
            assert (await answer(process)).finish_reason == "stop"

    run(main())


def test_the_breaker_opens_and_closes(spec: EngineSpec) -> None:
    """Broken: an engine that dies on every start eats the machine, or is never tried again."""

    async def main() -> None:
        async with running(spec, crashes=3, backoff_s=0.01, pause_s=1.0, window_s=3.0) as process:
            for _ in range(3):
                await until(lambda: process.is_alive)
                os.kill(process.pid or 0, signal.SIGKILL)
                await until(lambda: not process.is_alive)
            await until(lambda: process.state == "broken")
            assert "SIGKILL" in process.reason
            with pytest.raises(Unavailable, match="3 crashes") as caught:
                process.open("rel_1", SHORT)
            assert caught.value.hint
            await until(lambda: process.state == "half_open")
            assert (await answer(process)).finish_reason == "stop"
            os.kill(process.pid or 0, signal.SIGKILL)
            await until(lambda: process.state == "broken")
            await until(lambda: process.state == "half_open")
            await until(lambda: process.state == "ready")

    asyncio.run(main())


def test_a_restart_that_cannot_load_opens_the_breaker(spec: EngineSpec, tmp_path: Path) -> None:
    """Broken: a release whose files changed under a running server is retried without end or reason."""
    mark = tmp_path / "mark"
    spec = msgspec.structs.replace(spec, options={"load": "once", "mark": str(mark)})

    async def main() -> None:
        async with running(spec, crashes=3, backoff_s=0.01) as process:
            mark.touch()
            os.kill(process.pid or 0, signal.SIGKILL)
            await until(lambda: process.state == "broken")
            assert process.reason == "weights.onnx changed."

    asyncio.run(main())


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("refuse", BrokenInvariant, "weights.onnx changed. Roll back."),
        ("raise", GristmillError, "did not load: ValueError: bad weights"),
        ("exit", Unavailable, "exited with code 7 while it loaded"),
        ("sleep", Unavailable, "did not start in 1 s"),
    ],
)
def test_a_failed_start_says_why(spec: EngineSpec, how: str, error: type[GristmillError], text: str) -> None:
    """Broken: a release that cannot load is reported without a reason, or leaves a process behind."""
    spec = msgspec.structs.replace(spec, options={"load": how})
    process = EngineProcess(SystemClock(), supervision=Supervision(start_s=1.0 if how == "sleep" else 30.0))
    with pytest.raises(error, match=text):
        asyncio.run(process.start(spec))
    assert process.state == "failed"
    assert not _children()


def test_an_unknown_engine_is_named() -> None:
    """Broken: a typing slip in a recipe's engine gives a riddle."""
    with pytest.raises(NotFound, match="unruli") as caught:
        run_ops(EngineSpec("unruli", ()), "rel_1", [])
    assert "unruly" in caught.value.message


def test_a_child_sees_no_secret(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Broken: a plug-in reads the server's settings and secrets, or imports from the working directory."""
    monkeypatch.setenv("GRISTMILL_SECRET", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    spec = msgspec.structs.replace(spec, options={"threads": 1})
    asked = {"HOME": "/tmp", "GRISTMILL_HOME": "/x", "TOKEN": "hush"}
    (done,) = run_ops(spec, "rel_1", [Op("environment", ())], environment=asked)
    environment, path, pid = done.results
    assert set(environment) <= {
        "PATH", "HOME", "PYTHONPATH", "LANG", "LC_CTYPE",
        "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "HF_HUB_OFFLINE",
    }  # fmt: skip
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HOME"] == "/tmp"
    assert str(tmp_path) not in path
    assert not psutil.pid_exists(pid)


def test_sessions_run_ops_in_order_for_several_releases(spec: EngineSpec) -> None:
    """Broken: evaluation pairs answers with other questions, or needs a child for each release."""
    models = (*spec.models, msgspec.structs.replace(spec.models[0], release="rel_2", digest="digest-2"))
    spec = msgspec.structs.replace(spec, models=models, options={})
    ops = [Op("generate", (f"number {index}",)) for index in range(50)]
    seen: list[tuple[int, int]] = []
    with EngineSession(spec) as session:
        assert session.digests == {"rel_1": "digest-1", "rel_2": "digest-2"}
        done = session.run("rel_1", ops, progress=lambda n, total: seen.append((n, total)))
        assert [one.results[0]["text"] for one in done] == [op.inputs[0] for op in ops]
        assert seen == [(index + 1, 50) for index in range(50)]
        assert session.run("rel_2", ops[:1])[0].digest == "digest-2"
        with pytest.raises(NotFound):
            session.run("rel_3", ops)
        with pytest.raises(Unavailable):
            session.run("rel_1", [*ops, Op("segfault", ())])
    assert not _children()


_PARENT = """
import asyncio, sys
from gristmill.core.clock import SystemClock
from gristmill.core.op import EngineSpec, Op, ServedModel
from gristmill.stages.serve.supervisor import EngineProcess

async def main():
    process = EngineProcess(SystemClock())
    await process.start(EngineSpec("unruly", (ServedModel("rel_1", "/nowhere", "d"),)))
    print(process.pid, flush=True)
    if sys.argv[1] == "blocked":
        await process.open("rel_1", Op("block", ()))
    await asyncio.sleep(60)

import structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["idle", "blocked"])
def test_a_child_dies_with_its_parent(how: str) -> None:
    """Broken: after a crash of the server its engines hold the memory, and a restart fails."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": "/usr/bin:/bin"}
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "serve.child" in " ".join(child.cmdline())]
