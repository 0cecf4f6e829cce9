"""One request on its way through llama.cpp: its body, its events, and exactly one `Done` or `Failed`.

Invariant: the tokens of all chunks sum to `output_tokens`, which is llama.cpp's own count; after the final
message nothing more is emitted, whoever came first: the end, an error, or a cancellation.
Source: llama.cpp tools/server/README.md, "POST /v1/completions" (fields; `timings_per_token`).
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import structlog

from gristmill.core.op import Chunk, Done, Failed, Op
from gristmill.plugins.engines.llamacpp.models import Release
from gristmill.ports.engine import Emit

_SEEDS = 0xFFFFFFFF  # llama.cpp reads this value as "no seed"
_DEFAULT_MAX_TOKENS = 256
_SAMPLING = {"top_k": 40, "min_p": 0.05}


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    timings: _Timings | None = None
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Event)
_log = structlog.get_logger()


class Generation:
    """A request admitted by the engine."""

    def __init__(self, request: int, release: Release, op: Op, ids: list[int], room: int, emit: Emit) -> None:
        self.request = request
        self.release = release
        self.is_started = False
        self._op, self._ids, self._emit = op, ids, emit
        self._limit = min(int(op.options.get("max_tokens") or _DEFAULT_MAX_TOKENS), room)
        self._lock = threading.Lock()
        self._is_over = False
        self._texts: list[str] = []
        self._n_tokens = 0
        self._n_sent = 0
        self._finish: str | None = None

    @property
    def n_input(self) -> int:
        """Tokens of the input."""
        return len(self._ids)

    @property
    def is_over(self) -> bool:
        """Whether the final message was emitted."""
        return self._is_over

    @property
    def n_tokens(self) -> int:
        """Tokens llama.cpp has made so far."""
        return self._n_tokens

    def cap(self, max_tokens: int | None) -> int:
        """Lower the limit on output tokens; returns the limit."""
        if max_tokens is not None:
            self._limit = min(self._limit, max_tokens)
        return self._limit

    def body(self, n_adapters: int) -> bytes:
        """The request for llama.cpp, field by field; which adapter applies comes from the release alone."""
        options = self._op.options
        fields: dict[str, Any] = _SAMPLING | self.release.chat.settings.sampling
        fields |= {
            "prompt": self._ids,
            "max_tokens": self._limit,
            "stream": True,
            "timings_per_token": True,
            "cache_prompt": False,
            "temperature": float(options.get("temperature", 1.0)),
            "top_p": float(options.get("top_p", 1.0)),
            "presence_penalty": float(options.get("presence_penalty", 0.0)),
            "frequency_penalty": float(options.get("frequency_penalty", 0.0)),
            "stop": list(options.get("stop") or ()),
        }
        if options.get("seed") is not None:
            fields["seed"] = int(options["seed"]) % _SEEDS
        if n_adapters:
            chosen = self.release.adapter
            fields["lora"] = [{"id": i, "scale": 1.0 if i == chosen else 0.0} for i in range(n_adapters)]
        return msgspec.json.encode(fields)

    def on_event(self, raw: bytes) -> bool:
        """Take one event of llama.cpp; True asks it to stop."""
        try:
            event = _decoder.decode(raw)
        except msgspec.MsgspecError:
            self.fail("error", "The engine gave an answer that cannot be read.")
            return True
        if event.error is not None:
            _log.warning("llamacpp_refused", code=event.error.get("code"), kind=event.error.get("type"))
            self.fail("unavailable", "The engine could not run this request.")
            return True
        with self._lock:
            if self._is_over:
                return True
            if event.timings is not None:
                self._n_tokens = max(self._n_tokens, event.timings.predicted_n)
            if event.usage is not None:
                self._n_tokens = event.usage.completion_tokens
            for choice in event.choices:
                self._finish = choice.finish_reason or self._finish
                self._add(choice.text)
        return False

    def finish(self, busy_s: float) -> None:
        """Emit `Done` after llama.cpp returned, unless something final was emitted before."""
        if self._finish is None:
            self.fail("unavailable", "The engine stopped before the answer was complete.")
        else:
            self._end("length" if self._finish == "length" else "stop", busy_s)

    def cancel(self, busy_s: float) -> None:
        """Emit `Done` with finish reason "cancelled" and what was made so far."""
        self._end("cancelled", busy_s)

    def fail(self, code: str, message: str, param: str | None = None) -> None:
        """Emit `Failed`, unless something final was emitted before."""
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._emit(Failed(self.request, code, message, param))

    def _add(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._send(text)

    def _send(self, text: str) -> None:
        if self._op.stream:
            self._emit(Chunk(self.request, text, self._n_tokens - self._n_sent))
            self._n_sent = self._n_tokens

    def _end(self, reason: str, busy_s: float) -> None:
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            if self._n_tokens > self._n_sent:
                self._send("")  # tokens without text: the end token, or a stop string that was cut off
            usage = {"input_tokens": len(self._ids), "output_tokens": self._n_tokens}
            results = [{"text": "".join(self._texts)}]
            self._emit(Done(self.request, results, usage, busy_s, reason, self.release.digest))
