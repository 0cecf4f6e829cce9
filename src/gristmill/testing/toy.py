"""A toy task, trainer and engine: the whole chain in milliseconds, with faults on request.

The model is a table from a text's first word to a label. Install the three with `toy_plugins(folder)`; a
recipe names task `toy`. The trainer's settings make it slow, kill it, fail it or spoil its export:
`step_s` seconds a step; `kill_at` kills the process once at that step (`kill_always`: each time);
`fail_at` raises there; `spoil` exports another table than was trained, so that parity fails; `adapter` seals
an adapter on the base, which knows nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gristmill.core.artifact import load_verified, seal
from gristmill.core.dataset import Field, Row, RowError
from gristmill.core.errors import UnknownField, UsageError
from gristmill.core.op import Counted, Done, EngineSpec, Op
from gristmill.core.run import TrainJob
from gristmill.ports.engine import Emit
from gristmill.ports.task import Endpoint
from gristmill.ports.trainer import Attempt, Estimate, Trained
from gristmill.testing.plugin_dist import installed

_MANIFEST = '''
"""A third-party plug-in: the toy {kind}."""
from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="toy", kind="{kind}", summary="A toy.", implementation="gristmill.testing.toy:{name}",
    capabilities={capabilities},
)
'''
_PLUGINS: dict[str, tuple[str, dict[str, Any]]] = {
    "tasks": ("ToyTask", {"trainer": "toy", "engine": "toy"}),
    "trainers": ("ToyTrainer", {"tasks": ["toy"]}),
    "engines": ("ToyEngine", {"ops": ["classify"], "adapters": False}),
}
_DEFAULTS: dict[str, Any] = {
    "epochs": 1,
    "step_s": 0.0,
    "save_every": 1,
    "kill_at": -1,
    "kill_always": False,
    "fail_at": -1,
    "spoil": False,
    "adapter": False,
}
_MODEL = "model.json"


@contextmanager
def toy_plugins(folder: Path) -> Iterator[None]:
    """The toy task, trainer and engine, known to this process and its children until the block ends."""
    with ExitStack() as stack:
        for kind, (name, capabilities) in _PLUGINS.items():
            source = _MANIFEST.format(kind=kind, name=name, capabilities=capabilities)
            stack.enter_context(installed(folder / kind, f"toy-{kind}", source))
        yield


def toy_base(folder: Path) -> Path:
    """A folder that passes for a base model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"toy")
    (folder / _MODEL).write_text("{}")
    return folder


class ToyTask:
    """Label a text by its first word."""

    op = "classify"
    fields = (Field("text", "a text"), Field("label", "its label", is_text=False))
    endpoints: tuple[Endpoint, ...] = ()
    primary_metric = "accuracy"

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """See `ports.task.Task`."""
        row = {field.name: raw.get(columns.get(field.name, field.name)) for field in self.fields}
        for name, value in row.items():
            if not isinstance(value, str) or not value:
                raise RowError(name, "is not a text")
        return row

    def texts(self, row: Row) -> list[str]:
        """See `ports.task.Task`."""
        return [row["text"]]

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """See `ports.task.Task`."""
        return row | {"text": texts[0]}

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """See `ports.task.Task`."""
        if not train:
            raise UsageError("There is no row to learn from.")

    def eval_op(self, row: Row) -> Op:
        """See `ports.task.Task`."""
        return Op("classify", (row["text"],))

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """See `ports.task.Task`."""
        pairs = zip(rows, outputs, strict=True)
        return {"accuracy": [float(row["label"] == output["label"]) for row, output in pairs]}

    def agreement(self, expected: Any, given: Any) -> float:
        """See `ports.task.Task`."""
        return float(expected["label"] == given["label"])

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """The most frequent label."""
        [(label, _)] = Counter(row["label"] for row in train).most_common(1)
        return [_output(label)] * len(test)

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """See `ports.task.Task`."""
        return {"input": row["text"], "expected": row["label"], "given": output["label"]}


