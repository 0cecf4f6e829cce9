"""A third-party trainer: learns in as many steps as asked whether texts run backwards.

Settings: `steps`, and `step_s` seconds for each; after every step it saves a checkpoint and notes the attempt
and the step in `work/steps.log`. `learns` false makes it learn nothing, so that the gates refuse;
`breaks` makes it raise an error that quotes a row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gristmill.core.artifact import seal
from gristmill.core.dataset import Row
from gristmill.core.errors import UnknownField, UsageError
from gristmill.core.op import Op
from gristmill.core.run import TrainJob
from gristmill.ports.manifest import Manifest
from gristmill.ports.trainer import Attempt, Estimate, Trained

MANIFEST = Manifest(
    name="mirror",
    kind="trainers",
    summary="Learns to write backwards.",
    implementation="mirror_trainer:MirrorTrainer",
    capabilities={"tasks": ["mirror"]},
)
_DEFAULTS = {"steps": 4, "step_s": 0.05, "learns": True, "breaks": False}
_MODEL = "model.json"


class MirrorTrainer:
    """See `ports.trainer.Trainer`."""

    def check(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """See the port."""
        for name in hyper:
            if name not in _DEFAULTS:
                raise UnknownField(f"The mirror trainer has no {name!r}.", param=f"train.hyper.{name}")
        return _DEFAULTS | hyper

    def estimate(self, job: TrainJob, rows: Sequence[Row]) -> Estimate:
        """See the port."""
        return Estimate(job.hyper["steps"] * job.hyper["step_s"], len(rows), "steps × seconds a step")

    def train(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> Trained:
        """See the port."""
        rows, total = parts["train"], int(job.hyper["steps"])
        if job.hyper["breaks"]:
            raise ValueError(f"cannot learn {rows[0]['text']!r}")
        found = attempt.latest()
        step = 0 if found is None else found[0]
        while step < total and attempt.stopped_reason() is None:
            with (Path(job.work_dir) / "steps.log").open("a") as log:
                log.write(f"{job.fence} {step}\n")
            time.sleep(float(job.hyper["step_s"]))
            step += 1
            attempt.save(step, partial(_write, step=step))
            attempt.progress("train", step, total, {"loss": 1.0 / step})
        attempt.progress("export", 0, 1, {})
        folder = Path(job.artifact_dir)
        folder.mkdir(parents=True, exist_ok=True)
        is_backwards = all(row["answer"] == row["text"][::-1] for row in rows) and bool(job.hyper["learns"])
        (folder / _MODEL).write_text(json.dumps({"is_backwards": is_backwards}))
        seal(folder, task=job.task, engine="mirror", kind="model", base=job.base, facts={"steps": step})
        attempt.progress("export", 1, 1, {})
        texts = [row["text"] for row in rows]
        replay = [(Op("mirror", (text,)), {"text": text[::-1] if is_backwards else text}) for text in texts]
        base = [{"text": row["text"]} for row in parts["test"]]
        reason = attempt.stopped_reason()
        return Trained(step, 1.0, {"loss": 1.0 / max(1, step)}, len(rows), reason, "cpu", replay, base)

    def adopt(self, task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
        """See the port."""
        raise UsageError("A mirror is trained, never imported.", param="source")


def _write(folder: Path, step: int) -> None:
    (folder / _MODEL).write_text(json.dumps({"step": step}))
