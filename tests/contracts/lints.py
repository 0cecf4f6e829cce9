"""Our own lints: each takes one parsed module and yields what breaks a promise, as `line: message`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "gristmill"
MODULE_LINES, FUNCTION_LINES = 400, 60
_MONEY_PLACES = (
    "core/money.py",
    "core/posting.py",
    "core/invoice.py",
    "store/ledger/",
    "stages/bill/",
    "plugins/pricing/",
)
_ENVIRONMENT_PLACES = ("app/settings.py",)
_COMMIT_PLACES = ("store/session.py", "store/ledger/", "store/migrat", "store/jobs.py")
_SQL_CALLS = {"select", "insert", "update", "delete", "text", "exec_driver_sql"}

Lint = Callable[[str, ast.Module, str], Iterator[str]]


def float_near_money(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """Floats lose cents: no float literal, call, or division in the modules that handle money."""
    if not place.startswith(_MONEY_PLACES):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield f"{node.lineno}: float literal {node.value} near money"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
            yield f"{node.lineno}: float() near money"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not _is_path(node):
            yield f"{node.lineno}: true division near money; use // or Decimal methods"


def _is_path(node: ast.BinOp) -> bool:
    """Whether a `/` joins paths: one side is a text or is named like a path."""
    sides = [ast.unparse(side).lower() for side in (node.left, node.right)]
    return any(side.startswith(("'", '"', "path")) or "folder" in side or "_dir" in side for side in sides)


def sql_outside_queries(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """SQL lives in a stage's queries modules and in store."""
    if place.startswith("store/") or "/queries" in place:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlalchemy":
            names = {alias.name for alias in node.names} & _SQL_CALLS
            if names:
                yield f"{node.lineno}: {', '.join(sorted(names))} of sqlalchemy outside queries.py"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            head = node.value.lstrip()[:12].upper()
            if (
                head.startswith(("SELECT ", "INSERT INTO", "UPDATE ", "DELETE FROM"))
                and " " in node.value.strip()
            ):
                if head.startswith("UPDATE ") and " SET " not in node.value.upper():
                    continue
                yield f"{node.lineno}: SQL text outside queries.py"


def commit_outside_unit_of_work(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """Only the unit of work and the ledger writer commit."""
    if place.startswith(_COMMIT_PLACES):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            yield f"{node.lineno}: commit() outside the unit of work"


def environment_read(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """The environment is read in one place, so that every setting is known and documented."""
    if place.startswith(_ENVIRONMENT_PLACES):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            if isinstance(node.value, ast.Name) and node.value.id == "os":
                yield f"{node.lineno}: os.{node.attr} outside app/settings.py"


def ledger_written_elsewhere(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """`store/ledger` is the only writer of the ledger's tables."""
    if place.startswith("store/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"insert", "update", "delete"} and "ledger." in ast.unparse(node):
                yield f"{node.lineno}: writes a ledger table outside store/ledger"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in {"insert", "update", "delete"} and ast.unparse(node.func.value).startswith(
                "ledger."
            ):
                yield f"{node.lineno}: writes a ledger table outside store/ledger"


def unsafe_weights(_place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """Pickle runs code when loaded; remote code is never trusted."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        if {"pickle", "joblib", "dill", "cloudpickle"} & set(names):
            yield f"{node.lineno}: imports {names}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"{node.value.lineno}: trust_remote_code is not the literal False"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.save"}:
            yield f"{node.lineno}: {ast.unparse(node.func)} uses pickle"


def clock_bypassed(place: str, tree: ast.Module, _source: str) -> Iterator[str]:
    """Time of day, ids and secrets come from the Clock that is passed in."""
    if place == "core/clock.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {
                "datetime.now",
                "datetime.utcnow",
                "time.time",
                "uuid.uuid4",
                "uuid4",
            } or called.startswith("secrets."):
                if called != "secrets.compare_digest":
                    yield f"{node.lineno}: {called}() bypasses the Clock"


def too_long(_place: str, tree: ast.Module, source: str) -> Iterator[str]:
    """A module has at most 400 lines, a function 60."""
    lines = source.count("\n")
    if lines > MODULE_LINES:
        yield f"1: {lines} lines, the limit is {MODULE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield f"{node.lineno}: {node.name} has {length} lines, the limit is {FUNCTION_LINES}"


LINTS: tuple[Lint, ...] = (
    float_near_money,
    sql_outside_queries,
    commit_outside_unit_of_work,
    environment_read,
    ledger_written_elsewhere,
    unsafe_weights,
    clock_bypassed,
    too_long,
)


def run(lint: Lint, root: Path = SOURCE) -> list[str]:
    """All findings of one lint in a tree, as `path:line: message`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        place = path.relative_to(root).as_posix()
        found += [f"{place}:{finding}" for finding in lint(place, ast.parse(source), source)]
    return found
