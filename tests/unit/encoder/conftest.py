"""A tiny encoder, trained once a session, for all tests of the encoder path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gristmill.core.dataset import Row
from gristmill.core.run import TrainJob
from gristmill.plugins.trainers.encoder.trainer import EncoderTrainer
from gristmill.ports.trainer import Trained
from gristmill.testing.tiny import MemoryAttempt, review_rows, tiny_bert

HYPER = {
    "epochs": 3,
    "precision": "float32",
    "top_layers": 2,
    "dropout": 0.1,
    "learning_rate": 2e-3,
    "batch_size": 8,
    "threads": 1,
    "head_learning_rate": 2e-2,
}


class Taught(msgspec.Struct):
    """An uninterrupted training: its job, rows, attempt and result."""

    job: TrainJob
    parts: dict[str, list[Row]]
    attempt: MemoryAttempt
    trained: Trained


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of three layers."""
    return tiny_bert(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def make_job(base: Path) -> Callable[..., TrainJob]:
    """Builds a job in a folder of its own."""

    def make(folder: Path, **hyper: Any) -> TrainJob:
        return TrainJob(
            run="run_test",
            fence=1,
            task="classify",
            trainer="encoder",
            base="tiny",
            base_path=str(base),
            parts={},
            hyper=EncoderTrainer().check(HYPER | hyper),
            seed=7,
            device="cpu",
            max_seconds=0,
            work_dir=str(folder / "work"),
            artifact_dir=str(folder / "artifact"),
        )

    return make


@pytest.fixture(scope="session")
def parts() -> dict[str, list[Row]]:
    """200 rows to train on, 60 to validate, 60 to test."""
    rows = review_rows(320)
    return {"train": rows[:200], "validation": rows[200:260], "test": rows[260:]}


@pytest.fixture(scope="session")
def taught(
    make_job: Callable[..., TrainJob], parts: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory
) -> Taught:
    """One uninterrupted training with its artefact."""
    folder = tmp_path_factory.mktemp("taught")
    job, attempt = make_job(folder), MemoryAttempt(folder / "checkpoints")
    return Taught(job, parts, attempt, EncoderTrainer().train(job, parts, attempt))
