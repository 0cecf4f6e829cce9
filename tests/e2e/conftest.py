"""The throw-away product `mirror`: four third-party plug-ins, a data file and a recipe, all in one folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gristmill.testing.plugin_dist import write_plugin

SOURCES = Path(__file__).parent / "throwaway"
RECIPE = """
[product]
name = "{name}"
task = "mirror"

[data]
source = {{ path = "rows.jsonl" }}
licence = "CC0-1.0"
test_fraction = 0.25
near_duplicate_similarity = 1.0

[base]
model = "{base.name}"
path = "../{base.name}"

[train]
hyper = {hyper}

[[gates]]
metric = "exact"
against = "baseline"
min = 0.5

[serve]
options = {options}

{plans}
"""


class MirrorProduct:
    """Writes recipes of the product; `plugins` is the folder of its plug-ins, `base` a base model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        for part in ("task", "trainer", "engine", "pricing"):
            write_plugin(self.plugins, f"mirror-{part}", (SOURCES / f"{part}.py").read_text("utf-8"))
        self.base = folder / "mirrorbase"
        self.base.mkdir()
        (self.base / "config.json").write_text("{}")
        (self.base / "model.safetensors").write_bytes(b"a base of no weight")
        self.rows = [{"text": text, "answer": text[::-1]} for text in _texts()]

    def recipe(self, name: str, plans: str = "", options: str = "{}", **hyper: Any) -> Path:
        """A recipe file with its data beside it."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        settings = ", ".join(f"{key} = {json.dumps(value)}" for key, value in hyper.items())
        text = RECIPE.format(
            name=name, base=self.base, hyper=f"{{ {settings} }}", options=options, plans=plans
        )
        (folder / "gristmill.toml").write_text(text)
        return folder / "gristmill.toml"


def _texts() -> list[str]:
    """Forty texts of three made-up words, none like another."""
    hashes = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(40)]
    letters = ["".join(chr(ord("a") + int(digit, 16)) for digit in each[:21]) for each in hashes]
    return [f"{each[:7]} {each[7:14]} {each[14:]}" for each in letters]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> MirrorProduct:
    """The throw-away product, in a folder of the module's own."""
    return MirrorProduct(tmp_path_factory.mktemp("mirror"))
