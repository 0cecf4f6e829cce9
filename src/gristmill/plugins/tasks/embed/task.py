"""The embed task: rows are texts alone, and what can be checked without a reference is the vector's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.core.dataset import Field, Row, RowError
from gristmill.core.errors import UsageError
from gristmill.core.op import Op
from gristmill.plugins.tasks.embed.endpoint import EMBEDDINGS

_LENGTH_TOLERANCE = 1e-3


class Embed:
    """See `ports.task.Task`."""

    op = "embed"
    fields = (Field("text", "the text to embed"),)
    endpoints = (EMBEDDINGS,)
    primary_metric = "well_formed"

    def parse_row(self, raw: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
        """See the port."""
        column = columns.get("text", "text")
        if column not in raw:
            raise RowError("text", f"there is no column {column!r}")
        value = raw[column]
        if not isinstance(value, str):
            raise RowError("text", "it is not text" if value is not None else "it is empty")
        if not value.strip():
            raise RowError("text", "it is empty")
        return {"text": value.strip()}

    def texts(self, row: Row) -> list[str]:
        """See the port."""
        return [row["text"]]

    def with_texts(self, row: Row, texts: Sequence[str]) -> Row:
        """See the port."""
        return {**row, "text": texts[0]}

    def check(self, train: Sequence[Row], test: Sequence[Row]) -> None:
        """See the port."""
        if not test and not train:
            raise UsageError("There are no rows.", hint="Check the source and its rejects.", param="data")

    def eval_op(self, row: Row) -> Op:
        """See the port."""
        return Op(kind="embed", inputs=(row["text"],))

    def scores(self, rows: Sequence[Row], outputs: Sequence[Any]) -> dict[str, list[float]]:
        """`well_formed`: whether a vector is finite and of length one."""
        return {"well_formed": [float(abs(_length(output) - 1.0) <= _LENGTH_TOLERANCE) for output in outputs]}

    def agreement(self, expected: Any, given: Any) -> float:
        """Cosine of the two vectors, at least 0."""
        both = sum(a * b for a, b in zip(expected, given, strict=True))
        scale = _length(expected) * _length(given)
        return max(0.0, min(1.0, both / scale)) if scale > 0 else 0.0

    def baseline(self, train: Sequence[Row], test: Sequence[Row]) -> list[Any] | None:
        """None: there is no simple method to set beside a vector."""
        return None

    def shown(self, row: Row, output: Any) -> dict[str, str]:
        """See the port."""
        head = ", ".join(f"{value:.3f}" for value in output[:4])
        return {"input": row["text"], "expected": "a vector", "given": f"[{head}, …] ({len(output)} values)"}


def _length(vector: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))
