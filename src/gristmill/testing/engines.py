"""A fake engine for tests: deterministic, instant or as slow as asked, behind the same port as a real one.

It classifies by a hash of the text, embeds into eight numbers, and generates by repeating the prompt's words,
one token a word. Options of its spec: `labels` (list of str), `token_s` (seconds a generated token takes).
Register it with `installed(folder, "fake", FAKE_PLUGIN)` from `gristmill.testing.plugin_dist`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

from gristmill.core.artifact import MANIFEST_NAME, load_verified
from gristmill.core.errors import GristmillError, NotFound, UsageError
from gristmill.core.op import Chunk, Counted, Done, EngineSpec, Failed, Op
from gristmill.ports.engine import Emit

FAKE_PLUGIN = '''
"""A third-party plug-in: the fake engine."""
from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="fake",
    kind="engines",
    summary="A deterministic engine for tests.",
    implementation="gristmill.testing.engines:FakeEngine",
    capabilities={"ops": ["classify", "embed", "generate"], "adapters": True},
)
'''

_N_VALUES = 8


class _Request:
    """One admitted request: what is to be answered and how far it is."""

    def __init__(self, release: str, op: Op) -> None:
        self.release = release
        self.op = op
        self.words = _words(op.inputs[0]) if op.kind == "generate" else []
        self.n_target = min(len(self.words), int(op.options.get("max_tokens", len(self.words))))
        self.n_done = 0
        self.busy_s = 0.0


class FakeEngine:
    """See the module. One worker thread gives every running request one token a turn."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._admitted: dict[int, _Request] = {}
        self._running: dict[int, _Request] = {}
        self._digests: dict[str, str] = {}
        self._labels: list[str] = []
        self._token_s = 0.0
        self._n_requests = 0
        self._n_tokens = 0
        self._is_closed = False
        self._emit: Emit | None = None

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """See the port; a release whose folder holds no artefact counts as loaded with the digest given."""
        self._labels = list(spec.options.get("labels", ["negative", "positive"]))
        self._token_s = float(spec.options.get("token_s", 0.0))
        self._emit = emit
        for model in spec.models:
            if (Path(model.path) / MANIFEST_NAME).is_file():
                load_verified(Path(model.path), model.digest)
            self._digests[model.release] = model.digest
        threading.Thread(target=self._work, name="fake-engine", daemon=True).start()
        return dict(self._digests)

    def admit(self, request: int, release: str, op: Op) -> None:
        """See the port."""
        try:
            self._check(release, op)
        except GristmillError as error:
            self._send(Failed(request, error.code, error.message, error.param))
            return
        with self._lock:
            self._admitted[request] = _Request(release, op)
        self._send(Counted(request, _usage(op)))

    def go(self, request: int, max_tokens: int | None) -> None:
        """See the port."""
        with self._lock:
            admitted = self._admitted.pop(request, None)
            if admitted is None:
                return
            if max_tokens is not None:
                admitted.n_target = min(admitted.n_target, max_tokens)
            self._running[request] = admitted
            self._lock.notify()

    def cancel(self, request: int) -> None:
        """See the port."""
        with self._lock:
            found = self._admitted.pop(request, None) or self._running.pop(request, None)
            if found is not None:
                self._send(self._done(request, found, "cancelled"))

    def stats(self) -> dict[str, float]:
        """See the port."""
        with self._lock:
            return {"requests": self._n_requests, "tokens": self._n_tokens, "queue": len(self._running)}

    def close(self) -> None:
        """See the port."""
        with self._lock:
            self._is_closed = True
            self._lock.notify()

    def _check(self, release: str, op: Op) -> None:
        if release not in self._digests:
            raise NotFound(f"The engine has no release {release}.", param="model")
        if op.kind not in {"classify", "embed", "generate"}:
            raise UsageError(f"This model cannot {op.kind}.", param="kind")
        if not op.inputs:
            raise UsageError("There is nothing to answer.", param="input")
        if op.options.get("max_tokens", 1) < 1:
            raise UsageError("max_tokens must be at least 1.", param="max_tokens")

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._running and not self._is_closed:
                    self._lock.wait()
                if self._is_closed:
                    return
                turn = list(self._running.items())
            started_at = time.perf_counter()
            if self._token_s:
                time.sleep(self._token_s)
            share_s = (time.perf_counter() - started_at) / len(turn)
            for request, running in turn:
                running.busy_s += share_s
                with self._lock:
                    if request in self._running:
                        self._step(request, running)

    def _step(self, request: int, running: _Request) -> None:
        if running.n_done < running.n_target:
            if running.op.stream:
                self._send(Chunk(request, running.words[running.n_done], 1))
            running.n_done += 1
            self._n_tokens += 1
        if running.n_done >= running.n_target:
            del self._running[request]
            self._n_requests += 1
            is_whole = running.n_done == len(running.words)
            self._send(self._done(request, running, "stop" if is_whole else "length"))

    def _done(self, request: int, running: _Request, finish_reason: str) -> Done:
        op = running.op
        usage = _usage(op)
        results: list[Any]
        if op.kind == "generate":
            results = [{"text": "".join(running.words[: running.n_done])}]
            usage["output_tokens"] = running.n_done
        elif finish_reason == "cancelled":
            results = []
        elif op.kind == "classify":
            results = [self._classify(text) for text in op.inputs]
        else:
            results = [_embed(text) for text in op.inputs]
        digest = self._digests[running.release]
        return Done(request, results, usage, running.busy_s, finish_reason, digest)

    def _classify(self, text: str) -> dict[str, Any]:
        weights = [1 + hashlib.sha256(f"{label} {text}".encode()).digest()[0] for label in self._labels]
        probs = {label: w / sum(weights) for label, w in zip(self._labels, weights, strict=True)}
        return {"label": max(probs, key=lambda label: probs[label]), "probs": probs}

    def _send(self, message: Counted | Chunk | Done | Failed) -> None:
        assert self._emit is not None
        self._emit(message)


def _words(item: Any) -> list[str]:
    """The tokens of a prompt or of chat messages: words, each but the first with its leading space."""
    text = item if isinstance(item, str) else " ".join(str(message["content"]) for message in item)
    words = text.split()
    return words[:1] + [f" {word}" for word in words[1:]]


def _usage(op: Op) -> dict[str, int]:
    n_tokens = sum(max(1, len(_words(item))) for item in op.inputs)
    usage = {"input_tokens": n_tokens}
    return usage if op.kind == "generate" else {**usage, "items": len(op.inputs)}


def _embed(text: str) -> list[float]:
    values = [byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:_N_VALUES]]
    norm = sum(value * value for value in values) ** 0.5
    return [value / norm for value in values]
