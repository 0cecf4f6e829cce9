"""Readers: every row comes out, with its values or with the reason why not."""

from __future__ import annotations

import bz2
import gzip
import io
from pathlib import Path
from typing import Any

import pytest

from gristmill.core.errors import UsageError
from gristmill.stages.data.read import MAX_LINE_BYTES, RawRow, format_of, read
from gristmill.stages.data.source import Located


def rows_of(folder: Path, name: str, data: bytes) -> list[RawRow]:
    """Write a file and read it by its ending."""
    path = folder / name
    path.write_bytes(data)
    located = Located(name=name, described=name, path=path)
    return list(read(located, format_of(located, "auto")))


CSV = '﻿text,label\r\n"two\nlines, one ""cell""",a\r\n\r\n你好,b\r\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CSV.encode()),
        ("a.CSV.GZ", gzip.compress(CSV.encode())),
        ("a.csv.bz2", bz2.compress(CSV.encode())),
        ("a.csv", CSV.replace("lines, one", "lines one").replace(",", ";").encode()),
        ("a.tsv", CSV.replace("lines, one", "lines one").replace(",", "\t").encode()),
    ],
)
def test_csv(tmp_path: Path, name: str, data: bytes) -> None:
    """Quoted line ends, byte order marks, compression or another delimiter would spoil the rows."""
    rows = rows_of(tmp_path, name, data)
    assert [row.line for row in rows] == [2, 5]
    assert rows[0].values is not None
    assert rows[0].values["text"].startswith("two\nlines")
    assert rows[1].values == {"text": "你好", "label": "b"}


def test_bad_csv_rows_come_with_line_and_reason(tmp_path: Path) -> None:
    """A row would be dropped in silence, or one bad row would end the reading."""
    data = b'text,label\ngood,a\nshort\nbad \xff byte,a\n"x"y,a\nlong,a,b\nlast,b\n"open,a\n'
    rows = rows_of(tmp_path, "a.csv", data)
    assert [(row.line, row.values is None) for row in rows] == [
        (2, False),
        (3, True),
        (4, True),
        (5, True),
        (6, True),
        (7, False),
        (8, True),
    ]
    reasons = [row.reason for row in rows if row.reason]
    assert reasons[0] == "1 columns where the header has 2"
    assert reasons[1] == "not valid UTF-8 at byte 5"
    assert "not valid CSV" in reasons[2]
    assert reasons[3] == "3 columns where the header has 2"
    assert "unexpected end" in reasons[4]


def test_jsonl(tmp_path: Path) -> None:
    """A bad line would end the reading or take a good one with it."""
    lines = [
        b'\xef\xbb\xbf{"text": "a"}',
        b"",
        b"{broken",
        b"[1]",
        b'{"text": "\xff"}',
        b"[" * 5_000,
        b'{"text": "b"}',
    ]
    rows = rows_of(tmp_path, "a.jsonl", b"\n".join(lines))
    assert [(row.line, row.values) for row in rows if row.values] == [(1, {"text": "a"}), (7, {"text": "b"})]
    assert [row.line for row in rows if row.values is None] == [3, 4, 5, 6]
    assert all(row.reason for row in rows if row.values is None)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_line_over_the_limit_is_one_reject(tmp_path: Path, name: str) -> None:
    """A line of gigabytes would fill the memory, or swallow the rows after it."""
    good = b"x,a\n" if name == "a.csv" else b'{"text": "x"}\n'
    head = b"text,label\n" if name == "a.csv" else good
    rows = rows_of(tmp_path, name, head + b'"' + b"y" * (MAX_LINE_BYTES + 5) + b"\n" + good)
    assert [row.values is None for row in rows][-2:] == [True, False]
    assert rows[-2].line == 2
    assert "longer than 10 MB" in rows[-2].reason
    assert len(rows[-2].text) < 5_000


def test_a_quote_that_never_closes_does_not_take_the_file(tmp_path: Path) -> None:
    """All rows after a stray quote would be read as one field and lost."""
    many = b"row with some text,a\n" * (MAX_LINE_BYTES // 21 + 100)
    rows = rows_of(tmp_path, "a.csv", b'text,label\n"open,a\n' + many)
    assert "never closed" in rows[0].reason
    assert rows[0].line == 2
    assert len(rows) > 50
    assert rows[-1].values == {"text": "row with some text", "label": "a"}


def test_parquet(tmp_path: Path) -> None:
    """Columnar files could not be read, or nested values would be lost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    wanted: list[dict[str, Any]] = [
        {"text": "a", "messages": [{"role": "user"}]},
        {"text": None, "messages": []},
    ]
    pq.write_table(pa.Table.from_pylist(wanted), sink)
    rows = rows_of(tmp_path, "a.parquet", sink.getvalue())
    assert [row.values for row in rows] == wanted
    assert [row.line for row in rows] == [1, 2]


def test_invalid_utf8_in_parquet_is_one_reject(tmp_path: Path) -> None:
    """One bad cell would end the reading with a traceback."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    cells = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": cells}), sink)
    rows = rows_of(tmp_path, "a.parquet", sink.getvalue())
    assert [row.values for row in rows] == [{"text": "a"}, None, {"text": "c"}]
    assert rows[1].reason == "not valid UTF-8"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv.gz", gzip.compress(b"text\n" * 9_999)[:-9]),
        ("a.csv.gz", b"not gzip"),
        ("a.csv.bz2", b"not bzip2"),
        ("a.csv.xz", b"not xz"),
        ("a.parquet", b"not parquet"),
        ("a.csv", "text,label\n".encode("utf-16")),
        ("a.csv", b"text,text\n"),
        ("a.csv", b"t\xffxt,label\n"),
        ("a.docx", b""),
        ("rows", b""),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes) -> None:
    """A damaged or foreign file would end in a traceback, or in half of its rows."""
    with pytest.raises(UsageError):
        rows_of(tmp_path, name, data)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    """A progress bar would stop short of its end."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"x\n" * 2_000)
    told: list[tuple[int, int]] = []
    list(read(Located("a", "a", path), "csv", lambda done, total: told.append((done, total))))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert told == sorted(told)
