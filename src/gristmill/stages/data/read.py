"""Readers: CSV, JSON lines and Parquet as streams of raw rows, each with its line.

Invariant: every row of the file comes out, either with its values or with the reason why it cannot be read;
no reader holds more than one row (Parquet: one small batch) and 10 MB of a line in memory.
Source: RFC 4180 (CSV), jsonlines.org, Apache Parquet; OpenAI's chat format is JSON lines.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from gristmill.core.errors import UsageError
from gristmill.stages.data.source import Located, hub_rows

MAX_LINE_BYTES = 10 * 1024 * 1024
_KEPT_CHARACTERS = 1_000
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_TOO_LONG = f"longer than {MAX_LINE_BYTES // 1024 // 1024} MB"

Advance = Callable[[int, int], None]
"""Called now and then with what was read and the total: bytes of the file, or rows."""


class RawRow(NamedTuple):
    """A row as read: 1-based line; the values, or None with the reason and the start of the raw text."""

    line: int
    values: Mapping[str, Any] | None
    reason: str = ""
    text: str = ""


def format_of(located: Located, declared: str) -> str:
    """The format to read with ("csv", "jsonl", "parquet", "hub"): as declared, or by the file's ending."""
    if located.path is None:
        return "hub"
    if declared != "auto":
        return declared
    endings = [ending.lower() for ending in located.path.suffixes]
    while endings and endings[-1] in _OPENERS:
        endings.pop()
    if not endings or endings[-1] not in _ENDINGS:
        raise UsageError(
            f"The format of {located.name} cannot be told from its name.",
            hint='Set format = "csv", "jsonl" or "parquet" in [data].',
            param="format",
        )
    return _ENDINGS[endings[-1]]


def read(located: Located, kind: str, advance: Advance = lambda done, total: None) -> Iterator[RawRow]:
    """Stream the raw rows of a source.

    Raises:
        UsageError: the file as a whole cannot be read (damaged, wrong format, no header).
    """
    if kind == "hub":
        yield from (RawRow(number, row) for number, row in enumerate(hub_rows(located), start=1))
        return
    assert located.path is not None
    if kind == "parquet":
        yield from _parquet(located, located.path, advance)
        return
    with _opened(located, located.path) as (raw, handle):
        total = located.path.stat().st_size
        rows = _csv(located, handle) if kind == "csv" else _jsonl(handle)
        for count, row in enumerate(rows):
            if count % 512 == 0:
                advance(raw.tell(), total)
            yield row
        advance(total, total)


class _Line(NamedTuple):
    number: int
    text: str
    reason: str = ""


