"""The contract every engine must pass: subclass `EngineSuite`, fill in four methods, run pytest.

The engine runs in the test's own process, loaded once a class; what it emits is recorded in order.

    class TestMyEngine(EngineSuite):
        @classmethod
        def make_engine(cls): return MyEngine()
        @classmethod
        def make_spec(cls, folder): ...build a tiny artefact in `folder`...
        @classmethod
        def make_op(cls, index, *, stream=False): ...
        @classmethod
        def make_bad_op(cls): return Op(...), "max_tokens"
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from gristmill.core.artifact import MANIFEST_NAME
from gristmill.core.errors import BrokenInvariant
from gristmill.core.op import Chunk, Counted, Done, EngineSpec, Failed, FromChild, Op
from gristmill.ports.engine import Engine

Emitted = Counted | Chunk | Done | Failed
_LIMIT_S = 120.0


class Harness:
    """An open engine and everything it emitted, by request."""

    def __init__(self, engine: Engine, spec: EngineSpec) -> None:
        self.engine = engine
        self.spec = spec
        self.release = spec.models[0].release
        self._said: dict[int, list[Emitted]] = {}
        self._changed = threading.Condition()
        self._n_requests = 0
        self.digests = engine.open(spec, self._emit)

    def admit(self, op: Op, release: str | None = None) -> int:
        """Open a request and wait until it is counted or refused; returns its id."""
        self._n_requests += 1
        request = self._n_requests
        self.engine.admit(request, self.release if release is None else release, op)
        self._wait(request, Counted, Failed)
        return request

    def run(self, op: Op, max_tokens: int | None = None) -> Done:
        """Admit, go and wait for the end, which must be `Done`."""
        return self.end(self.start(op, max_tokens))

    def start(self, op: Op, max_tokens: int | None = None) -> int:
        """Admit and go; returns the id."""
        request = self.admit(op)
        assert isinstance(self.said(request)[0], Counted), self.said(request)
        self.engine.go(request, max_tokens)
        return request

    def end(self, request: int) -> Done:
        """Wait for the end of a request, which must be `Done`."""
        last = self._wait(request, Done, Failed)
        assert isinstance(last, Done), last
        return last

    def said(self, request: int) -> list[Emitted]:
        """All messages about a request so far."""
        with self._changed:
            return list(self._said.get(request, []))

    def wait_for_chunk(self, request: int) -> None:
        """Wait until something was streamed (or it ended)."""
        self._wait(request, Chunk, Done, Failed)

    def _emit(self, message: FromChild) -> None:
        assert isinstance(message, Emitted), f"an engine emits no {type(message).__name__}"
        with self._changed:
            self._said.setdefault(message.request, []).append(message)
            self._changed.notify_all()

    def _wait(self, request: int, *kinds: type[Emitted]) -> Emitted:
        deadline = time.monotonic() + _LIMIT_S
        with self._changed:
            while True:
                found = [message for message in self._said.get(request, []) if isinstance(message, kinds)]
                if found:
                    return found[0]
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"request {request} heard nothing more after {self._said.get(request)}"
                self._changed.wait(left_s)


class EngineSuite:
    """The tests; see the module."""

    harness: ClassVar[Harness]
    _folder: ClassVar[Path]

    @classmethod
    def make_engine(cls) -> Engine:
        """A fresh instance of the engine."""
        raise NotImplementedError

    @classmethod
    def make_spec(cls, folder: Path) -> EngineSpec:
        """A spec with at least one tiny model, built in `folder`."""
        raise NotImplementedError

    @classmethod
    def make_op(cls, index: int, *, stream: bool = False) -> Op:
        """A valid, deterministic Op; another input for another index."""
        raise NotImplementedError

    @classmethod
    def make_bad_op(cls) -> tuple[Op, str]:
        """An Op the engine must refuse, and the param it must name."""
        raise NotImplementedError

    @classmethod
    def make_long_op(cls) -> Op | None:
        """A streamed Op that runs long enough to be cancelled; None when the engine cannot stream."""
        return None

    def same(self, one: Any, other: Any) -> bool:
        """Whether two results agree; batching may move numbers a little."""
        return _agree(one, other)

    @classmethod
    def setup_class(cls) -> None:
        """Load the engine once."""
        if cls is EngineSuite:
            return
        cls._folder = Path(tempfile.mkdtemp(prefix="gristmill-engine-"))
        cls.harness = Harness(cls.make_engine(), cls.make_spec(cls._folder))

    @classmethod
    def teardown_class(cls) -> None:
        """Free it."""
        if cls is not EngineSuite:
            cls.harness.engine.close()
            shutil.rmtree(cls._folder, ignore_errors=True)

    def test_reports_the_digests_it_was_told_to_load(self) -> None:
        """Broken: an answer is attributed to another artefact than the one that gave it."""
        harness = self.harness
        assert harness.digests == {model.release: model.digest for model in harness.spec.models}
        assert harness.run(self.make_op(0)).digest == harness.spec.models[0].digest

    def test_counts_before_go_and_runs_only_after(self) -> None:
        """Broken: work is done before the hold stands, or the input's price is unknown before it."""
        request = self.harness.admit(self.make_op(1))
        time.sleep(0.05)
        said = self.harness.said(request)
        assert len(said) == 1
        counted = said[0]
        assert isinstance(counted, Counted)
        assert counted.usage
        assert all(value >= 0 for value in counted.usage.values())
        self.harness.engine.go(request, None)
        done = self.harness.end(request)
        assert {name: done.usage[name] for name in counted.usage} == counted.usage

    def test_one_result_an_input_and_a_measured_time(self) -> None:
        """Broken: answers are missing, or a request costs nothing."""
        op = self.make_op(2)
        done = self.harness.run(op)
        assert len(done.results) == len(op.inputs)
        assert done.finish_reason in {"stop", "length"}
        assert done.busy_s >= 0
        assert math.isfinite(done.busy_s)

    def test_chunks_are_the_whole_text_and_all_tokens(self) -> None:
        """Broken: a streamed answer differs from the unstreamed, or metered tokens from emitted ones."""
        op = self.make_op(3, stream=True)
        if not op.stream:
            pytest.skip("the engine does not stream")
        request = self.harness.start(op)
        done = self.harness.end(request)
        chunks = [message for message in self.harness.said(request) if isinstance(message, Chunk)]
        assert "".join(chunk.text for chunk in chunks) == done.results[0]["text"]
        assert sum(chunk.n_tokens for chunk in chunks) == done.usage["output_tokens"]
        unstreamed = self.harness.run(msgspec.structs.replace(op, stream=False))
        assert unstreamed.results == done.results
        assert unstreamed.usage == done.usage

    def test_go_limits_the_output(self) -> None:
        """Broken: an answer runs past the tokens that were paid for."""
        op = self.make_long_op()
        if op is None:
            pytest.skip("the engine has no output to limit")
        done = self.harness.run(op, max_tokens=3)
        assert done.usage["output_tokens"] <= 3
        assert done.finish_reason in {"length", "stop"}

    def test_cancel_ends_a_running_request(self) -> None:
        """Broken: a client that hung up goes on costing money."""
        op = self.make_long_op()
        if op is None:
            pytest.skip("the engine answers too fast to be cancelled")
        request = self.harness.start(op)
        self.harness.wait_for_chunk(request)
        self.harness.engine.cancel(request)
        assert self.harness.end(request).finish_reason == "cancelled"
        n_said = len(self.harness.said(request))
        time.sleep(0.05)
        assert len(self.harness.said(request)) == n_said

    def test_cancel_before_go_and_of_unknown_requests(self) -> None:
        """Broken: a request whose hold failed stays in the engine for ever."""
        request = self.harness.admit(self.make_op(4))
        self.harness.engine.cancel(request)
        assert self.harness.end(request).finish_reason == "cancelled"
        self.harness.engine.cancel(999_999)
        self.harness.engine.cancel(request)
        self.harness.engine.go(request, None)
        time.sleep(0.05)
        ends = [message for message in self.harness.said(request) if isinstance(message, Done | Failed)]
        assert len(ends) == 1

    def test_unknown_release_is_refused(self) -> None:
        """Broken: a request for one release is answered by another."""
        request = self.harness.admit(self.make_op(5), release="rel_unknown")
        failed = self.harness.said(request)[0]
        assert isinstance(failed, Failed)
        assert failed.code == "not_found"

    def test_bad_op_is_refused_by_param_and_the_engine_goes_on(self) -> None:
        """Broken: a wrong value brings the engine down, or the client is not told which one."""
        op, param = self.make_bad_op()
        request = self.harness.admit(op)
        failed = self.harness.said(request)[0]
        assert isinstance(failed, Failed)
        assert failed.param == param
        assert self.harness.run(self.make_op(6)).results

    def test_results_keep_their_order(self) -> None:
        """Broken: within one request or a batch of many, an answer reaches the wrong question."""
        ops = [self.make_op(index) for index in range(8)]
        alone = [self.harness.run(op).results for op in ops]
        requests = [self.harness.start(op) for op in ops]
        together = [self.harness.end(request).results for request in requests]
        for one, other in zip(alone, together, strict=True):
            assert all(self.same(a, b) for a, b in zip(one, other, strict=True))
        if ops[0].kind in {"classify", "embed"}:
            joined = msgspec.structs.replace(ops[0], inputs=sum((op.inputs for op in ops), ()))
            results = self.harness.run(joined).results
            flat = [result for results_of_one in alone for result in results_of_one]
            assert all(self.same(a, b) for a, b in zip(flat, results, strict=True))

    def test_stats_are_numbers(self) -> None:
        """Broken: the metrics page and hang detection have nothing to go by."""
        self.harness.run(self.make_op(7))
        stats = self.harness.engine.stats()
        assert stats["requests"] >= 1
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in stats.values())

    def test_a_changed_file_is_refused(self, tmp_path: Path) -> None:
        """Broken: weights that were tampered with are served."""
        model = self.harness.spec.models[0]
        if not (Path(model.path) / MANIFEST_NAME).is_file():
            pytest.skip("the spec names no sealed artefact")
        copy = tmp_path / "artifact"
        shutil.copytree(model.path, copy)
        file = next(path for path in sorted(copy.iterdir()) if path.name != MANIFEST_NAME and path.is_file())
        file.write_bytes(file.read_bytes() + b"\n")
        changed = msgspec.structs.replace(
            self.harness.spec, models=(msgspec.structs.replace(model, path=str(copy)),)
        )
        engine = self.make_engine()
        with pytest.raises(BrokenInvariant):
            engine.open(changed, lambda message: None)


def _agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_agree(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_agree(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=0.05, abs_tol=0.03)
    return bool(one == other)
