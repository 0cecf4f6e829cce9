"""Ingest: every raw row becomes a checked, masked row or a reject with file, line, field and reason.

Invariant: rows read = rows kept + rows dropped by the recipe + rejects; no text leaves here unmasked, except
the labels and what the recipe allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from gristmill.core.dataset import Reject, Row, RowError
from gristmill.core.errors import UsageError
from gristmill.core.recipe import Data
from gristmill.ports.task import Task
from gristmill.stages.data.mask import Masker
from gristmill.stages.data.read import Advance, RawRow, format_of, read
from gristmill.stages.data.source import Located

_SHOWN_CHARACTERS = 500
_RAW_CHARACTERS = 1_000


class Ingested(msgspec.Struct):
    """What came of one source: checked rows, how many were read and dropped, and the unusable ones."""

    located: Located
    rows: list[Row] = []
    n_read: int = 0
    n_dropped: int = 0
    unusable: list[tuple[RawRow, str, str]] = []
    columns: dict[str, None] = {}


def ingest(
    located: Located, data: Data, task: Task, masker: Masker | None, *, is_test: bool, advance: Advance
) -> Ingested:
    """Read one source.

    Args:
        located: the source.
        data: the recipe's section.
        task: checks each row.
        masker: shared by all sources; None to leave the texts.
        is_test: a declared test part: nothing is dropped from it, and it needs no group.
        advance: told what was read, see `read.Advance`.

    Raises:
        UsageError: a column of the recipe is not in the file.
    """
    found = Ingested(located)
    kind = format_of(located, data.format)
    named = _named_columns(data, is_test)
    check = _checker(data, task, masker, is_test)
    for raw in read(located, kind, advance):
        found.n_read += 1
        if raw.values is None:
            found.unusable.append((raw, "", raw.reason))
            continue
        found.columns.update(dict.fromkeys(map(str, raw.values)))
        if found.n_read == 1 and kind in ("csv", "parquet"):
            _require(named, found)
        if not is_test and _is_dropped(raw.values, data.drop):
            found.n_dropped += 1
            continue
        try:
            found.rows.append(check(raw.values))
        except RowError as error:
            start = _text_of(raw.values)[:_RAW_CHARACTERS]
            found.unusable.append((RawRow(raw.line, None, text=start), error.field, error.reason))
    if found.columns:
        fallback = (
            [] if found.rows else [data.columns.get(f.name, f.name) for f in task.fields if f.is_required]
        )
        _require([*named, *fallback], found)
    return found


def rejects_of(found: Iterable[Ingested], masker: Masker) -> list[Reject]:
    """The rejects as reported. Masked last, so that a bad row does not shift the pseudonyms of good ones."""
    return [
        Reject(
            file=part.located.name,
            line=raw.line,
            field=field,
            reason=reason,
            masked=masker.mask(raw.text)[:_SHOWN_CHARACTERS],
        )
        for part in found
        for raw, field, reason in part.unusable
    ]


def _checker(
    data: Data, task: Task, masker: Masker | None, is_test: bool
) -> Callable[[Mapping[str, Any]], Row]:
    texts = frozenset(field.name for field in task.fields if field.is_text)

    def check(values: Mapping[str, Any]) -> Row:
        row = task.parse_row(values, data.columns)
        if not all(map(_is_sound, task.texts(row))):
            raise RowError("", "text with half a character (a lone surrogate)")
        if data.group is not None:
            group = values.get(data.group)
            if group is not None and (text := _as_text(group).strip()):
                row = row | {"group": text}
            elif not is_test:
                raise RowError(data.group, "the group is missing or empty")
        return row if masker is None else _masked(row, task, texts, masker)

    return check


def _masked(row: Row, task: Task, text_fields: frozenset[str], masker: Masker) -> Row:
    given = task.texts(row)
    masked = [masker.mask(text) for text in given]
    if masked != given:
        row = task.with_texts(row, masked)
    for name, value in row.items():
        # Labels stay; lists such as the facts a chat answer must contain follow the texts they are found in.
        if name == "group" or (name not in text_fields and isinstance(value, (list, dict))):
            inner = masker.mask_within(value)
            if inner != value:
                row = row | {name: inner}
    return row


def _named_columns(data: Data, is_test: bool) -> list[str]:
    named = list(data.columns.values())
    if not is_test:
        named += [*data.drop, *([data.group] if data.group is not None else [])]
    return named


def _require(named: Iterable[str], found: Ingested) -> None:
    for column in named:
        if column not in found.columns:
            raise UsageError(
                f"{found.located.name} has no column {column!r}.",
                hint=f"Its columns: {', '.join(list(found.columns)[:30])}.",
                param="columns",
            )


def _is_dropped(values: Mapping[str, Any], drop: Mapping[str, list[str]]) -> bool:
    return any(column in values and _as_text(values[column]) in left_out for column, left_out in drop.items())


def _is_sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else _text_of(value)


def _text_of(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
