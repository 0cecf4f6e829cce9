"""ONNX Runtime behind the engine port.

`admit` tokenises and counts, `go` queues the items, the batcher's thread runs them and whoever completes a
request emits its `Done`.
Invariant: a request's answer depends on its own texts only (int8 activations are scaled by what a batch
shows, so the third digit of a probability may differ between batches).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.artifact import load_verified
from gristmill.core.errors import GristmillError, NotFound, UnknownField, UsageError
from gristmill.core.op import Counted, Done, EngineSpec, Failed, Op, ServedModel
from gristmill.kit.batcher import Batcher, Item
from gristmill.kit.encoder_session import Session, Texts
from gristmill.ports.engine import Emit

_OPTIONS: dict[str, int] = {"threads": 0, "batch_tokens": 1024, "max_items": 8192}


class _Model(msgspec.Struct, frozen=True):
    kind: str
    digest: str
    texts: Texts
    session: Session


class _Request:
    """One admitted request and how far it is."""

    def __init__(self, number: int, model: _Model, group: str, rows: list[list[int]]) -> None:
        self.number = number
        self.model = model
        self.usage = {"input_tokens": sum(map(len, rows)), "items": len(rows)}
        self.results: list[Any] = [None] * len(rows)
        self.n_missing = len(rows)
        self.busy_s = 0.0
        self.group = group
        self.rows = rows
        self.items: list[Item] = []

    def done(self, finish_reason: str) -> Done:
        results = self.results if finish_reason == "stop" else []
        return Done(self.number, results, self.usage, self.busy_s, finish_reason, self.model.digest)


class OnnxEngine:
    """See the module. Options: threads (0 for one a core), batch_tokens, max_items (texts waiting).

    Each thread runs a batch of its own: two threads on one batch of short texts gain nothing (MiniLM, one
    text: 4.1 ms with one, 4.3 ms with two), two batches side by side nearly double what is answered.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._requests: dict[int, _Request] = {}
        self._lock = threading.Lock()
        self._n_requests = 0
        self._emit: Emit | None = None
        self._batcher: Batcher | None = None

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """See the port."""
        options = _checked(spec.options)
        self._emit = emit
        for model in spec.models:
            self._models[model.release] = _load(model)
        self._batcher = Batcher(
            self._run,
            batch_tokens=options["batch_tokens"],
            max_items=options["max_items"],
            workers=options["threads"] or os.cpu_count() or 1,
        )
        return {release: model.digest for release, model in self._models.items()}

    def admit(self, request: int, release: str, op: Op) -> None:
        """See the port."""
        try:
            model = self._models.get(release)
            if model is None:
                raise NotFound(f"The release {release} is not loaded here.", param="model")
            if op.kind != model.kind:
                raise UsageError(f"This model does {model.kind}, not {op.kind}.", param="model")
            rows = model.texts.encode([_text(item) for item in op.inputs])
        except GristmillError as error:
            self._fail(request, error)
            return
        admitted = _Request(request, model, release, rows)
        with self._lock:
            self._requests[request] = admitted
            self._n_requests += 1
        self._tell(Counted(request, admitted.usage))

    def go(self, request: int, max_tokens: int | None) -> None:
        """See the port; `max_tokens` bounds output, of which there is none."""
        assert self._batcher is not None
        with self._lock:
            admitted = self._requests.get(request)
            if admitted is None or admitted.items:
                return
            admitted.items = [
                Item(admitted.group, ids, self._receiver(admitted, index))
                for index, ids in enumerate(admitted.rows)
            ]
        try:
            self._batcher.put(admitted.items)
        except GristmillError as error:
            with self._lock:
                self._requests.pop(request, None)
            self._fail(request, error)

    def cancel(self, request: int) -> None:
        """See the port."""
        with self._lock:
            admitted = self._requests.pop(request, None)
            if admitted is None:
                return
            for item in admitted.items:
                item.is_dropped = True
        self._tell(admitted.done("cancelled"))

    def stats(self) -> dict[str, float]:
        """See the port."""
        assert self._batcher is not None
        return self._batcher.counters | {
            "requests": float(self._n_requests),
            "queue": float(self._batcher.queue_length()),
        }

    def close(self) -> None:
        """See the port."""
        if self._batcher is not None:
            self._batcher.close()
        self._models.clear()

    def _run(self, group: str, rows: list[Sequence[int]]) -> list[Any]:
        return self._models[group].session.run(rows)

    def _receiver(self, admitted: _Request, index: int) -> Any:
        def receive(result: Any, busy_s: float, error: GristmillError | None) -> None:
            with self._lock:
                admitted.busy_s += busy_s
                if self._requests.get(admitted.number) is not admitted:
                    return
                admitted.results[index] = result
                admitted.n_missing -= 1
                if error is None and admitted.n_missing > 0:
                    return
                del self._requests[admitted.number]
                for item in admitted.items:
                    item.is_dropped = True
            if error is None:
                self._tell(admitted.done("stop"))
            else:
                self._fail(admitted.number, error)

        return receive

    def _fail(self, request: int, error: GristmillError) -> None:
        self._tell(Failed(request, error.code, error.message, error.param))

    def _tell(self, message: Counted | Done | Failed) -> None:
        assert self._emit is not None
        self._emit(message)


def _load(model: ServedModel) -> _Model:
    folder = Path(model.path)
    artifact = load_verified(folder, model.digest)
    facts = artifact.facts
    return _Model(
        kind=artifact.task,
        digest=artifact.digest,
        texts=Texts(folder / "tokenizer.json", facts["max_tokens"], facts["pad"]),
        session=Session(folder, facts, threads=1),
    )


def _checked(options: dict[str, Any]) -> dict[str, int]:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise UnknownField(
                f"The onnx engine has no option {name!r}.",
                hint=f"It knows {', '.join(_OPTIONS)}.",
                param=name,
            )
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"{name} must be a whole number, not {value!r}.", param=name)
    return _OPTIONS | options


def _text(item: Any) -> str:
    if not isinstance(item, str):
        raise UsageError("An input is not a text.", param="input")
    return item
