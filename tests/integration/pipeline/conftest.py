"""A home and a toy product on it, for tests of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gristmill.app.platform import Platform
from gristmill.app.settings import Settings
from gristmill.core.recipe import Recipe, parse
from gristmill.testing.toy import toy_base, toy_plugins

Product = Callable[..., Recipe]


@pytest.fixture
def plugins(tmp_path: Path) -> Iterator[Path]:
    """The toy plug-ins; returns their folder."""
    with toy_plugins(tmp_path / "plugins"):
        yield tmp_path / "plugins"


@pytest.fixture
def platform(tmp_path: Path, plugins: Path) -> Iterator[Platform]:
    """An open home."""
    with Platform(tmp_path / "home", Settings(hourly_rate="3.60")) as opened:
        yield opened


@pytest.fixture
def product(tmp_path: Path) -> Product:
    """Makes recipes of the toy product, with given training settings and sections."""
    folder = tmp_path / "recipe"
    toy_base(folder / "base")
    for part, n in (("train", 12), ("test", 6)):
        rows = [{"text": f"word{i} of {part} number {i * 7919}", "label": "ab"[i % 2]} for i in range(n)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(hyper: dict[str, Any] | None = None, **sections: Any) -> Recipe:
        document: dict[str, Any] = {
            "product": {"name": "desk", "task": "toy"},
            "data": {
                "source": {"path": "train.jsonl"},
                "test": {"path": "test.jsonl"},
                "validation_fraction": 0.0,
                "near_duplicate_similarity": 1.0,
                "licence": "CC0-1.0",
            },
            "base": {"model": "toy", "path": str(folder / "base")},
            "train": {"hyper": hyper or {}},
            "gates": [{"metric": "accuracy", "against": "baseline", "min": 0.1}],
        }
        return parse(document | sections)

    return make
