"""The folder of one run: what lies where, and how parent and child tell each other things through it.

Invariant: a file that means "done" (`trained.json`, `error.json`) appears whole or not at all. The folder is
the only channel between server and trainer, so it survives the death of either.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.op import Op
from gristmill.core.run import Trained, TrainJob


class Replay(msgspec.Struct, frozen=True):
    """A training input and what the trained model answered, to be asked again of the served artefact."""

    op: Op
    output: Any


class RunFolder:
    """Paths and small files of a run under `home/runs/<run id>`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.json"
        self.fence = path / "fence"
        self.cancel = path / "cancel"
        self.lock = path / "lock"
        self.log = path / "child.log"
        self.progress = path / "progress.jsonl"
        self.seconds = path / "train_s"
        self.error = path / "error.json"
        self.trained = path / "trained.json"
        self.estimate = path / "estimate.json"
        self.replay = path / "replay.jsonl"
        self.checkpoints = path / "checkpoints"
        self.work = path / "work"
        self.artifact = path / "artifact"

    def outputs(self, subject: str) -> Path:
        """The file of a subject's outputs on the test rows: "baseline" or "base"."""
        return self.path / ("base_outputs.jsonl" if subject == "base" else f"{subject}.jsonl")

    def create(self) -> None:
        """Make the folders that a run needs."""
        for folder in (self.path, self.checkpoints, self.work):
            folder.mkdir(parents=True, exist_ok=True)

    def read_fence(self) -> int:
        """The newest attempt's number; 0 before the first."""
        return int(self.fence.read_text()) if self.fence.exists() else 0

    def read_job(self) -> TrainJob:
        """The job as the child is told it."""
        return msgspec.json.decode(self.job.read_bytes(), type=TrainJob)

    def read_trained(self) -> Trained | None:
        """What the child left at its good end, or None."""
        if not self.trained.exists():
            return None
        return msgspec.json.decode(self.trained.read_bytes(), type=Trained)

    def read_replay(self) -> list[Replay]:
        """The replay set; empty when the trainer gave none."""
        return [msgspec.json.decode(line, type=Replay) for line in _lines(self.replay)]

    def read_outputs(self, subject: str) -> list[Any] | None:
        """A subject's outputs on the test rows, or None when there are none."""
        path = self.outputs(subject)
        return [msgspec.json.decode(line) for line in _lines(path)] if path.exists() else None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole: temporary name in the same folder, fsync, rename."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    Path(handle.name).replace(path)
    sync_folder(path.parent)


def write_lines(path: Path, items: Iterable[Any]) -> None:
    """Write one JSON document a line, whole or not at all; arrays (numpy) become lists."""
    lines = [msgspec.json.encode(item, enc_hook=_as_list) for item in items]
    write_atomic(path, b"".join(line + b"\n" for line in lines))


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable. Source: POSIX fsync on a directory descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def _as_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