def _lines(handle: IO[bytes]) -> Iterator[_Line]:
    """Decode line by line; a bad line comes with its reason and the start of its text."""
    number = 0
    while data := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        if len(data) > MAX_LINE_BYTES:
            start = data[: 4 * _KEPT_CHARACTERS].decode("utf-8", "replace")
            while data and not data.endswith(b"\n"):
                data = handle.readline(MAX_LINE_BYTES)
            yield _Line(number, start, f"line {_TOO_LONG}")
            continue
        try:
            yield _Line(number, data.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield _Line(number, data.decode("utf-8", "replace"), f"not valid UTF-8 at byte {error.start + 1}")


def _jsonl(handle: IO[bytes]) -> Iterator[RawRow]:
    for line in _lines(handle):
        text = line.text.strip()
        if line.reason:
            yield RawRow(line.number, None, line.reason, text[:_KEPT_CHARACTERS])
        elif text:
            values, reason = _json_object(text)
            yield RawRow(line.number, values, reason, text[:_KEPT_CHARACTERS] if reason else "")


def _json_object(text: str) -> tuple[dict[str, Any] | None, str]:
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        return None, "JSON nested too deep"
    except msgspec.DecodeError as error:
        return None, f"not valid JSON: {error}"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    return value, ""


class _CsvFeed:
    """Feeds a csv.reader with lines, and remembers what was wrong with those of the current row."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._lines = _lines(handle)
        self.reason = ""
        self.text = ""
        self.first = self.last = 0

    def begin(self) -> None:
        self.reason, self.text, self.first = "", "", 0

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.first = self.first or line.number
            self.last = line.number
            self.reason = self.reason or line.reason
            if len(self.text) < _KEPT_CHARACTERS:
                self.text += line.text[:_KEPT_CHARACTERS]
            yield "\n" if line.reason else line.text  # a bad line must not open a quote


def _csv(located: Located, handle: IO[bytes]) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_LINE_BYTES)
    feed = _CsvFeed(handle)
    lines = iter(feed)
    first = next(lines, None)
    if first is None:
        return
    delimiter = "," if "," in first else next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
    header = _header(located, reader, feed)
    while True:
        feed.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield RawRow(feed.first, None, _csv_reason(error, feed), feed.text[:_KEPT_CHARACTERS])
            continue
        if feed.reason:
            yield RawRow(feed.first, None, feed.reason, feed.text[:_KEPT_CHARACTERS])
        elif len(cells) == len(header):
            yield RawRow(feed.first, dict(zip(header, cells, strict=True)))
        elif cells:
            reason = f"{len(cells)} columns where the header has {len(header)}"
            yield RawRow(feed.first, None, reason, feed.text[:_KEPT_CHARACTERS])


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _header(located: Located, reader: Iterator[list[str]], feed: _CsvFeed) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration):
        header = []
    twice = sorted({name for name in header if header.count(name) > 1})
    if feed.reason or not any(header) or twice:
        why = feed.reason or (f"{', '.join(twice)} is there twice" if twice else "it cannot be read")
        raise UsageError(
            f"The header line of {located.name} is unusable: {why}.",
            hint="The first line of a CSV file names its columns, in UTF-8, each once.",
            param="source",
        )
    return header


def _csv_reason(error: csv.Error, feed: _CsvFeed) -> str:
    lines = f" (lines {feed.first} to {feed.last})" if feed.last > feed.first else ""
    if "field larger" in str(error):
        return f"a field {_TOO_LONG}, perhaps a quote that is never closed{lines}"
    return f"not valid CSV: {error}{lines}"


def _parquet(located: Located, path: Path, advance: Advance) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        total = file.metadata.num_rows
        line = 0
        for batch in file.iter_batches(batch_size=256):
            for values in _batch_rows(batch):
                line += 1
                yield _checked(line, values)
            advance(line, total)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{located.name} is not a readable Parquet file ({type(error).__name__}).", param="source"
        ) from None


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | None]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # one bad cell spoils the batch: go row by row
    for index in range(batch.num_rows):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None


def _checked(line: int, values: dict[str, Any] | None) -> RawRow:
    if values is None:
        return RawRow(line, None, "not valid UTF-8")
    for name, value in values.items():
        if isinstance(value, (str, bytes)) and len(value) > MAX_LINE_BYTES:
            return RawRow(line, None, f"{name} {_TOO_LONG}", str(value[:_KEPT_CHARACTERS]))
    return RawRow(line, values)


@contextmanager
def _opened(located: Located, path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file and its decompressed stream; damage found while reading becomes a UsageError."""
    with path.open("rb") as raw:
        if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"{located.name} is UTF-16.", hint="Save it as UTF-8.", param="source")
        raw.seek(0)
        opener = _OPENERS.get(path.suffix.lower())
        try:
            yield raw, cast("IO[bytes]", opener(raw)) if opener else raw
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise _damaged(located, error) from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise _damaged(located, error) from None  # bz2 reports damage as a bare OSError


def _damaged(located: Located, error: Exception) -> UsageError:
    return UsageError(
        f"{located.name} is damaged: it cannot be decompressed ({type(error).__name__}).",
        hint="Fetch or compress the file again.",
        param="source",
    )
