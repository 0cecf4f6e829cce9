"""Rows as Parquet: how a part of a dataset version is laid out in a file, for stages and trainers.

Invariant: `read_parquet(write_parquet(rows)) == rows`, and the same rows give the same bytes. A column whose
values are all text is stored as it is; any other column holds JSON text and says so in its metadata
(`gristmill: json`). A null cell means that the row has no such field.
Source: Apache Parquet format, RFC 8259.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gristmill.core.dataset import Row

_MARK = b"gristmill"


def encode_rows(rows: Sequence[Row]) -> tuple[dict[str, list[str | None]], set[str]]:
    """Lay rows out as columns of text.

    Args:
        rows: n rows; a field may be absent from some.

    Returns:
        Column name → n cells (None where a row lacks the field), in order of first appearance; and the names
        of the columns that hold JSON text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns: dict[str, list[str | None]] = {}
    as_json: set[str] = set()
    for name in names:
        if all(isinstance(row[name], str) for row in rows if name in row):
            columns[name] = [row.get(name) for row in rows]
        else:
            as_json.add(name)
            columns[name] = [_json_text(row[name]) if name in row else None for row in rows]
    return columns, as_json


def decode_rows(columns: dict[str, list[str | None]], as_json: Iterable[str], n_rows: int) -> list[Row]:
    """Invert `encode_rows`; `n_rows` is needed since rows may have no column at all."""
    rows: list[Row] = [{} for _ in range(n_rows)]
    marked = frozenset(as_json)
    for name, cells in columns.items():
        for row, cell in zip(rows, cells, strict=True):
            if cell is not None:
                row[name] = msgspec.json.decode(cell) if name in marked else cell
    return rows


def parquet_bytes(rows: Sequence[Row]) -> bytes:
    """The Parquet file of `rows`, deterministic for one version of pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, as_json = encode_rows(rows)
    fields = [
        pa.field(name, pa.large_string(), metadata={_MARK: b"json"} if name in as_json else None)
        for name in columns
    ]
    table = pa.table(
        [pa.array(cells, pa.large_string()) for cells in columns.values()],
        schema=pa.schema(fields, metadata={_MARK: str(len(rows)).encode()}),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    """Write `rows` to a Parquet file."""
    path.write_bytes(parquet_bytes(rows))


def read_parquet(path: Path) -> list[Row]:
    """Read the rows that `write_parquet` wrote."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    as_json = [field.name for field in table.schema if (field.metadata or {}).get(_MARK) == b"json"]
    columns: dict[str, Any] = {name: table.column(name).to_pylist() for name in table.column_names}
    n_rows = int((table.schema.metadata or {}).get(_MARK, str(table.num_rows)))
    return decode_rows(columns, as_json, n_rows)


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()
