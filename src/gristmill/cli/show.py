"""Shows results on stdout (tables or JSON) and progress on stderr (a bar; plain lines when no terminal)."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gristmill.app.operations.base import Operation, Progress

_PLAIN_WIDTH = 200


class ProgressView:
    """Progress on stderr; as a context manager it always leaves the terminal clean."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, stderr=True)
        self._is_terminal = stream.isatty()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int | str] = {}

    def __enter__(self) -> ProgressView:
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show one step: a bar moves, or a plain line is written for each tenth."""
        if self._is_terminal:
            task = self._tasks.get(progress.stage)
            if task is None:
                task = self._tasks[progress.stage] = self._bar.add_task(progress.stage, note="", total=None)
            self._bar.update(
                task, completed=progress.done, total=progress.total or None, note=progress.message
            )
            return
        tenth = 10 * progress.done // progress.total if progress.total else progress.message
        if tenth != self._tenths.get(progress.stage):
            self._tenths[progress.stage] = tenth
            share = f" {progress.done}/{progress.total}" if progress.total else ""
            self._console.print(f"{progress.stage}{share} {progress.message}".rstrip(), highlight=False)


def show(result: Any, operation: Operation, *, as_json: bool) -> None:
    """Print a result: JSON as it is, else a table for lists and aligned lines for objects."""
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    if as_json:
        console.out(json.dumps(result, indent=2, ensure_ascii=False, default=str), highlight=False)
    elif isinstance(result, list):
        _table(console, result, operation)
    elif isinstance(result, dict):
        _lines(console, result)
    elif result is not None:
        console.print(result)


def _table(console: Console, rows: list[dict[str, Any]], operation: Operation) -> None:
    if not rows:
        console.print(f"No {operation.noun}s yet." if operation.noun else "Nothing.")
        return
    columns = operation.columns or tuple(rows[0])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        is_id = column == "id" or column.endswith("_id")
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=is_id)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)


def _lines(console: Console, document: dict[str, Any]) -> None:
    shown = {name: value for name, value in document.items() if f"{name}_shown" not in document}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        label = name.removesuffix("_shown").replace("_", " ").ljust(width)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(f"[bold]{label}[/bold]")
            for each in value:
                console.print(
                    "  " + "  ".join(_cell(part) for part in each.values()), highlight=False, markup=False
                )
        elif isinstance(value, str) and "\n" in value:
            console.print(f"[bold]{label}[/bold]")
            console.print(value, highlight=False, markup=False)
        else:
            console.print(f"[bold]{label}[/bold]  ", end="")
            console.print(_cell(value), highlight=False, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and all(isinstance(each, int | float | str) for each in value.values()):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items() if each)
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
