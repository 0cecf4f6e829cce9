"""The source keeps its promises, and each lint catches a planted violation."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("gristmill_lints", Path(__file__).with_name("lints.py"))
assert _spec is not None
assert _spec.loader is not None
lints = importlib.util.module_from_spec(_spec)
sys.modules["gristmill_lints"] = lints
_spec.loader.exec_module(lints)

PLANTED = {
    "float_near_money": ("stages/bill/x.py", "price = 0.1"),
    "sql_outside_queries": ("app/x.py", "from sqlalchemy import select"),
    "commit_outside_unit_of_work": ("stages/data/x.py", "connection.commit()"),
    "environment_read": ("stages/serve/x.py", "import os\nos.environ['A']"),
    "ledger_written_elsewhere": ("stages/bill/queries.py", "ledger.entry.insert()"),
    "unsafe_weights": ("kit/x.py", "import pickle"),
    "clock_bypassed": ("stages/access/x.py", "datetime.now(UTC)"),
    "too_long": ("core/x.py", "\n" * 401),
}


@pytest.mark.parametrize("lint", lints.LINTS, ids=lambda lint: lint.__name__)
def test_source_keeps_the_promise(lint: lints.Lint) -> None:
    """If it fails, a rule of the architecture is broken; the message names the place."""
    assert lints.run(lint) == []


@pytest.mark.parametrize(
    ("value", "is_finding"),
    [("False", False), ("True", True), ("0", True), ("None", True), ("trust", True), ("not True", True)],
)
def test_only_a_literal_false_refuses_remote_code(value: str, is_finding: bool) -> None:
    """If it fails, remote code can be trusted unseen, or refusing it in so many words is forbidden."""
    tree = ast.parse(f"load(folder, trust_remote_code={value})")
    assert bool(list(lints.unsafe_weights("kit/x.py", tree, ""))) is is_finding


@pytest.mark.parametrize("lint", lints.LINTS, ids=lambda lint: lint.__name__)
def test_lint_catches_a_planted_violation(lint: lints.Lint) -> None:
    """If it fails, a lint has gone blind and the promise is no longer guarded."""
    place, source = PLANTED[lint.__name__]
    assert list(lint(place, ast.parse(source), source))


def test_every_test_says_what_it_guards() -> None:
    """If it fails, a test has no docstring that says what would be broken."""
    missing = []
    for path in sorted((Path(__file__).parents[1]).rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                if not ast.get_docstring(node):
                    missing.append(f"{path.name}: {node.name}")
    assert missing == []
