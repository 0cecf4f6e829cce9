"""An attempt: what a trainer asks of the child it runs in (progress, caps, checkpoints).

Invariant: a checkpoint folder `step-N` is whole (files and folder fsynced before the rename), and an attempt
whose fence is older than the folder's writes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from gristmill.core.errors import Conflict
from gristmill.core.run import TrainJob
from gristmill.stages.train.folder import RunFolder, sync_folder, write_atomic

_KEPT = 2
_EVERY_S = 0.5
EXPORT = "export"


class Progress(msgspec.Struct, frozen=True):
    """One line of `progress.jsonl`: how far a stage is, and the figures of the moment."""

    fence: int
    stage: str
    done: int
    total: int
    train_s: float
    metrics: dict[str, float] = {}


class RunAttempt:
    """The `ports.trainer.Attempt` of a run folder; `monotonic_s` tells elapsed seconds."""

    def __init__(self, folder: RunFolder, job: TrainJob, monotonic_s: Callable[[], float]) -> None:
        self._folder = folder
        self._job = job
        self._now = monotonic_s
        self._started = monotonic_s()
        self._before_s = float(folder.seconds.read_text()) if folder.seconds.exists() else 0.0
        self._export_started: float | None = None
        self._reported_at = float("-inf")
        self._stage = ""

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """See `ports.trainer.Attempt`; written twice a second at most, and at each stage's start and end."""
        now = self._now()
        if stage == EXPORT and self._export_started is None:
            self._export_started = now
        is_edge = stage != self._stage or done >= total
        if not is_edge and now - self._reported_at < _EVERY_S:
            return
        self._reported_at, self._stage = now, stage
        self.check_fence()
        line = Progress(self._job.fence, stage, done, total, round(self.train_s(), 3), metrics)
        append_progress(self._folder, line)
        self._keep_seconds()

    def stopped_reason(self) -> str | None:
        """See `ports.trainer.Attempt`."""
        if self._folder.cancel.exists():
            return "cancelled"
        if 0 < self._job.max_seconds <= self.train_s():
            return self._job.cap
        return None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """See `ports.trainer.Attempt`; keeps the last two checkpoints."""
        self.check_fence()
        root = self._folder.checkpoints
        partial = root / f".partial-{self._job.fence}-{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _sync_tree(partial)
        self.check_fence()
        target = root / f"step-{step}"
        if target.exists():  # a resumed attempt came past the same step again
            shutil.rmtree(partial)
        else:
            partial.rename(target)
            sync_folder(root)
        for _, old in self._checkpoints()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        self._keep_seconds()

    def latest(self) -> tuple[int, Path] | None:
        """See `ports.trainer.Attempt`."""
        found = self._checkpoints()
        return found[-1] if found else None

    def train_s(self) -> float:
        """Seconds of training in all attempts; export is counted apart."""
        end = self._export_started if self._export_started is not None else self._now()
        return self._before_s + end - self._started

    def export_s(self) -> float:
        """Seconds since the stage "export" was first reported; 0 before it."""
        return 0.0 if self._export_started is None else self._now() - self._export_started

    def clear_partials(self) -> None:
        """Remove what a killed attempt left half-written."""
        for path in self._folder.checkpoints.glob(".partial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def check_fence(self) -> None:
        """Raise Conflict when a newer attempt has taken over."""
        newest = self._folder.read_fence()
        if newest != self._job.fence:
            raise Conflict(
                f"Attempt {self._job.fence} of {self._job.run} was superseded by attempt {newest}."
            )

    def _keep_seconds(self) -> None:
        write_atomic(self._folder.seconds, f"{self.train_s():.3f}".encode())

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = [(int(path.name[5:]), path) for path in self._folder.checkpoints.glob("step-*")]
        return sorted(found)


def append_progress(folder: RunFolder, line: Progress) -> None:
    """Add a line for the parent to follow."""
    with folder.progress.open("ab") as handle:
        handle.write(msgspec.json.encode(line) + b"\n")


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)
