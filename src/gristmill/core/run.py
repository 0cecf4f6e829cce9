"""Runs: one training job, from queued to released or refused.

Invariant: a run's state moves only along `NEXT`; finished states are final.
"""

from __future__ import annotations

from typing import Any

import msgspec

NEXT: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"running", "succeeded", "refused", "failed", "cancelled"}),
    "succeeded": frozenset(),
    "refused": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
FINAL = frozenset(state for state, following in NEXT.items() if not following)


class TrainJob(msgspec.Struct, frozen=True):
    """What a trainer child is told, as `job.json` in the run's folder.

    Attributes:
        run: run id. fence: number of this attempt; an older one must not write.
        task, trainer: plug-in names. base: base model's name; base_path: its folder (Hugging Face layout).
        parts: part → path of its Parquet file (columns: the task's fields; chat `messages` as JSON text).
        hyper: the trainer's settings, checked by it. seed: of all randomness. device: "auto", "cpu", …
        max_seconds: stop at a checkpoint after this many training seconds; 0 for no cap.
        cap: the `stopped_reason` when max_seconds ends it: "max_minutes" or "max_cost".
        work_dir: checkpoints, caches. artifact_dir: where the sealed artefact goes.
    """

    run: str
    fence: int
    task: str
    trainer: str
    base: str
    base_path: str
    parts: dict[str, str]
    hyper: dict[str, Any]
    seed: int
    device: str
    max_seconds: float
    work_dir: str
    artifact_dir: str
    cap: str = "max_minutes"


class Trained(msgspec.Struct, frozen=True):
    """What a trainer child leaves in `trained.json` when it ends well.

    Attributes:
        train_s: seconds of training in all attempts; export_s: of export. steps, epochs done.
        metrics: final figures (loss, validation_accuracy …). trained_tokens: tokens or rows × epochs.
        stopped_reason: None, "max_minutes", "max_cost" or "cancelled".
        device: where it ran. environment: versions of the libraries that matter.
    """

    train_s: float
    export_s: float
    steps: int
    epochs: float
    metrics: dict[str, float]
    trained_tokens: int
    stopped_reason: str | None
    device: str
    environment: dict[str, str]


class Run(msgspec.Struct, frozen=True):
    """One row of `run`.

    Attributes:
        recipe: core.recipe.Recipe as JSON. facts: trainer, hyper, suffix, alias, base_folder, estimate,
            trained, report_id, cost, error ({code, message, hint, param}), and what its caller gave.
        fence: of the newest attempt. is_cancel_asked: someone wants it stopped.
    """

    id: str
    product: str
    task: str
    state: str
    dataset_version_id: str
    base: str
    customer_id: str | None
    recipe: dict[str, Any]
    recipe_digest: str
    facts: dict[str, Any]
    fence: int
    is_cancel_asked: bool
    release_id: str | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class RunEvent(msgspec.Struct, frozen=True):
    """Something that happened in a run; level: info, warn or error. data: figures."""

    id: str
    run_id: str
    level: str
    message: str
    data: dict[str, Any]
    created_at: str