class ToyTrainer:
    """Learns the table one row a step, with a checkpoint every `save_every` steps."""

    def check(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """See `ports.trainer.Trainer`."""
        for name in hyper:
            if name not in _DEFAULTS:
                raise UnknownField(f"The toy trainer has no setting {name!r}.", param=f"train.hyper.{name}")
        return _DEFAULTS | hyper

    def estimate(self, job: TrainJob, rows: Sequence[Row]) -> Estimate:
        """See `ports.trainer.Trainer`."""
        steps = len(rows) * int(job.hyper["epochs"])
        return Estimate(steps * float(job.hyper["step_s"]), steps, "rows × seconds a step")

    def train(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> Trained:
        """See `ports.trainer.Trainer`."""
        rows, hyper = parts["train"], job.hyper
        total = len(rows) * int(hyper["epochs"])
        step, table = _resume(attempt)
        reason = attempt.stopped_reason()
        while step < total and reason is None:
            _fault(job, step)
            row = rows[step % len(rows)]
            table[_key(row["text"])] = row["label"]
            step += 1
            time.sleep(float(hyper["step_s"]))
            if step % int(hyper["save_every"]) == 0:
                _save(attempt, step, table)
            attempt.progress("train", step, total, {"loss": 1.0 / step})
            reason = attempt.stopped_reason()
        attempt.progress("export", 0, 1, {})
        _export(job, table)
        attempt.progress("export", 1, 1, {})
        replay = [(Op("classify", (text,)), _output(_look_up(table, text))) for text in _texts(rows)]
        base = None if hyper["adapter"] else [_output("none")] * len(parts["test"])
        return Trained(
            step, step / len(rows), {"loss": 1.0 / max(1, step)}, step, reason, "cpu", replay, base
        )

    def adopt(self, task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
        """See `ports.trainer.Trainer`; a toy model is a table in JSON beside some safetensors."""
        table = json.loads((base_path / _MODEL).read_text())
        (artifact_dir / _MODEL).write_text(json.dumps(table))
        seal(artifact_dir, task=task, engine="toy", kind="model", base=base)


class ToyEngine:
    """Answers from the tables of its artefacts, at once."""

    def open(self, spec: EngineSpec, emit: Emit) -> dict[str, str]:
        """See `ports.engine.Engine`."""
        self._emit = emit
        self._tables: dict[str, dict[str, str]] = {}
        self._digests: dict[str, str] = {}
        self._admitted: dict[int, tuple[str, Op]] = {}
        for model in spec.models:
            self._digests[model.release] = load_verified(Path(model.path), model.digest).digest
            self._tables[model.release] = json.loads((Path(model.path) / _MODEL).read_text())
        return self._digests

    def admit(self, request: int, release: str, op: Op) -> None:
        """See `ports.engine.Engine`."""
        self._admitted[request] = release, op
        self._emit(Counted(request, {"items": len(op.inputs)}))

    def go(self, request: int, max_tokens: int | None) -> None:
        """See `ports.engine.Engine`."""
        release, op = self._admitted.pop(request)
        results = [_output(_look_up(self._tables[release], text)) for text in op.inputs]
        usage = {"items": len(results)}
        self._emit(Done(request, results, usage, 0.001, "stop", self._digests[release]))

    def cancel(self, request: int) -> None:
        """See `ports.engine.Engine`."""
        if self._admitted.pop(request, None) is not None:
            self._emit(Done(request, [], {}, 0.0, "cancelled", ""))

    def stats(self) -> dict[str, float]:
        """See `ports.engine.Engine`."""
        return {}

    def close(self) -> None:
        """See `ports.engine.Engine`."""


def _texts(rows: Sequence[Row]) -> list[str]:
    return [row["text"] for row in rows]


def _key(text: str) -> str:
    return text.split()[0]


def _look_up(table: Mapping[str, str], text: str) -> str:
    return table.get(_key(text), "none")


def _output(label: str) -> dict[str, Any]:
    return {"label": label, "probs": {label: 1.0}}


def _resume(attempt: Attempt) -> tuple[int, dict[str, str]]:
    found = attempt.latest()
    if found is None:
        return 0, {}
    return found[0], json.loads((found[1] / _MODEL).read_text())


def _save(attempt: Attempt, step: int, table: dict[str, str]) -> None:
    attempt.save(step, lambda folder: _write(folder, table))


def _write(folder: Path, table: dict[str, str]) -> None:
    (folder / _MODEL).write_text(json.dumps(table))


def _fault(job: TrainJob, step: int) -> None:
    """Fail or die when the settings say so; `steps.log` in the work folder tells the tests what was done."""
    with (Path(job.work_dir) / "steps.log").open("a") as log:
        log.write(f"{job.fence} {step}\n")
    if step == job.hyper["fail_at"]:
        raise ZeroDivisionError("secret text of the data")
    killed = Path(job.work_dir) / "killed"
    if step == job.hyper["kill_at"] and (job.hyper["kill_always"] or not killed.exists()):
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _export(job: TrainJob, table: dict[str, str]) -> None:
    folder = Path(job.artifact_dir)
    folder.mkdir(parents=True, exist_ok=True)
    spoilt = dict.fromkeys(table, "spoilt")
    _write(folder, spoilt if job.hyper["spoil"] else table)
    kind = "adapter" if job.hyper["adapter"] else "model"
    seal(folder, task=job.task, engine="toy", kind=kind, base=job.base, facts={"labels": sorted(table)})
