"""Customers' files: checked row by row on arrival, encrypted at rest, visible to their owner alone.

Invariant: a file is stored sealed for "file/<customer>/<id>" and never otherwise,
and another customer's id answers as an absent one does. Source: OpenAI API reference, "Files".
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gristmill.core.account import Customer
from gristmill.core.clock import Clock
from gristmill.core.dataset import RowError
from gristmill.core.errors import Missing, NotFound, TooLarge, UsageError
from gristmill.ports import discovery
from gristmill.ports.task import Task
from gristmill.stages.access import queries_files as queries
from gristmill.store.blobs import Blobs
from gristmill.store.cipher import Cipher
from gristmill.store.session import Database

PURPOSE = "fine-tune"
MAX_LINE_BYTES = 2**20
MAX_NAME_CHARACTERS = 255


class FileRecord(msgspec.Struct, frozen=True):
    """A stored file as its owner sees it; `created_at` is ISO 8601."""

    id: str
    filename: str
    purpose: str
    bytes: int
    blob: str
    status: str
    created_at: str


class Files:
    """Upload, list, read and delete files."""

    def __init__(self, db: Database, blobs: Blobs, cipher: Cipher, clock: Clock, max_bytes: int) -> None:
        self._db = db
        self._blobs = blobs
        self._cipher = cipher
        self._clock = clock
        self.max_bytes = max_bytes

    def upload(self, customer: Customer, filename: str, purpose: str, content: bytes) -> FileRecord:
        """Check and keep a file.

        Raises:
            UsageError: a wrong purpose, or the first bad row with line, field and reason.
            TooLarge: over the limit.
        """
        if purpose != PURPOSE:
            raise UsageError(
                f"The purpose {purpose!r} is not supported.", hint=f"Use {PURPOSE!r}.", param="purpose"
            )
        if len(content) > self.max_bytes:
            raise TooLarge(f"The file is over the limit of {self.max_bytes:,} bytes.", param="file")
        check_rows(content)
        file_id = self._clock.new_id("file")
        sealed = self._cipher.seal(content, _context(customer.id, file_id))
        record = FileRecord(
            id=file_id,
            filename=(filename or "file.jsonl")[-MAX_NAME_CHARACTERS:],
            purpose=purpose,
            bytes=len(content),
            blob=self._blobs.put(sealed),
            status="processed",
            created_at=self._clock.now().isoformat(),
        )
        with self._db.write() as connection:
            queries.add(
                connection, customer_id=customer.id, deleted_at=None, **msgspec.structs.asdict(record)
            )
        return record

    def get(self, customer: Customer, file_id: str) -> FileRecord:
        """One file of this customer.

        Raises:
            NotFound: absent, deleted, or another customer's.
        """
        with self._db.read() as connection:
            row = queries.find(connection, customer.id, file_id)
        if row is None:
            raise NotFound(f"There is no file {file_id!r}.", param="file_id")
        return _record(row)

    def content(self, customer: Customer, file_id: str) -> bytes:
        """The file's bytes as they were uploaded."""
        record = self.get(customer, file_id)
        return self._cipher.open(self._blobs.get(record.blob), _context(customer.id, record.id))

    def listed(
        self, customer: Customer, *, purpose: str | None, after: str | None, limit: int, is_ascending: bool
    ) -> tuple[list[FileRecord], bool]:
        """A page of this customer's files, and whether more follow."""
        start = None if after is None else msgspec.structs.asdict(self.get(customer, after))
        with self._db.read() as connection:
            rows = queries.listed(
                connection,
                customer.id,
                purpose=purpose,
                after=start,
                limit=limit + 1,
                is_ascending=is_ascending,
            )
        return [_record(row) for row in rows[:limit]], len(rows) > limit

    def delete(self, customer: Customer, file_id: str) -> None:
        """Drop a file's content and hide it; what was trained from it keeps its masked dataset version."""
        record = self.get(customer, file_id)
        with self._db.write() as connection:
            queries.mark_deleted(connection, customer.id, file_id, self._clock.now().isoformat())
            is_unused = queries.count_using(connection, record.blob) == 0
        if is_unused:
            self._blobs.delete(record.blob)


def check_rows(content: bytes) -> str:
    """Check every line of a training file; returns the name of the task its rows fit.

    Raises:
        UsageError: the first bad line, with its number, the field and the reason (never the value).
    """
    task_name: str | None = None
    task: Task | None = None
    n_rows = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        raw = _parse(line, number)
        if task is None:
            task_name, task = _task_of(raw, number)
        try:
            task.parse_row(raw, {})
        except RowError as error:
            raise _bad(number, error.field, error.reason) from None
        n_rows += 1
    if task_name is None:
        raise UsageError("The file holds no rows.", hint="One JSON object a line.", param="file")
    return task_name


def _parse(line: bytes, number: int) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise _bad(number, "line", f"is over {MAX_LINE_BYTES:,} bytes")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        raw = json.loads(line.decode())
    except UnicodeDecodeError:
        raise _bad(number, "line", "is not valid UTF-8") from None
    except (json.JSONDecodeError, RecursionError):
        raise _bad(number, "line", "is not valid JSON") from None
    if not isinstance(raw, dict):
        raise _bad(number, "line", "is not a JSON object")
    return raw


def _task_of(raw: dict[str, Any], number: int) -> tuple[str, Task]:
    """The trainable task whose required fields are all there; the most demanding one when several fit."""
    best: tuple[int, str, Task] | None = None
    wanted: list[str] = []
    for name, manifest in discovery.manifests("tasks").items():
        if "trainer" not in manifest.capabilities:
            continue
        try:
            task: Task = discovery.load(manifest)
        except Missing:
            continue
        required = {field.name for field in task.fields if field.is_required}
        wanted.append(f"{name}: {', '.join(sorted(required))}")
        if required <= set(raw) and (best is None or len(required) > best[0]):
            best = (len(required), name, task)
    if best is None:
        keys = ", ".join(sorted(repr(key) for key in list(raw)[:8]))
        raise UsageError(
            f"Line {number} has the fields {keys or 'none'}, which fit no task.",
            hint=f"Rows need: {'; '.join(wanted)}.",
            param="file",
        )
    return best[1], best[2]


def _bad(number: int, field: str, reason: str) -> UsageError:
    return UsageError(f"Line {number}, field {field}: {reason}.", param="file", line=number, field=field)


def _context(customer_id: str, file_id: str) -> str:
    return f"file/{customer_id}/{file_id}"


def _record(row: dict[str, Any]) -> FileRecord:
    return FileRecord(**{name: row[name] for name in FileRecord.__struct_fields__})
