"""A third-party engine: writes backwards, one word a token, as slowly as asked.

Option `token_s`: seconds a token takes. What it emits is known beforehand: the words of the reversed text.
A text that begins with "break" makes it raise an error that quotes the text, as careless code does.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from gristmill.core.artifact import load_verified
from gristmill.core.op import Chunk, Counted, Done, EngineSpec, Failed, Op
from gristmill.ports.engine import Emit
from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="mirror",
    kind="engines",
    summary="Writes backwards.",
    implementation="mirror_engine:MirrorEngine",
    capabilities={"ops": ["mirror"], "adapters": False},
)


class MirrorEngine:
    """See `ports.engine.Engine`; each running request has a thread."""

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """See the port."""
        self._emit = emit
        self._token_s = float(spec.options.get("token_s", 0.0))
        self._digests: dict[str, str] = {}
        self._is_backwards: dict[str, bool] = {}
        self._admitted: dict[int, tuple[str, Op]] = {}
        self._running: dict[int, threading.Event] = {}
        for model in spec.models:
            self._digests[model.release] = load_verified(Path(model.path), model.digest).digest
            document = json.loads((Path(model.path) / "model.json").read_text())
            self._is_backwards[model.release] = document["is_backwards"]
        return self._digests

    def admit(self, request: int, release: str, op: Op) -> None:
        """See the port."""
        if op.kind != "mirror":
            self._emit(Failed(request, "invalid_value", f"This model cannot {op.kind}.", "model"))
            return
        if op.inputs[0].startswith("break"):
            raise ValueError(f"cannot handle {op.inputs[0]!r}")
        self._admitted[request] = release, op
        self._emit(Counted(request, {"letters": len(op.inputs[0])}))

    def go(self, request: int, max_tokens: int | None) -> None:
        """See the port."""
        release, op = self._admitted.pop(request)
        stopped = self._running[request] = threading.Event()
        run = threading.Thread(
            target=self._run, args=(request, release, op, max_tokens, stopped), daemon=True
        )
        run.start()

    def cancel(self, request: int) -> None:
        """See the port."""
        if self._admitted.pop(request, None) is not None:
            self._emit(Done(request, [], {}, 0.0, "cancelled", ""))
        elif request in self._running:
            self._running[request].set()

    def stats(self) -> dict[str, float]:
        """See the port."""
        return {"queue": len(self._running)}

    def close(self) -> None:
        """See the port."""

    def _run(
        self, request: int, release: str, op: Op, max_tokens: int | None, stopped: threading.Event
    ) -> None:
        text: str = op.inputs[0]
        words = (text[::-1] if self._is_backwards[release] else text).split(" ")
        limit = len(words) if max_tokens is None else min(len(words), max_tokens)
        written = ""
        started_s = time.perf_counter()
        for n, word in enumerate(words[:limit]):
            if stopped.wait(self._token_s):
                break
            token = word if n == 0 else f" {word}"
            written += token
            if op.stream:
                self._emit(Chunk(request, token, 1))
        n_tokens = len(written.split(" ")) if written else 0
        reason = "cancelled" if stopped.is_set() else "stop" if limit == len(words) else "length"
        usage = {"letters": len(text), "output_tokens": n_tokens}
        busy_s = time.perf_counter() - started_s
        del self._running[request]
        self._emit(Done(request, [{"text": written}], usage, busy_s, reason, self._digests[release]))
