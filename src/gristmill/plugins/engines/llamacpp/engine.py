"""The llama.cpp engine: admits, queues and runs generations, a thread for each slot.

Invariant: a client reaches llama.cpp only through `Generation.body`; prompts are token ids made by
`kit.chat`; nothing is cached between requests.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from gristmill.core.errors import GristmillError, NotFound, UsageError
from gristmill.core.op import Counted, EngineSpec, Failed, Op
from gristmill.plugins.engines.llamacpp.generation import Generation
from gristmill.plugins.engines.llamacpp.models import Loaded, Options, load_models, read_options
from gristmill.plugins.engines.llamacpp.private import open_server
from gristmill.plugins.engines.llamacpp.share import BusyShare
from gristmill.ports.engine import Emit

_log = structlog.get_logger()
_MOST_CHARS_A_TOKEN = 128


class LlamaCppEngine:
    """See `ports.engine.Engine`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, Generation] = {}
        self._share = BusyShare(time.monotonic)
        self._counters = {"requests": 0.0, "tokens": 0.0, "input_tokens": 0.0}
        self._waiting = 0

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """See `ports.engine.Engine`."""
        self._emit = emit
        self._options: Options = read_options(spec.options)
        self._loaded: Loaded = load_models(spec.models)
        self._server: Any = open_server(self._loaded, self._options)
        self._pool = ThreadPoolExecutor(self._options.slots, thread_name_prefix="slot")
        _log.info("llamacpp_opened", releases=len(self._loaded.releases), adapters=len(self._loaded.adapters))
        return {release: model.digest for release, model in self._loaded.releases.items()}

    def admit(self, request: int, release: str, op: Op) -> None:
        """See `ports.engine.Engine`."""
        try:
            generation = self._prepare(request, release, op)
        except GristmillError as error:
            self._emit(Failed(request, error.code, error.message, error.param))
            return
        n_input = generation.n_input
        with self._lock:
            self._open[request] = generation
            self._counters["requests"] += 1
            self._counters["input_tokens"] += n_input
        self._emit(Counted(request, {"input_tokens": n_input}))

    def go(self, request: int, max_tokens: int | None) -> None:
        """See `ports.engine.Engine`."""
        with self._lock:
            generation = self._open.get(request)
            is_full = self._waiting >= self._options.queue + self._options.slots
            if generation is None or generation.is_started:
                return
            generation.is_started = True
            if not is_full:
                self._waiting += 1
        generation.cap(max_tokens)
        if is_full:
            generation.fail("unavailable", "Too many requests are waiting for this model; try again.")
            self._forget(generation)
            return
        self._pool.submit(self._run, generation)

    def cancel(self, request: int) -> None:
        """See `ports.engine.Engine`."""
        with self._lock:
            generation = self._open.get(request)
        if generation is not None:
            generation.cancel(self._share.so_far(request))
            self._forget(generation)

    def stats(self) -> dict[str, float]:
        """See `ports.engine.Engine`."""
        with self._lock:
            running = sum(generation.n_tokens for generation in self._open.values())
            counters = dict(self._counters)
            counters["tokens"] += running
            counters["queue"] = float(max(self._waiting - self._options.slots, 0))
        return counters | {"busy_s": self._share.total(), "rss_bytes": _rss_bytes()}

    def close(self) -> None:
        """See `ports.engine.Engine`."""
        with self._lock:
            left = list(self._open)
        for request in left:
            self.cancel(request)
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self._server

    def _prepare(self, request: int, release: str, op: Op) -> Generation:
        model = self._loaded.releases.get(release)
        if model is None:
            raise NotFound("This engine does not serve that release.", param="model")
        if op.kind != "generate" or len(op.inputs) != 1:
            raise UsageError("The llamacpp engine runs one generation an op.", param="kind")
        item = op.inputs[0]
        is_plain = isinstance(item, str)
        param = "prompt" if is_plain else "messages"
        n_chars = len(item) if is_plain else sum(len(message["content"]) for message in item)
        if n_chars > self._options.context * _MOST_CHARS_A_TOKEN:  # do not tokenise megabytes to say no
            raise UsageError(
                f"The input has {n_chars} characters; that is too long for this model.", param=param
            )
        ids = model.chat.text(item) if is_plain else model.chat.prompt(item)
        room = self._options.context - len(ids)
        if not ids:
            raise UsageError("The prompt is empty.", param=param)
        if room < 1:
            raise UsageError(
                f"The input has {len(ids)} tokens; this model takes at most {self._options.context - 1}.",
                param=param,
            )
        return Generation(request, model, op, ids, room, self._emit)

    def _run(self, generation: Generation) -> None:
        try:
            if generation.is_over:
                return
            with self._share.busy(generation.request):
                body = generation.body(len(self._loaded.adapters))
                self._server.handle_completions(body, generation.on_event)
                busy_s = self._share.so_far(generation.request)
            generation.finish(busy_s)
        except RuntimeError:
            _log.exception("llamacpp_failed")
            generation.fail("unavailable", "The engine could not run this request.")
        finally:
            with self._lock:
                self._waiting -= 1
            self._forget(generation)

    def _forget(self, generation: Generation) -> None:
        with self._lock:
            if self._open.pop(generation.request, None) is not None:
                self._counters["tokens"] += generation.n_tokens


def _rss_bytes() -> float:
    statm = Path("/proc/self/statm")
    return float(statm.read_text().split()[1]) * 4096 if statm.exists() else 0.0
