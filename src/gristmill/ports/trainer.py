"""The trainer port: turns rows and a base model into a sealed artefact, inside a child process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from gristmill.core.dataset import Row
from gristmill.core.run import TrainJob


class Estimate(msgspec.Struct, frozen=True):
    """What a run will take: seconds of training, tokens or rows × epochs, and how it was estimated."""

    train_s: float
    trained_tokens: int
    basis: str


class Attempt(Protocol):
    """What a trainer may ask of the child that runs it."""

    def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Report progress; cheap, may be called every step."""
        ...

    def stopped_reason(self) -> str | None:
        """None to go on; else "max_minutes", "max_cost" or "cancelled": save a checkpoint and end."""
        ...

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Checkpoint: `write` fills a temporary folder, which is fsynced and renamed to step number `step`.

        Raises:
            Conflict: a newer attempt has taken over (an old fence is refused).
        """
        ...

    def latest(self) -> tuple[int, Path] | None:
        """The newest whole checkpoint (step, folder), or None."""
        ...

    def train_s(self) -> float:
        """Seconds of training so far, in all attempts."""
        ...


class Trained(msgspec.Struct, frozen=True):
    """What a trainer returns.

    Attributes:
        steps, epochs: done. metrics: final figures. trained_tokens: input tokens (or rows) seen.
        stopped_reason: as `Attempt.stopped_reason`. device: where it ran.
        replay: up to 200 training inputs as (Op, output of the trained model), for the parity gate.
        base_outputs: outputs of the base model on the test rows without training, when cheap; else None.
    """

    steps: int
    epochs: float
    metrics: dict[str, float]
    trained_tokens: int
    stopped_reason: str | None
    device: str
    replay: list[tuple[Any, Any]]
    base_outputs: list[Any] | None = None


class Trainer(Protocol):
    """A trainer plug-in."""

    def check(self, hyper: dict[str, Any]) -> dict[str, Any]:
        """Fill defaults and refuse unknown or impossible settings (UsageError naming the field)."""
        ...

    def estimate(self, job: TrainJob, rows: Sequence[Row]) -> Estimate:
        """Estimate before anything is spent; must not load the base model's weights."""
        ...

    def train(self, job: TrainJob, parts: dict[str, list[Row]], attempt: Attempt) -> Trained:
        """Train (resuming from `attempt.latest()`), export, and `seal` the artefact in `job.artifact_dir`."""
        ...

    def adopt(self, task: str, base: str, base_path: Path, artifact_dir: Path) -> None:
        """Turn a model that was not trained here into a sealed artefact (for `release import`)."""
        ...
