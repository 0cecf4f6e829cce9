"""Datasets: rows with a schema, and immutable, content-hashed versions of them.

Invariant: a version's digest is a pure function of its rows and schema, never of time, machine or file name.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Row = dict[str, Any]
"""A checked row: the task's fields by name, plus `group` where the data has one."""

Part = Literal["train", "validation", "test"]


class Field(msgspec.Struct, frozen=True):
    """One field of a task's rows: its name, whether it must be there, and what it holds."""

    name: str
    meaning: str
    is_required: bool = True
    is_text: bool = True


class RowError(Exception):
    """A row that cannot be used: which field and why (the value itself is never part of the reason)."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class Reject(msgspec.Struct, frozen=True):
    """A rejected row as reported: file, line (1-based), field, reason and the masked raw text."""

    file: str
    line: int
    field: str
    reason: str
    masked: str = ""


class DatasetVersion(msgspec.Struct, frozen=True):
    """An immutable state of a dataset.

    Attributes:
        id: `dsv_…`; dataset: its name; number: 1, 2, … within the dataset; task: task of the rows.
        digest: SHA-256 of schema and rows in order, hex.
        parts: part → blob digest of its Parquet file.
        counts: rows read, kept, rejected, duplicates, near_duplicates, masked (values), and per part.
        licence: SPDX id or text; source: where it came from; lineage: parents and the steps applied.
    """

    id: str
    dataset: str
    number: int
    task: str
    digest: str
    parts: dict[str, str]
    counts: dict[str, int]
    licence: str
    source: str
    lineage: dict[str, Any]
    rejects_blob: str | None = None
    created_at: str = ""
