"""A tiny task, a clock that stands still and a place to prepare data in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from gristmill.core.clock import encode_id
from gristmill.core.dataset import Field, Row, RowError
from gristmill.core.errors import UsageError
from gristmill.core.recipe import parse
from gristmill.core.rows import read_parquet
from gristmill.stages.data.prepare import Prepared, prepare
from gristmill.store.blobs import Blobs

# Two loaded cores make a first example slow; the suite's timeout is the limit that counts.
settings.register_profile("data", deadline=None)
settings.load_profile("data")


class NoteTask:
    """Text with a label and optional tags: what the data stage needs of a task, and no more."""

    op = "classify"
    fields = (
        Field("text", "the text"),
        Field("label", "its class", is_text=False),
        Field("tags", "strings", is_required=False, is_text=False),
    )
    endpoints = ()
    primary_metric = "accuracy"

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """Both fields must be text."""
        row: Row = {}
        for name in ("text", "label"):
            value = raw.get(columns.get(name, name))
            if not isinstance(value, str) or not value.strip():
                raise RowError(name, "must be text that is not empty")
            row[name] = value
        if raw.get("tags"):
            row["tags"] = raw["tags"]
        return row

    def texts(self, row: Row) -> list[str]:
        """The text."""
        return [row["text"]]

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """The row with another text."""
        return row | {"text": texts[0]}

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """A label that only the test part has is refused."""
        unknown = {row["label"] for row in test} - {row["label"] for row in train}
        if unknown:
            raise UsageError(f"Labels only in test: {sorted(unknown)}.")


class StillClock:
    """Time stands still and ids count up."""

    def __init__(self) -> None:
        self.count = 0

    def now(self) -> datetime:
        """One instant."""
        return datetime(2026, 11, 22, tzinfo=UTC)

    def monotonic_s(self) -> float:
        """One instant."""
        return 0.0

    def new_id(self, prefix: str) -> str:
        """The next id."""
        self.count += 1
        return encode_id(prefix, 1_000, self.count)

    def token(self, n_bytes: int) -> bytes:
        """No chance at all."""
        return bytes(n_bytes)


class Bench:
    """A folder with files, and `run` to prepare them."""

    def __init__(self, root: Path) -> None:
        self.recipe_dir, self.data_dir = root / "recipe", root / "home" / "data"
        self.recipe_dir.mkdir(parents=True)
        self.data_dir.mkdir(parents=True)
        self.blobs = Blobs(root / "home" / "blobs", root / "home" / "artifacts")
        self.task: Any = NoteTask()
        self.clock = StillClock()

    def write(self, name: str, content: str | bytes) -> None:
        """Put a file into the recipe's folder."""
        data = content.encode() if isinstance(content, str) else content
        (self.recipe_dir / name).write_bytes(data)

    def run(self, source: str | dict[str, Any], progress: Any = None, **data: Any) -> Prepared:
        """Prepare a source with settings of the data section."""
        given = {"path": source} if isinstance(source, str) else source
        document = {
            "product": {"name": "notes", "task": "note"},
            "data": {"source": given, **data},
            "base": {"model": "none"},
        }
        return prepare(
            parse(document),
            self.task,
            recipe_dir=self.recipe_dir,
            data_dir=self.data_dir,
            blobs=self.blobs,
            clock=self.clock,
            progress=progress,
        )

    def rows(self, prepared: Prepared, part: str = "train") -> list[Row]:
        """The rows of a stored part."""
        return read_parquet(self.blobs.path(prepared.parts[part]))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A fresh place to prepare data in."""
    return Bench(tmp_path)


@pytest.fixture
def new_bench(tmp_path: Path) -> Callable[[str], Bench]:
    """Makes several places in one test."""
    return lambda name: Bench(tmp_path / name)
